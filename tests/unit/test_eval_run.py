"""Scores per task, the files of a run, resuming, and asking a server that is busy."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
from pathlib import Path

import httpx
import pytest
from test_cli import assert_one_line, run

from server.eval.answers import AnswerFile
from server.eval.ask import ask_all
from server.eval.normalizer import english_normalizer
from server.eval.over_http import MAX_WAIT_S, HttpAnswerer, ServedModel
from server.eval.plot import plot_confusion
from server.eval.report import make_report, write_report
from server.eval.run import check_extra
from server.eval.scoring import MAX_DRAWN
from server.eval.types import Answer, EvalError, Row

SETTINGS = {"source": "server", "model": "m", "max_tokens": 8}


def row(number: int, task: str = "asr", prompt: str = "Hi", reference: str = "x") -> Row:
    return Row(f"k{number}", str(number), task, prompt, reference, Path(__file__))


def report_of(task: str, *cases: tuple[str, str] | tuple[str, str, str]) -> dict:
    """The task's part of the report for (reference, answer[, prompt])."""
    rows = [row(n, task, *(case[2:] or ("Hi",)), case[0]) for n, case in enumerate(cases)]
    answers = {r.key: Answer(case[1], "stop", 1.0) for r, case in zip(rows, cases, strict=True)}
    report = make_report(rows, answers, english_normalizer(None), settings=SETTINGS, has_spelling=False)
    return report["tasks"][task]


def values(found: dict) -> dict[str, float | None]:
    return {name: metric["value"] for name, metric in found["metrics"].items()}


def test_asr_is_scored_on_normalised_text(tmp_path: Path):
    found = report_of("asr", ("Mr. Brown can't pay", "mister brown can not, um, pay!"), ("red hat", "red"))
    assert values(found)["wer"] == pytest.approx(1 / 7)
    spelling = tmp_path / "words.json"
    spelling.write_text('{"colour": "color"}')
    assert english_normalizer(spelling)("The Colour!") == "the color"
    assert english_normalizer(None)("The Colour!") == "the colour"
    spelling.write_text("[]")
    with pytest.raises(EvalError, match="--spelling"):
        english_normalizer(spelling)


def test_accuracy_is_told_over_all_and_over_the_followed():
    found = report_of(
        "emo", ("sad", "sorrow"), ("happy", "angry"), ("happy", "joyful"), ("angry", "a dog barks")
    )
    assert values(found) == {
        "accuracy": 0.5,
        "accuracy_followed": pytest.approx(2 / 3, abs=1e-6),
        "instruction_following": 0.75,
    }
    assert found["confusion"] == {
        "labels": ["angry", "happy", "sad"],
        "columns": ["angry", "happy", "sad", "(none)"],
        "counts": [[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]],
    }


def test_choices_and_speakers_are_scored_by_their_prompts():
    prompt = "Who? A. Ann; B. Bob; C. Cid"
    found = report_of(
        "SQA", ("A", "Ann", prompt), ("Bob", "(B)", prompt), ("C", "Ann", prompt), ("C", "Eve", prompt)
    )
    assert values(found)["accuracy"] == 0.5
    assert values(found)["instruction_following"] == 0.75
    found = report_of("sv", ("Yes", "one", "Is it one speaker?"), ("No", "Two.", "Is it one speaker?"))
    assert values(found)["accuracy"] == 1


def test_counting_and_yes_or_no_questions_may_stand_in_one_manifest():
    found = report_of(
        "sv",
        ("Two", "Two.", "How many speakers?"),
        ("No", "No.", "More than one?"),
        ("One", "Two", "Count them."),
    )
    assert values(found)["accuracy"] == pytest.approx(2 / 3, abs=1e-6)


def test_several_instructions():
    prompt = "First, transcribe; Then translate."
    found = report_of(
        "CoT-task", ("Drei Filme", "Three films; Drei Filme!", prompt), ("Drei Filme", "Drei Filme", prompt)
    )
    assert values(found) == {
        "instruction_following": 0.5,
        "exact_match": 1,
        "chrf_last_part": pytest.approx(94, abs=6),
    }
    labels = report_of("II-task", ("ASR+SQA", "one\ntwo", prompt), ("ASR+SQA", "", prompt))
    assert values(labels) == {"instruction_following": 0.5}


