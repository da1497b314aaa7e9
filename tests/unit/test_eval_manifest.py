"""Manifests: the published layout is taken as it is; faults are found early and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.eval.manifest import csv_quoting, read_manifest
from server.eval.types import EvalError

HEADER = "id\taudio\tn_frames\tprompt\ttgt_text\twith_speech"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "audio" / name).write_bytes(b"RIFF")
    return tmp_path


def write(folder: Path, text: str, name: str = "asr.tsv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def faults(folder: Path, text: str, name: str = "asr.tsv", **options) -> list[str]:
    with pytest.raises(EvalError) as caught:
        read_manifest(write(folder, text, name), **options)
    return str(caught.value).splitlines()


def test_the_published_layout(folder: Path):
    # As published: any order of columns, paths from the authors' top, quotes as they are.
    text = (
        "id\taudio\tn_frames\ttgt_text\tprompt\twith_speech\torig_story\n"
        '0\tSpeechT5/WavLLM/test_data/audio/a.wav\t34560\tSie sagt "ja".\tTranslate the clip. \tTrue\t-\r\n'
        "0\taudio/b.wav\t111111\tNein\t\tTrue\t"
    )
    first, second = read_manifest(write(folder, text, "en2de.tsv"))
    assert (first.id, first.task, first.prompt) == ("0", "en2de", "Translate the clip. ")
    assert first.reference == 'Sie sagt "ja".'
    assert first.audio == folder / "audio/a.wav"
    assert (second.prompt, second.audio) == ("", folder / "audio/b.wav")
    assert first.key != second.key


def test_only_the_four_columns_are_needed(folder: Path):
    (row,) = read_manifest(write(folder, "id\taudio\tprompt\ttgt_text\nx\taudio/a.wav\tHi\tyes\n", "sv.tsv"))
    assert (row.id, row.task) == ("x", "sv")


def test_line_ends_of_windows(folder: Path):
    (row,) = read_manifest(
        write(folder, "id\taudio\tprompt\ttgt_text\r\nx\taudio/a.wav\tHi\tyes\r\n", "sv.tsv")
    )
    assert row.reference == "yes"


def test_the_task_is_the_columns_then_the_options_then_the_files(folder: Path):
    text = "id\taudio\tprompt\ttgt_text\ttask\n1\taudio/a.wav\tHi\tx\tEMO\n2\taudio/a.wav\tHi\tx\t\n"
    path = write(folder, text)
    assert [row.task for row in read_manifest(path)] == ["emo", "asr"]
    assert [row.task for row in read_manifest(path, task="sqqa")] == ["emo", "SQQA"]
    path.write_text(text.replace("\tx\t", "\tA\t"))
    assert [row.task for row in read_manifest(path, task="gaokao")] == ["emo", "SQA"]


def test_a_task_that_nobody_names(folder: Path):
    (fault,) = faults(folder, f"{HEADER}\n1\taudio/a.wav\t1\tHi\tx\tTrue\n", "data.tsv")
    assert fault.startswith("data.tsv line 2, column task:")
    assert "--task" in fault


def test_audio_is_looked_for_beside_the_manifest_then_under_the_root(folder: Path, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "audio").mkdir()
    for name in ("a.wav", "c.wav"):
        (root / "audio" / name).write_bytes(b"RIFF")
    names = ("audio/a.wav", "audio/c.wav", f"{root}/audio/a.wav")
    rows = "".join(f"1\t{name}\t1\tHi\tx\tTrue\n" for name in names)
    found = read_manifest(write(folder, f"{HEADER}\n{rows}"), audio_root=root)
    assert [row.audio for row in found] == [
        folder / "audio/a.wav",
        root / "audio/c.wav",
        root / "audio/a.wav",
    ]


def test_missing_audio_is_listed_by_name(folder: Path):
    rows = "".join(f"{n}\tnone/{n}.wav\t1\tHi\tx\tTrue\n" for n in range(25))
    found = faults(folder, f"{HEADER}\n{rows}")
    assert found[0] == "audio file not found: none/0.wav"
    assert len(found) == 21
    assert found[-1] == "... and 5 more"


def test_two_names_must_not_become_one_file(folder: Path):
    rows = "1\tx/audio/a.wav\t1\tHi\tx\tTrue\n2\ty/audio/a.wav\t1\tHi\tx\tTrue\n"
    (fault,) = faults(folder, f"{HEADER}\n{rows}")
    assert "x/audio/a.wav and y/audio/a.wav" in fault


@pytest.mark.parametrize("exact_first", [True, False])
def test_nor_a_shortened_name_the_file_of_a_whole_one(folder: Path, exact_first: bool):
    names = ["audio/a.wav", "x/audio/a.wav"] if exact_first else ["x/audio/a.wav", "audio/a.wav"]
    rows = "".join(f"{n}\t{name}\t1\tHi\tx\tTrue\n" for n, name in enumerate([*names, *names]))
    (fault,) = faults(folder, f"{HEADER}\n{rows}")
    assert f"{names[0]} and {names[1]}" in fault


def test_two_whole_names_of_one_file_are_fine(folder: Path):
    names = ("audio/a.wav", "./audio/a.wav", f"{folder}/audio/a.wav")
    rows = "".join(f"1\t{name}\t1\tHi\tx\tTrue\n" for name in names)
    assert len(read_manifest(write(folder, f"{HEADER}\n{rows}"))) == 3


def test_a_reference_that_no_choice_can_match(folder: Path):
    prompt = "Where? A. A school; B. A bank"
    row = "1\taudio/a.wav\t1\t{}\t{}\tTrue\n".format
    good = row(prompt, "B") + row(prompt, "a bank.") + row("Where?", "C") + row("Where?", "(D)")
    assert len(read_manifest(write(folder, f"{HEADER}\n{good}", "SQA.tsv"))) == 4
    bad = row("Where?", "ref number 0") + row(prompt, "A zoo") + row(prompt, "A or B")
    found = faults(folder, f"{HEADER}\n{good}{bad}", "SQA.tsv")
    assert [fault.split(":")[0] for fault in found] == [
        f"SQA.tsv line {number}, column tgt_text" for number in (6, 7, 8)
    ]
    assert "a task of free text" in found[0]
    path = write(folder, f"{HEADER}\n{bad}", "SQA.tsv")
    assert len(read_manifest(path, task="SQQA")) == 3
    assert len(read_manifest(path, is_scored=False)) == 3


def test_quoting_is_remarked_once(folder: Path):
    row = "{}\taudio/a.wav\t1\tHi\t{}\tTrue\n".format
    plain = row(1, '"Ja", sagte er, "ja"') + row(2, '"Ja"') + row(3, 'Er sagte ""ja""')
    assert csv_quoting(read_manifest(write(folder, f"{HEADER}\n{plain}"))) == ""
    quoted = row(4, '"Er sagte ""ja"""') + row(5, '"Er sagte ""ja"" laut"')
    rows = read_manifest(write(folder, f"{HEADER}\n{plain}{quoted}"))
    assert rows[3].reference == '"Er sagte ""ja"""'
    assert csv_quoting(rows).startswith("tgt_text of 2 rows (first: id 4) is")


