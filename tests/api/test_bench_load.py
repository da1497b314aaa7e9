"""The load generator against a server whose delays, refusals and failures are known.

Lower bounds are exact, for a sleep is never short. Upper bounds leave room for a busy machine with few cores.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bench_harness import Request, Script, plan_of, questions_of, run_bench, scripted, silent_bar

from server.bench.alone import PAUSES_S, ask_alone
from server.bench.client import HttpAsker
from server.bench.figures import row_figures
from server.bench.load import Offer
from server.bench.run import bench
from server.bench.types import Api, Arrival, BenchError, Exchange, Outcome, Piece, Question, ReferenceTime

TEXT = "One two thrée"
APIS = pytest.mark.parametrize("api", list(Api))


def row_of(results: dict) -> dict:
    (row,) = results["rows"]
    return row


@APIS
async def test_known_delays_are_the_figures(tmp_path: Path, api: Api):
    script = Script(wait_s=0.2, gap_s=0.4)
    async with scripted(script) as server:
        results = await run_bench(server, tmp_path, api=api, rates=(5.0,), num_requests=10)
    row = row_of(results)
    assert row["requests"] == {"sent": 10, "ok": 10, "failed": 0, "rejected": 0, "cancelled": 0}
    assert 200 <= row["ttft_ms"]["p50"] < 400
    assert 300 <= row["itl_ms"]["p50"] < 500
    assert 300 <= row["tpot_ms"]["p50"] < 500
    assert 1000 <= row["e2e_ms"]["p50"] < 1400
    assert row["throughput"]["output_tokens"] == 30
    assert row["throughput"]["audio_seconds"] == 5
    assert row["agreement"]["equal"] == row["agreement"]["compared"] == 10
    assert row["agreement"]["by"] == ("token_ids" if api is Api.SPEECH else "text")
    assert results["is_complete"]
    assert results["schema"] == "wavllm.bench/1"


@APIS
async def test_several_tokens_in_a_delta_are_all_counted(tmp_path: Path, api: Api):
    script = Script(pieces=("a", "b", "c"), sizes=(1, 4, 4), gap_s=0.4)
    async with scripted(script) as server:
        results = await run_bench(server, tmp_path, api=api, num_requests=4)
    row = row_of(results)
    assert row["throughput"]["output_tokens"] == 36
    assert 75 <= row["itl_ms"]["p50"] < 150
    assert 75 <= row["tpot_ms"]["p50"] < 150


async def test_what_is_sent(tmp_path: Path):
    async with scripted(Script()) as server:
        await run_bench(server, tmp_path, api_key="sesame", num_requests=1, model="mine")
        openai = replace(plan_of(server.url, tmp_path), api=Api.OPENAI, output=tmp_path / "o", num_requests=1)
        await bench(openai, silent_bar)
    speech, chat = server.requests[0], server.requests[-1]
    assert speech.path == "/v1/speech/chat"
    assert speech.headers["authorization"] == "Bearer sesame"
    for name, value in (("prompt", "What is said?"), ("max_tokens", "64"), ("return_token_ids", "true")):
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in speech.body
    assert b'name="model"\r\n\r\nmine\r\n' in speech.body
    clip = (tmp_path / "tone.wav").read_bytes()
    assert clip in speech.body
    body = json.loads(chat.body)
    assert chat.path == "/v1/chat/completions"
    assert (body["model"], body["stream"], body["temperature"]) == ("scripted", True, 0)
    assert body["stream_options"] == {"include_usage": True}
    text, audio = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is said?"}
    assert base64.b64decode(audio["input_audio"]["data"]) == clip
    assert audio["input_audio"]["format"] == "wav"


async def test_a_stall_shows_in_what_was_due_meanwhile(tmp_path: Path):
    """One request takes a second while forty more fall due: a closed loop would see one slow request."""

    def script(request: Request) -> Script:
        return Script(wait_s=1.0 if request.number == 20 else 0.0)

    async with scripted(script) as server:
        results = await run_bench(server, tmp_path, rates=(40.0,), num_requests=80, max_concurrency=1)
    row = row_of(results)
    assert row["requests"]["ok"] == 80
    assert server.most_running == 1
    assert row["e2e_ms"]["p99"] >= 900
    assert row["e2e_ms"]["p95"] >= 700
    assert row["hold_ms"]["p95"] >= 700
    assert row["from_send"]["e2e_ms"]["p95"] < 500


async def test_requests_do_not_wait_for_answers(tmp_path: Path):
    async with scripted(Script(wait_s=1.5)) as server:
        results = await run_bench(server, tmp_path, rates=(100.0,), num_requests=30)
    assert server.most_running >= 20
    assert row_of(results)["e2e_ms"]["p50"] >= 1500


async def test_in_flight_at_most(tmp_path: Path):
    async with scripted(Script(wait_s=0.05)) as server:
        results = await run_bench(server, tmp_path, max_concurrency=3, num_requests=12)
    assert server.most_running == 3
    hold = row_of(results)["hold_ms"]
    assert hold["count"] == 12
    assert hold["max"] >= 140


async def test_refusals_are_counted_by_status_and_code(tmp_path: Path):
    refusals = {
        1: Script(503),
        2: Script(429, "rate_limited"),
        3: Script(413, "payload_too_large", wait_s=0.1),
    }

    async with scripted(lambda request: refusals.get(request.number % 5, Script())) as server:
        results = await run_bench(server, tmp_path, num_requests=20)
    row = row_of(results)
    assert row["requests"] == {"sent": 20, "ok": 8, "failed": 0, "rejected": 12, "cancelled": 0}
    assert {status: found["count"] for status, found in row["rejections"].items()} == {
        "413": 4,
        "429": 4,
        "503": 4,
    }
    assert row["rejections"]["429"]["codes"] == {"rate_limited": 4}
    assert row["rejections"]["413"]["latency_ms"]["p50"] >= 100
    assert row["e2e_ms"]["count"] == 8


async def test_every_kind_of_failure_is_one(tmp_path: Path):
    kinds = [
        Script(),
        Script(end="cut"),
        Script(end="early"),
        Script(end="error"),
        Script(end="nonsense"),
        Script(end="hang"),
        Script(status=0),
        Script(500, "internal_error"),
    ]

    async with scripted(lambda request: kinds[request.number % 8]) as server:
        results = await run_bench(server, tmp_path, num_requests=24, timeout_s=3.0)
    row = row_of(results)
    assert row["requests"] == {"sent": 24, "ok": 3, "failed": 21, "rejected": 0, "cancelled": 0}
    counted = {kind: found["count"] for kind, found in row["failures"].items()}
    # The connection that is dropped inside a chunked body is as much a broken connection as one before it.
    assert counted == {
        "connection": 6,
        "cut": 3,
        "engine_error": 3,
        "internal_error": 3,
        "malformed": 3,
        "timeout": 3,
    }
    assert row["failures"]["internal_error"]["status"] == 500
    assert row["failures"]["timeout"]["latency_ms"]["p50"] >= 3000


async def test_clients_that_leave_are_told_apart(tmp_path: Path):
    pieces = tuple("abcdefghij")
    async with scripted(Script(pieces=pieces, gap_s=0.02)) as server:
        results = await run_bench(server, tmp_path, num_requests=30, cancel_share=0.5)
        await asyncio.sleep(0.3)  # until the server has tried to go on
    row = row_of(results)
    shares = row["requests"]
    assert shares["ok"] + shares["cancelled"] == shares["sent"] == 30
    assert 8 <= shares["cancelled"] <= 22
    assert row["cancellations"]["count"] == shares["cancelled"]
    assert 0 < row["cancellations"]["characters"] < 10 * shares["cancelled"]
    assert row["agreement"]["compared"] == row["e2e_ms"]["count"] == shares["ok"]
    assert server.num_left >= shares["cancelled"] / 2  # those who left late are not noticed by every write


async def test_answers_that_differ_under_load_are_listed(tmp_path: Path):
    def script(request: Request) -> Script:
        return Script(pieces=("One", " too")) if request.number == 5 else Script()

    async with scripted(script) as server:
        results = await run_bench(server, tmp_path)
    found = row_of(results)["agreement"]
    assert (found["compared"], found["equal"], found["share"]) == (10, 9, 0.9)
    (difference,) = found["differing"]
    assert (difference["alone"], difference["answer"]) == (TEXT, "One too")
    assert difference["common"] == 2  # the scripted ids tell only a piece's first letter
    assert results["questions"][0]["alone"]["text"] == TEXT


async def test_each_question_is_asked_alone_first_or_last_or_never(tmp_path: Path):
    for when, asked in (("before", 5), ("after", 5), ("none", 3)):
        folder = tmp_path / when
        folder.mkdir()
        async with scripted(Script(wait_s=0.3)) as server:
            changes = {"prompts": ("a", "b"), "num_requests": 3, "reference": ReferenceTime(when)}
            results = await run_bench(server, folder, **changes)
        assert len(server.requests) == asked
        row = row_of(results)
        assert (row["agreement"] is None) == (when == "none")
        assert (results["reference"] is None) == (when == "none")
        assert server.most_running == 3


async def test_what_no_load_asks_is_not_asked_alone(tmp_path: Path):
    prompts = tuple(f"Ask {n}." for n in range(40))
    async with scripted(Script()) as server:
        changes = {"rates": (50.0, float("inf")), "prompts": prompts, "num_requests": 3, "num_warmup": 2}
        results = await run_bench(server, tmp_path, **changes)
    assert len(server.requests) == 5 + 5 + 3  # alone, the warm-up's too, and twice under load
    assert {question["prompt"] for question in results["questions"]} <= set(prompts)
    alone = {question["id"] for question in results["questions"]}
    assert len(alone) == 5
    asked = {record["question"] for row in results["rows"] for record in row["records"]}
    assert asked <= alone
    assert [row["agreement"]["compared"] for row in results["rows"]] == [3, 3]
    assert "the load asks 5 of 40 questions, and so does the reference" in results["remarks"]


async def test_a_rate_without_a_measured_request_is_refused_before_anything(tmp_path: Path):
    async with scripted(Script()) as server:
        for changes in ({"duration_s": 0.5, "num_warmup": 4}, {"duration_s": 0.001, "num_warmup": 0}):
            with pytest.raises(BenchError, match=r"rate 2: .*--duration .*--warmup"):
                await run_bench(server, tmp_path, rates=(20000.0, 2.0), **changes)
    assert server.requests == []
    assert not (tmp_path / "results").exists()


async def test_a_sweep_is_a_row_for_each_rate_and_files(tmp_path: Path):
    async with scripted(Script()) as server:
        changes = {"rates": (30.0, 60.0, float("inf")), "num_warmup": 2, "slos_ms": {"e2e": 5000.0}}
        results = await run_bench(server, tmp_path, **changes)
    assert [row["request_rate"] for row in results["rows"]] == [30.0, 60.0, "inf"]
    assert [row["num_warmup"] for row in results["rows"]] == [2, 2, 0]
    assert [row["requests"]["sent"] for row in results["rows"]] == [10, 10, 10]
    assert [row["goodput"]["share"] for row in results["rows"]] == [1, 1, 1]
    assert len(server.requests) == 1 + 12 + 12 + 10
    folder = tmp_path / "results"
    assert sorted(path.name for path in folder.iterdir()) == ["latency.png", "results.json", "table.md"]
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BenchError, match="holds results already"):
        await bench(plan_of(server.url, tmp_path), silent_bar)


async def test_an_interrupted_sweep_keeps_what_was_finished(tmp_path: Path):
    def script(request: Request) -> Script:
        return Script(end="hang" if request.number > 10 else "done")

    async with scripted(script) as server:
        running = asyncio.create_task(run_bench(server, tmp_path, rates=(100.0, float("inf"))))
        while len(server.requests) < 12:
            assert not running.done()
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert not results["is_complete"]
    assert [row["request_rate"] for row in results["rows"]] == [100.0]


async def test_results_that_cannot_be_kept_are_not_measured(tmp_path: Path):
    (tmp_path / "results").write_text("a file where the directory should be")
    async with scripted(Script()) as server:
        with pytest.raises(FileExistsError):
            await run_bench(server, tmp_path)
    assert server.requests == []


async def test_connections_are_used_again(tmp_path: Path):
    async with scripted(Script()) as server:
        await run_bench(server, tmp_path, max_concurrency=1)
    assert len(server.requests) == 11
    assert server.num_connections <= 3  # one for what the server is, one for all questions


class BlockingAsker:
    """Computes where it should wait."""

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        time.sleep(0.03)
        now = time.perf_counter()
        return Exchange(Outcome.OK, now, (Piece(now, "x", (1,)),), finish_reason="stop")


async def test_a_generator_that_cannot_keep_up_says_so(tmp_path: Path):
    questions = questions_of(1)
    arrivals = [Arrival(n, n / 200, 0) for n in range(30)]
    load = await Offer(BlockingAsker(), questions, [None], None, lambda record: None).run(200.0, arrivals)
    client = row_figures(load, questions, [None], {})["client"]
    assert client["is_saturated"]
    assert client["schedule_lag_ms"]["p99"] >= 500  # 30 times 30 ms in a schedule of 150 ms


class BusyAsker:
    """Refuses so many times, then answers."""

    def __init__(self, times: int, status: int = 503) -> None:
        self.times, self.status = times, status

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        self.times -= 1
        if self.times >= 0:
            return Exchange(Outcome.REJECTED, 1.0, status=self.status, error="overloaded")
        return Exchange(Outcome.OK, 1.0, (Piece(1.0, "x"),), finish_reason="stop")


async def test_a_reference_waits_for_a_busy_server_but_not_for_ever():
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    def ignore(done: int, total: int, piece: str) -> None:
        pass

    ((_, exchange),) = await ask_alone(BusyAsker(2), questions_of(1), ignore, pause)
    assert exchange.text == "x"
    assert pauses == list(PAUSES_S[:2])
    with pytest.raises(BenchError, match=r"asked alone: 503: overloaded"):
        await ask_alone(BusyAsker(99), questions_of(1), ignore, pause)
    pauses.clear()
    with pytest.raises(BenchError, match="400"):
        await ask_alone(BusyAsker(1, status=400), questions_of(1), ignore, pause)
    assert pauses == []


async def test_no_server_and_no_place_in_time(tmp_path: Path):
    async with scripted(Script()) as server:
        plan = plan_of(server.url, tmp_path)
    with pytest.raises(BenchError, match="cannot connect"):
        await bench(plan, silent_bar)
    async with contextlib.aclosing(HttpAsker(server.url, Api.SPEECH, None, timeout_s=5)) as asker:
        asker.prepare(questions_of(1), model=None, max_tokens=1)
        exchange = await asker.ask(questions_of(1)[0])
    assert (exchange.outcome, exchange.error) == (Outcome.FAILED, "connection")


async def test_what_a_reader_must_know_is_remarked(tmp_path: Path):
    async with scripted(Script()) as server:
        server.models = {"data": [{"id": "scripted", "random_weights": True}]}
        results = await run_bench(server, tmp_path, audio=(), num_requests=2)
    assert any("weights are random" in remark for remark in results["remarks"])
    assert any("no --manifest or --audio" in remark for remark in results["remarks"])
    assert results["server"]["model"]["id"] == "scripted"
