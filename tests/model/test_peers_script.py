"""The peers compute what we compute: the script's answers, alone and in padded batches, are the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.concurrency import endless_model
from benchmarks.peers.questions import QuestionMaker, Shape, decoded
from benchmarks.peers.script import Prepared, Script, Spoken, pad_left
from benchmarks.peers.sides import spoken
from model.tiny import make_tiny
from server.bench.questions import synthetic_clip
from server.engine.local import LocalEngine
from server.types import Delta, EngineConfig, GenerateRequest, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("peers") / "model")


@pytest.fixture(scope="module")
def script(model: Path) -> Script:
    return Script(model)


def questions_of(script: Script) -> tuple:
    """Three clips of different lengths, each with its own instruction."""
    make = QuestionMaker(script.tokenizer.encode, Shape(), 1)
    return tuple(make.about(synthetic_clip(seconds, 1)) for seconds in (0.5, 1.0, 2.0))


def answers_of(script: Script, prepared: list[Prepared], *, batch: bool) -> list[list[int]]:
    steps: list[list[int]] = []
    if batch:
        script.batch(prepared, NUM_TOKENS, steps.append)
        return [list(row) for row in zip(*steps, strict=True)]
    script.one(prepared[0], NUM_TOKENS, steps.append)
    return [[token for (token,) in steps]]


async def test_the_scripts_answers_are_the_engines(model: Path, script: Script) -> None:
    questions = questions_of(script)
    ours = await engine_answers(model, questions)
    asked = list(spoken(questions).values())
    alone = [answers_of(script, script.prepare([one]), batch=False)[0] for one in asked]
    together = answers_of(script, script.prepare(asked), batch=True)
    again = answers_of(script, script.prepare(asked[:1]), batch=False)
    assert alone == together == ours
    assert again == ours[:1]
    assert len({tuple(ids) for ids in ours}) == 3


async def engine_answers(model: Path, questions: tuple) -> list[list[int]]:
    engine = LocalEngine(EngineConfig(model, device="cpu"))
    await engine.start()
    answers = []
    for question in questions:
        audio = decoded([question])[question.id]
        sampling = SamplingParams(NUM_TOKENS)
        request = GenerateRequest(question.id, question.prompt, audio.waveform, audio.key, sampling)
        events = [event async for event in engine.generate(request)]
        answers.append([token for one in events if isinstance(one, Delta) for token in one.token_ids])
    await engine.stop()
    return answers


def test_every_row_of_a_batch_has_its_own_instructions_scale(script: Script) -> None:
    """Same clip, other scales: what a row is answered must be what its own scale alone gives."""
    (question,) = questions_of(script)[:1]
    (prepared,) = script.prepare(list(spoken([question]).values()))
    scales = [torch.zeros_like(prepared.scale), prepared.scale, torch.full_like(prepared.scale, 3.0)]
    rows = [Prepared(prepared.embeddings, scale) for scale in scales]
    alone = [answers_of(script, [row], batch=False)[0] for row in rows]
    assert answers_of(script, rows, batch=True) == alone
    assert len({tuple(ids) for ids in alone}) > 1


def test_a_model_whose_answers_may_end_early_is_refused(tmp_path: Path) -> None:
    make_tiny(tmp_path / "model")
    with pytest.raises(ValueError, match="suppress EOS"):
        Script(tmp_path / "model")


def test_padding_stands_on_the_left() -> None:
    padded, mask = pad_left([torch.ones(1, 2), 2 * torch.ones(3, 2)])
    assert padded[:, :, 0].tolist() == [[0, 0, 1], [2, 2, 2]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_spoken_questions_have_their_own_clip(script: Script) -> None:
    questions = questions_of(script)
    lengths = [len(one.waveform) for one in spoken(questions).values()]
    assert lengths == [8_000, 16_000, 32_000]
    assert isinstance(spoken(questions)[questions[0].id], Spoken)