def test_quoting_of_prompts_is_remarked_too(folder: Path):
    row = "{}\taudio/a.wav\t1\t{}\t{}\tTrue\n".format
    prompts = row(1, 'What is a "cat"?', "x") + row(2, '"What is a ""cat""?"', "x")
    rows = read_manifest(write(folder, f"{HEADER}\n{prompts}"))
    assert csv_quoting(rows).startswith("prompt of 1 rows (first: id 2) is")
    rows = read_manifest(write(folder, HEADER + "\n" + prompts + row(3, "Hi", '"Er sagte ""ja"""')))
    both = "prompt of 1 rows (first: id 2) and tgt_text of 1 rows (first: id 3) is"
    assert csv_quoting(rows).startswith(both)


def test_the_mark_of_a_row_changes_with_its_audio(folder: Path):
    path = write(folder, f"{HEADER}\n1\taudio/a.wav\t1\tHi\tx\tTrue\n")
    (before,) = read_manifest(path)
    assert read_manifest(path) == [before]
    (folder / "audio/a.wav").write_bytes(b"RIFF2")
    (after,) = read_manifest(path)
    assert after.key == before.key
    assert after.audio_mark != before.audio_mark


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (f"{HEADER}\n", "has no rows"),
        ("id\taudio\tprompt\n", "line 1: the tab-separated header lacks tgt_text"),
        ("id\tid\taudio\tprompt\ttgt_text\n", "line 1: the header names the column id twice"),
        (f"{HEADER}\tstart_frame\n", "line 1, column start_frame: parts of files"),
        (
            f"{HEADER}\n1\taudio/a.wav\t1\tHi\tx\n",
            "line 2, column tgt_text: the row has 5 columns, the header 6",
        ),
        (f"{HEADER}\n1\taudio/a.wav\t1\tHi\tx\tTrue\t\n", "line 2, column with_speech: the row has 7"),
        (f"{HEADER}\n\n1\taudio/a.wav\t1\tHi\t \tTrue\n", "line 3, column tgt_text: is empty"),
        (f"{HEADER}\n1\t\t1\tHi\tx\tTrue\n", "line 2, column audio: is empty"),
        (
            f"{HEADER}\n1\taudio/a.wav\t1\tHi\tx\tFalse\n",
            "line 2, column with_speech: only questions with audio",
        ),
    ],
)
def test_faults_name_line_and_column(folder: Path, text, words):
    (fault,) = faults(folder, text)
    assert words in fault
    assert "asr.tsv" in fault


def test_every_bad_row_is_told(folder: Path):
    found = faults(folder, f"{HEADER}\n\t\t1\tHi\tx\tTrue\n1\taudio/a.wav\t1\tHi\t\tTrue\n")
    assert found == [
        "asr.tsv line 2, column id: is empty",
        "asr.tsv line 2, column audio: is empty",
        "asr.tsv line 3, column tgt_text: is empty",
    ]


def test_bytes_that_are_not_text(folder: Path):
    path = folder / "asr.tsv"
    path.write_bytes(HEADER.encode() + b"\n1\taudio/a.wav\t1\tHi\t\xff\tTrue\n")
    with pytest.raises(EvalError, match=r"asr.tsv line 2: is not UTF-8"):
        read_manifest(path)
    with pytest.raises(EvalError, match="No such file"):
        read_manifest(folder / "none.tsv")


def test_keys_tell_rows_apart_and_stay(folder: Path):
    row = "1\taudio/a.wav\t1\tHi\tx\tTrue\n"
    keys = [r.key for r in read_manifest(write(folder, f"{HEADER}\n{row}{row}"))]
    assert len(set(keys)) == 2
    again = [
        r.key for r in read_manifest(write(folder, f"{HEADER}\n2\taudio/b.wav\t1\tHi\tx\tTrue\n{row}{row}"))
    ]
    assert again[1:] == keys
    (changed,) = read_manifest(write(folder, f"{HEADER}\n{row.replace('Hi', 'Ho')}"))
    assert changed.key not in keys
