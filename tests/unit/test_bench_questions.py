"""What is asked: manifests, files, examples and what stands in for them."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import pytest
from bench_harness import plan_of

from server.bench import questions
from server.bench.questions import load_questions, synthetic_clip
from server.bench.types import BenchError

HEADER = "id\taudio\tprompt\ttgt_text\n"


def ignore(done: int, total: int, piece: str) -> None:
    """No progress bar."""


def wav_file(path: Path, seed: int = 0, seconds: float = 0.5) -> Path:
    path.write_bytes(synthetic_clip(seconds, seed).data)
    return path


def test_a_manifest_asks_each_pair_once(tmp_path: Path):
    wav_file(tmp_path / "a.wav"), wav_file(tmp_path / "b.wav", 1, 1.0)
    rows = ("1\ta.wav\tHi\tx", "2\tb.wav\tHi\ty", "3\ta.wav\t\tz", "4\ta.wav\tHi\tother")
    manifest = tmp_path / "any.tsv"
    manifest.write_text(HEADER + "\n".join(rows))
    asked = load_questions(plan_of("http://x", tmp_path, manifest=manifest, audio=()), None, ignore)
    found = [(question.clip.name, question.prompt) for question in asked.questions]
    assert found == [("a.wav", "Hi"), ("b.wav", "Hi"), ("a.wav", "")]
    assert [question.clip.seconds for question in asked.questions] == [0.5, 1.0, 0.5]
    assert len({question.id for question in asked.questions}) == 3
    assert (asked.source, asked.remark) == ("manifest any.tsv", "")


def test_every_clip_with_every_prompt(tmp_path: Path):
    files = (wav_file(tmp_path / "a.wav"), wav_file(tmp_path / "b.oga", 1), wav_file(tmp_path / "same.wav"))
    asked = load_questions(plan_of("http://x", tmp_path, audio=files, prompts=("p", "q", "p")), None, ignore)
    assert len(asked.questions) == 4
    assert len({question.id for question in asked.questions}) == 4
    assert {question.clip.kind for question in asked.questions} == {"wav", "ogg"}


def test_examples_that_the_server_takes_else_tones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = tmp_path / "examples"
    examples.mkdir()
    wav_file(examples / "short.wav"), wav_file(examples / "long.wav", 1, 3.0)
    monkeypatch.setattr(questions, "EXAMPLES", examples)
    plan = plan_of("http://x", tmp_path, audio=(), prompts=())
    assert len(load_questions(plan, None, ignore).questions) == 2
    asked = load_questions(plan, 2.0, ignore)
    assert [(question.clip.name, question.prompt) for question in asked.questions] == [
        ("short.wav", questions.PROMPT)
    ]
    assert "short.wav" in asked.remark
    monkeypatch.setattr(questions, "EXAMPLES", tmp_path / "none")
    asked = load_questions(plan, 5.0, ignore)
    assert (asked.source, len(asked.questions)) == ("synthetic", 3)
    assert "synthetic" in asked.remark


def test_synthetic_clips_are_whole_different_and_repeatable():
    clip = synthetic_clip(1.5, 3)
    with wave.open(io.BytesIO(clip.data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 24_000)
    assert clip == synthetic_clip(1.5, 3)
    assert clip.data != synthetic_clip(1.5, 4).data


def test_files_that_are_no_audio_are_named(tmp_path: Path):
    text = tmp_path / "notes.wav"
    text.write_text("no audio")
    for file, words in ((text, "notes.wav"), (tmp_path / "none.wav", "No such file")):
        with pytest.raises(BenchError, match=words):
            load_questions(plan_of("http://x", tmp_path, audio=(file,)), None, ignore)
    manifest = tmp_path / "asr.tsv"
    manifest.write_text("id\taudio\n")
    with pytest.raises(BenchError, match="prompt"):
        load_questions(plan_of("http://x", tmp_path, manifest=manifest, audio=()), None, ignore)