def test_unknown_tasks_and_translations():
    assert set(values(report_of("mine", ("a", "A.")))) == {
        "exact_match",
        "token_f1",
        "chrf",
        "instruction_following",
    }
    found = report_of("en2de", ("Sie wird kommen, heute.", "Sie wird kommen, heute."))
    assert values(found)["bleu"] == pytest.approx(100)
    assert "tok:13a" in found["signatures"]["bleu"]
    assert "tok:zh" in report_of("en2zh", ("好", "好"))["signatures"]["bleu"]


def test_the_files_of_a_report(tmp_path: Path):
    rows = [row(0, "emo", reference="sad"), row(1, "my/task"), row(2)]
    answers = {"k0": Answer("sad"), "k1": Answer("x", "length"), "k2": Answer(error="503: full")}
    report = make_report(rows, answers, english_normalizer(None), settings=SETTINGS, has_spelling=False)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "confusion-emo.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion-emo.png",
        "report.json",
        "report.md",
    ]
    assert report["num_errors"] == 1
    assert report["tasks"]["asr"]["metrics"] == {}
    assert report["tasks"]["my/task"]["num_cut_short"] == 1
    table = (tmp_path / "report.md").read_text()
    assert "| emo | 1 | accuracy | 100.00 % | 100.00 to 100.00 |" in table
    assert "1 failed" in table


def test_a_matrix_of_many_classes_is_not_drawn(tmp_path: Path):
    for num in (MAX_DRAWN - 1, MAX_DRAWN):  # one column is that of no answer
        rows = [row(n, "emo", reference=f"mood{n}") for n in range(num)]
        answers = {r.key: Answer(r.reference, "stop") for r in rows}
        report = make_report(rows, answers, english_normalizer(None), settings=SETTINGS, has_spelling=False)
        write_report(report, tmp_path)
        is_drawn = num < MAX_DRAWN
        assert (tmp_path / "confusion-emo.png").exists() == is_drawn
        assert ("emo: no picture" in (tmp_path / "report.md").read_text()) != is_drawn
    with pytest.raises(ValueError, match="40"):
        plot_confusion(report["tasks"]["emo"]["confusion"], "", tmp_path / "x.png")


def open_answers(folder: Path, rows: list[Row], settings=SETTINGS, **options) -> dict[str, Answer]:
    with AnswerFile(folder, settings, rows, **options) as file:
        file.begin(random_weights=False)
        return dict(file.answers)


def answer_first(folder: Path, answer: Answer | None = None, asked: Row | None = None) -> None:
    asked = asked or row(0)
    with AnswerFile(folder, SETTINGS, [asked]) as file:
        file.begin(random_weights=False)
        file.add(asked, answer or Answer("a"))


def test_answers_are_found_again(tmp_path: Path):
    said = Answer("a\u2028b\x85 ö\n", "stop", 1.5)
    with AnswerFile(tmp_path, SETTINGS, [row(0), row(1)]) as file:
        file.begin(random_weights=False)
        file.add(row(0), Answer(error="503: full"))
        file.add(row(0), said)
        with pytest.raises(EvalError, match="another run is writing"):
            AnswerFile(tmp_path, SETTINGS, [row(0)])
    assert open_answers(tmp_path, [row(0), row(1)]) == {"k0": said}
    assert json.loads((tmp_path / "answers.jsonl").read_text().split("\n")[1]) == {
        "row": "k0",
        "id": "0",
        "task": "asr",
        "prompt": "Hi",
        "reference": "x",
        "audio": "",
        "answer": said.text,
        "finish_reason": "stop",
        "latency_ms": 1.5,
        "error": None,
    }


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path: Path, monkeypatch):
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("server.eval.answers.fcntl.flock", no_locks)
    with pytest.raises(EvalError, match="cannot lock: No locks available; use --output on another"):
        AnswerFile(tmp_path, SETTINGS, [row(0)])


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path):
    with AnswerFile(tmp_path, SETTINGS, [row(0)]) as file:
        file.begin(random_weights=False)
        file.add(row(0), Answer("ä"))
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-7])
    with AnswerFile(tmp_path, SETTINGS, [row(0)]) as file:
        assert file.answers == {"k0": Answer("ä")}
        file.add(row(0), Answer("new"))
    assert open_answers(tmp_path, [row(0)]) == {"k0": Answer("new")}


