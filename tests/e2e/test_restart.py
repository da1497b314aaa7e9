"""The engine's process is killed under load: its requests end cleanly, and the server mends itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from audio_samples import wav
from e2e_client import (
    CASES,
    CHAT,
    HTTP,
    ask_golden,
    chat_request,
    check_error,
    check_idle,
    form,
    growth,
    grpc_refusal,
    load_of,
    metrics_of,
    read_sse,
    refusal,
    until,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

CLIP = wav(0.5)
LONG_CLIP = wav(60.0)


@pytest.fixture(scope="module")
def mortal(golden_model: Path) -> Iterator[ServerProcess]:
    """The golden model in a server whose engine is to be killed; one place, so that requests also wait."""
    with ServerProcess(golden_model, "--max-batch-size", "1", "--audio-workers", "1") as running:
        yield running


def child_of(server: ServerProcess, of_engine: bool) -> psutil.Process:
    """The engine's process, or the decoding worker's."""
    children = psutil.Process(server.process.pid).children()
    (child,) = [c for c in children if ("server.audio_worker" in c.cmdline()) is not of_engine]
    return child


async def events_of(call: AsyncIterator[pb.ChatEvent]) -> list[pb.ChatEvent]:
    return [event async for event in call]


async def is_serving(channel: grpc.aio.Channel) -> bool:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_the_engine_is_killed_in_mid_stream(mortal: ServerProcess) -> None:
    """The engine stands still meanwhile, so that nobody's answer ends before the kill."""
    before = metrics_of(mortal)
    engine = child_of(mortal, of_engine=True)
    async with (
        httpx.AsyncClient(timeout=60) as client,
        grpc.aio.insecure_channel(mortal.grpc_target) as channel,
    ):
        stub = SpeechChatStub(channel)
        long = form("Go on.", CLIP, max_tokens="400")
        async with client.stream(
            "POST", mortal.url + CHAT, files=long["files"], data={**long["data"], "stream": "true"}
        ) as streamed:
            assert streamed.status_code == 200
            engine.suspend()
            tasks = [
                asyncio.create_task(client.post(mortal.url + CHAT, **long)),
                asyncio.create_task(asyncio.wait_for(stub.Chat(chat_request("Go on.", CLIP, 400)), 60)),
                asyncio.create_task(events_of(stub.ChatStream(chat_request("Go on.", CLIP, 400)))),
            ]
            accepted = "requests_accepted_total"
            await asyncio.to_thread(
                until, lambda: growth(before, metrics_of(mortal)).get(accepted) == 4, "not accepted"
            )
            await asyncio.sleep(0.2)
            engine.kill()
            begin = time.monotonic()
            _, error = read_sse((await streamed.aread()).decode())
        assert error["code"] == "engine_error"
        rest, *calls = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - begin < 1
        assert isinstance(rest, httpx.Response)
        assert refusal(rest) == (500, "engine_error", None)
        for call in calls:
            assert isinstance(call, grpc.RpcError)
            assert grpc_refusal(call) == (grpc.StatusCode.INTERNAL, "engine_error")

        ready = HTTP.get(f"{mortal.url}/readyz")
        assert ready.json() == {"status": "failed"}, ready.text
        assert HTTP.get(f"{mortal.url}/livez").status_code == 200
        assert not await is_serving(channel)
        late = HTTP.post(mortal.url + CHAT, **long)
        assert refusal(late) == (503, "not_ready", None)
        assert late.headers["retry-after"]

        mortal.wait_until_ready()
        await asyncio.sleep(0.5)  # gRPC health asks readiness four times a second
        assert await is_serving(channel)
    assert child_of(mortal, of_engine=True).pid != engine.pid
    for case in CASES:
        ask_golden(mortal, case)
    check_idle(mortal)
    counted = growth(before, metrics_of(mortal))
    assert counted["requests_failed_total/engine_error"] == 4
    assert counted["requests_rejected_total/not_ready"] == 1
    assert counted["request_success_total/stop"] + counted["request_success_total/length"] == len(CASES)
    assert "Go on." not in mortal.text


def test_a_decoder_is_killed_with_its_clip(mortal: ServerProcess) -> None:
    """Nobody else notices: the worker is replaced, and the clip may be sent again."""
    before = metrics_of(mortal)
    worker = child_of(mortal, of_engine=False)
    worker.suspend()

    def kill_later() -> None:
        until(lambda: load_of(mortal)["inflight_bytes"] == len(LONG_CLIP), "not decoding")
        time.sleep(0.05)
        worker.kill()

    async def both() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            post = client.post(mortal.url + CHAT, **form("Hi", LONG_CLIP, max_tokens="2"))
            return (await asyncio.gather(post, asyncio.to_thread(kill_later)))[0]

    response = asyncio.run(both())
    assert response.status_code == 500
    error = check_error(response.json())
    assert error["code"] == "engine_error"
    assert HTTP.get(f"{mortal.url}/readyz").status_code == 200
    assert HTTP.post(mortal.url + CHAT, **form("Hi", LONG_CLIP, max_tokens="2")).status_code == 200
    ask_golden(mortal)
    check_idle(mortal)
    assert growth(before, metrics_of(mortal))["requests_failed_total/engine_error"] == 1
