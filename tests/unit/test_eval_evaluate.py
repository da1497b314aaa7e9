"""Whole evaluations with somebody else's answers: what is kept, refused and told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.eval import in_process, over_http
from server.eval.run import Outcome, Plan, evaluate
from server.eval.types import Answer, EvalError, Progress, Row

ENTRY = {"id": "m", "fingerprint": "m@1", "random_weights": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "model").mkdir()
    row = '1\ta.wav\tHi\t"Er sagte ""ja"""\n'
    (tmp_path / "SQQA.tsv").write_text("id\taudio\tprompt\ttgt_text\n" + row)
    return tmp_path


class FakeModel:
    """Stands for `LocalAnswerer`."""

    fails = False
    has_random_weights = True

    def __init__(self, *args: object) -> None:
        pass

    async def start(self) -> None:
        if self.fails:
            raise EvalError("does not load")

    async def aclose(self) -> None:
        pass

    async def answer(self, row: Row) -> Answer:
        return Answer("ja", "stop")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> type[FakeModel]:
    class Fresh(FakeModel):
        pass

    monkeypatch.setattr(in_process, "LocalAnswerer", Fresh)
    return Fresh


class FakeServer:
    """Serves one model and answers with its fingerprint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entry: dict[str, object] = dict(ENTRY)
        made = over_http.HttpAnswerer
        transport = httpx.MockTransport(self.reply)
        monkeypatch.setattr(over_http, "HttpAnswerer", lambda *args: made(*args, transport=transport))

    def reply(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [self.entry]})
        message = {"content": str(self.entry.get("fingerprint"))}
        return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}]})


@contextlib.contextmanager
def bar(title: str) -> Iterator[Progress]:
    yield lambda done, total, what: None


async def run(folder: Path, said: list[str] | None = None, **options: object) -> Outcome:
    fixed = dict.fromkeys(("server", "api_key", "task", "audio_root", "limit", "spelling"))
    paths = {"manifest": folder / "SQQA.tsv", "model": folder / "model", "output": folder / "out"}
    how = {"device": "cpu", "dtype": "float32", "concurrency": 2, "max_tokens": 8, "overwrite": False}
    plan = Plan(**{**fixed, **paths, **how, **options})  # type: ignore[arg-type]
    return await evaluate(plan, bar, (said if said is not None else []).append)



def kept(folder: Path) -> str:
    return (folder / "out" / "answers.jsonl").read_text()


async def test_overwriting_waits_until_the_model_has_loaded(folder: Path, model: type[FakeModel]):
    await run(folder)
    before = kept(folder)
    model.fails = True
    with pytest.raises(EvalError, match="does not load"):
        await run(folder, overwrite=True)
    assert kept(folder) == before
    assert (folder / "out" / "report.md").exists()
    await run(folder)  # only reported again
    assert kept(folder) == before


async def test_overwriting_waits_until_the_server_has_answered(folder: Path, monkeypatch: pytest.MonkeyPatch):
    server = FakeServer(monkeypatch)
    await run(folder, server="http://x")
    before = kept(folder)
    server.entry = {}
    with pytest.raises(EvalError, match="WavLLM"):
        await run(folder, server="http://x", overwrite=True)
    assert kept(folder) == before


@pytest.mark.parametrize("is_random", [True, False])
async def test_random_weights_are_told_and_told_again(folder: Path, model: type[FakeModel], is_random: bool):
    model.has_random_weights = is_random
    for _ in range(2):  # the second one loads no model
        outcome = await run(folder)
        assert ("random" in outcome.remark) == is_random
        report = json.loads((folder / "out" / "report.json").read_text())
        assert report["settings"]["random_weights"] is is_random
        assert f"- random_weights: {is_random}" in (folder / "out" / "report.md").read_text()
        model.fails = True


async def test_a_server_tells_random_weights_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    FakeServer(monkeypatch).entry["random_weights"] = True
    outcome = await run(folder, server="http://x")
    assert "random" in outcome.remark
    assert outcome.report["settings"]["random_weights"] is True


async def test_another_checkpoint_under_the_same_name_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    server = FakeServer(monkeypatch)
    await run(folder, server="http://x")
    server.entry["fingerprint"] = "m@2"
    with pytest.raises(EvalError, match="fingerprint was 'm@1' and is now 'm@2'"):
        await run(folder, server="http://x")


async def test_a_server_without_a_fingerprint_goes_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    server = FakeServer(monkeypatch)
    server.entry = {"id": "m"}
    await run(folder, server="http://x")
    before = kept(folder)
    await run(folder, server="http://x")
    assert kept(folder) == before
    server.entry = {"id": "n"}
    with pytest.raises(EvalError, match="model was 'm' and is now 'n'"):
        await run(folder, server="http://x")


async def test_the_report_says_where_the_rows_come_from(folder: Path, model: type[FakeModel]):
    await run(folder)
    moved = (folder / "SQQA.tsv").rename(folder / "other_SQQA.tsv")
    outcome = await run(folder, manifest=moved, audio_root=folder)
    settings = outcome.report["settings"]
    assert (settings["manifest"], settings["audio_root"]) == (str(moved), str(folder))
    assert f"- manifest: {moved}" in (folder / "out" / "report.md").read_text()
    assert "manifest" not in json.loads((folder / "out" / "run.json").read_text())


async def test_quoting_is_warned_of_once(folder: Path, model: type[FakeModel]):
    said: list[str] = []
    await run(folder, said)
    assert len(said) == 1
    assert "tgt_text" in said[0]