def test_other_settings_or_rows_are_refused_unless_overwritten(tmp_path: Path):
    answer_first(tmp_path)
    (tmp_path / "confusion-emo.png").write_bytes(b"")
    with pytest.raises(EvalError, match=r"max_tokens was 8 and is now 9; .*--overwrite"):
        open_answers(tmp_path, [row(0)], {**SETTINGS, "max_tokens": 9})
    with pytest.raises(EvalError, match=r"line 1 answers a row that the manifest does not have"):
        open_answers(tmp_path, [row(1)])
    assert open_answers(tmp_path, [row(0), row(1)]) == {"k0": Answer("a")}
    assert open_answers(tmp_path, [row(1)], {"model": "n"}, overwrite=True) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "run.json"]


def test_without_answers_settings_may_change(tmp_path: Path):
    open_answers(tmp_path, [row(0)])
    (tmp_path / "run.json").write_text('{"source"')
    other = {**SETTINGS, "max_tokens": 9}
    assert open_answers(tmp_path, [row(1)], other) == {}
    assert json.loads((tmp_path / "run.json").read_text()) == {**other, "random_weights": False}


def test_settings_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    open_answers(tmp_path, [row(0)])
    before = (tmp_path / "run.json").read_text()
    monkeypatch.setattr("server.eval.answers.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_answers(tmp_path, [row(0)], {**SETTINGS, "max_tokens": 9})
    assert (tmp_path / "run.json").read_text() == before


def test_old_answers_stay_until_somebody_can_answer(tmp_path: Path):
    answer_first(tmp_path)
    with AnswerFile(tmp_path, {"model": "n"}, [row(0)], overwrite=True) as file:
        assert file.answers == {}  # the model is loaded now, and that fails
    assert open_answers(tmp_path, [row(0)]) == {"k0": Answer("a")}


def test_another_audio_file_is_refused(tmp_path: Path):
    first, changed = (dataclasses.replace(row(0), audio_mark=mark) for mark in ("1@1", "1@2"))
    answer_first(tmp_path, asked=first)
    assert open_answers(tmp_path, [first]) == {"k0": Answer("a")}
    with pytest.raises(EvalError, match="row 0 was answered from another audio file"):
        open_answers(tmp_path, [changed])
    lines = (tmp_path / "answers.jsonl").read_text()
    (tmp_path / "answers.jsonl").write_text(lines.replace('"audio": "1@1", ', ""))
    assert open_answers(tmp_path, [changed]) == {"k0": Answer("a")}, "as written before there was a mark"


def test_a_question_that_failed_may_get_another_audio_file(tmp_path: Path):
    first, mended = (dataclasses.replace(row(0), audio_mark=mark) for mark in ("1@1", "1@2"))
    answer_first(tmp_path, Answer(error="415: no audio"), first)
    with AnswerFile(tmp_path, SETTINGS, [mended]) as file:
        file.begin(random_weights=False)
        file.add(mended, Answer("a"))
    assert open_answers(tmp_path, [mended]) == {"k0": Answer("a")}


def test_random_weights_are_kept_with_the_run_but_refuse_none(tmp_path: Path):
    answer_first(tmp_path)
    with AnswerFile(tmp_path, SETTINGS, [row(0)]) as file:
        file.begin(random_weights=True)
    with AnswerFile(tmp_path, SETTINGS, [row(0)]) as file:
        assert file.settings == {**SETTINGS, "random_weights": True}


@pytest.mark.parametrize("content", ["nonsense\n", '{"row": "k0"}\n', "[]\n"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: str):
    open_answers(tmp_path, [row(0)])
    (tmp_path / "answers.jsonl").write_text(content)
    with pytest.raises(EvalError, match="line 1 is not an answer"):
        open_answers(tmp_path, [row(0)])
    (tmp_path / "run.json").unlink()
    with pytest.raises(EvalError, match=r"run.json cannot be read"):
        open_answers(tmp_path, [row(0)])


class SlowAnswerer:
    """Answers after a moment; counts how many it is asked at once."""

    def __init__(self, fatal: str | None = None) -> None:
        self.fatal = fatal
        self.running = self.most = 0
        self.asked: list[str] = []

    async def answer(self, row: Row) -> Answer:
        self.asked.append(row.id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.running -= 1
        if row.id == self.fatal:
            raise EvalError("gone")
        return Answer(row.id)


async def test_each_row_is_asked_once_and_so_many_at_a_time():
    answerer, recorded = SlowAnswerer(), {}
    await ask_all([row(n) for n in range(20)], answerer, 3, lambda r, a: recorded.update({r.id: a.text}))
    assert sorted(answerer.asked, key=int) == [str(n) for n in range(20)]
    assert recorded == {str(n): str(n) for n in range(20)}
    assert answerer.most == 3
    await ask_all([], answerer, 3, lambda r, a: None)


async def test_a_fatal_error_ends_all_and_leaves_nothing_running():
    answerer = SlowAnswerer(fatal="5")
    with pytest.raises(EvalError, match="gone"):
        await ask_all([row(n) for n in range(100)], answerer, 3, lambda r, a: None)
    assert answerer.running == 0
    assert len(answerer.asked) < 12


GOOD = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}


def error(message: str, param: str | None = None) -> dict:
    return {"error": {"message": message, "type": "t", "param": param, "code": "c"}}


class Replies:
    """A server that says these things in turn (an exception is raised), and what it was asked."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def answerer(self) -> HttpAnswerer:
        transport = httpx.MockTransport(self)
        return HttpAnswerer("http://x/", "sesame", 8, transport=transport, pause=self.pause)

    async def answer(self) -> Answer:
        answerer = self.answerer()
        try:
            return await answerer.answer(row(0, prompt=" Was sagt man? "))
        finally:
            await answerer.aclose()


async def test_what_is_sent():
    replies = Replies(httpx.Response(200, json=GOOD))
    answer = await replies.answer()
    assert (answer.text, answer.finish_reason, answer.error) == ("hello", "stop", None)
    (request,) = replies.requests
    assert request.headers["authorization"] == "Bearer sesame"
    assert request.url == "http://x/v1/speech/chat"
    assert b'name="prompt"\r\n\r\n Was sagt man? \r\n' in request.content
    assert b'name="max_tokens"\r\n\r\n8\r\n' in request.content


async def test_a_busy_server_is_asked_again_when_it_says_so():
    busy = [httpx.Response(503, headers={"retry-after": "7"}), httpx.Response(429), httpx.Response(503)]
    replies = Replies(*busy, httpx.Response(200, json=GOOD))
    assert (await replies.answer()).text == "hello"
    assert replies.pauses == [7, 1, 2]


async def test_patience_ends():
    replies = Replies(httpx.Response(503, headers={"retry-after": "100"}, json=error("full")))
    assert await replies.answer() == Answer(error="503: full")
    assert sum(replies.pauses) == MAX_WAIT_S


async def test_a_deadline_is_tried_again_but_another_gateways_is_not():
    late = httpx.Response(504, json={"error": {"message": "late", "code": "deadline_exceeded"}})
    replies = Replies(late, late, httpx.Response(200, json=GOOD))
    assert (await replies.answer()).text == "hello"
    replies = Replies(late)
    assert await replies.answer() == Answer(error="504: late")
    assert MAX_WAIT_S <= sum(replies.pauses) < 2 * MAX_WAIT_S
    replies = Replies(httpx.Response(504, json=error("proxy")))
    assert await replies.answer() == Answer(error="504: proxy")
    assert replies.pauses == []


async def test_a_server_that_stays_unavailable_ends_the_run():
    gone = httpx.Response(503, headers={"retry-after": "6000"}, json=error("down"))
    twice = [gone] * 4
    replies = Replies(*twice, httpx.Response(200, json=GOOD), *twice, gone)
    answerer = replies.answerer()
    answers = [await answerer.answer(row(n)) for n in range(5)]
    assert [answer.error for answer in answers] == ["503: down", "503: down", None, "503: down", "503: down"]
    with pytest.raises(EvalError, match="503: down"):
        await answerer.answer(row(5))
    await answerer.aclose()
    assert max(replies.pauses) == MAX_WAIT_S


async def test_a_bad_clip_fails_its_own_row_and_a_bad_key_all():
    assert await Replies(httpx.Response(400, json=error("too long", "audio"))).answer() == Answer(
        error="400: too long"
    )
    assert (await Replies(httpx.Response(200, text="?")).answer()).error
    assert (await Replies(httpx.ReadError("cut")).answer()).error
    for fatal in (httpx.Response(401, json=error("no")), httpx.Response(400, json=error("no", "max_tokens"))):
        with pytest.raises(EvalError, match="no"):
            await Replies(fatal).answer()


async def test_a_server_that_stays_away_ends_the_run():
    replies = Replies(httpx.ConnectError("refused"), httpx.Response(200, json=GOOD))
    assert (await replies.answer()).text == "hello"
    replies = Replies(httpx.ConnectError("refused"))
    with pytest.raises(EvalError, match="cannot connect"):
        await replies.answer()
    assert len(replies.requests) == 5


async def test_something_else_at_the_address():
    answerer = Replies(httpx.Response(200, json={"hello": 1})).answerer()
    with pytest.raises(EvalError, match="WavLLM"):
        await answerer.served_model()
    await answerer.aclose()


async def served(replies: Replies, said: list[str]) -> ServedModel:
    answerer = replies.answerer()
    try:
        return await answerer.served_model(lambda done, total, what: said.append(f"{done}/{total} {what}"))
    finally:
        await answerer.aclose()


async def test_what_a_server_says_of_its_model():
    entry = {"id": "m", "fingerprint": "m@1", "random_weights": True}
    replies = Replies(httpx.Response(200, json={"data": [entry]}))
    assert await served(replies, []) == ServedModel("m", "m@1", True)
    replies = Replies(httpx.Response(200, json={"data": [{"id": "m"}]}))
    assert await served(replies, []) == ServedModel("m", None, False)


async def test_a_server_that_loads_is_waited_for():
    loads = httpx.Response(503, headers={"retry-after": "100"}, json=error("loading"))
    said: list[str] = []
    replies = Replies(loads, loads, httpx.Response(200, json={"data": [{"id": "m"}]}))
    assert (await served(replies, said)).name == "m"
    assert said == ["0/600 waiting for it: loading", "100/600 waiting for it: loading"]
    replies = Replies(loads)
    with pytest.raises(EvalError, match="503: loading"):
        await served(replies, [])
    assert sum(replies.pauses) == MAX_WAIT_S
    with pytest.raises(EvalError, match="503: down"):
        await served(Replies(httpx.Response(503, json=error("down"))), [])


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    check_extra()
    monkeypatch.setattr("server.eval.run.EXTRA", ("json", "no_such_library"))
    with pytest.raises(EvalError, match=r"no_such_library: run `pip install -e '\.\[eval\]'`"):
        check_extra()


def test_wrong_calls_are_one_line(tmp_path: Path):
    manifest = tmp_path / "asr.tsv"
    manifest.write_text("id\taudio\n")
    assert_one_line(run("eval", str(manifest), "--server=x.org"), 2, "--server", "http://")
    assert_one_line(run("eval", str(manifest), "--server=http://[::1"), 2, "--server", "no address")
    assert_one_line(run("eval", str(manifest), "--server=http://x", "--dtype=auto"), 2, "--dtype", "--server")
    assert_one_line(run("eval", str(manifest), "--api-key=x"), 2, "--api-key", "--server")
    assert_one_line(run("eval", str(manifest), f"--model={tmp_path}"), 1, "config.json")
    done = run("eval", str(manifest), "--server=http://127.0.0.1:9")
    assert_one_line(done, 1, "asr.tsv line 1", "prompt")
    assert os.listdir(tmp_path) == ["asr.tsv"]
