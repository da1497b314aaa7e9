"""How a real server ends: whole on the first signal, at once on the second, and never with a child left."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from audio_samples import wav
from e2e_client import CHAT, HTTP, chat_request, grpc_refusal, ids_of, metrics_of, read_sse, refusal, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from random_models import make_endless
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

CLIP = wav(0.5)
NUM_TOKENS = 500
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers take some seconds."""
    return make_endless(tmp_path_factory.mktemp("endless") / "model", layers=32)


def fields(max_tokens: int = NUM_TOKENS, **given: str) -> dict[str, Any]:
    """Arguments of a multipart request."""
    data = {"prompt": "Hi", "max_tokens": str(max_tokens), "return_token_ids": "true", **given}
    return {"files": {"file": ("clip", CLIP)}, "data": data}


def family_of(server: ServerProcess) -> list[psutil.Process]:
    """The server's children: the engine and the decoding workers."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) >= 3, "an engine and two workers were expected"
    return children


def check_gone(server: ServerProcess, children: list[psutil.Process], within_s: float = 1.0) -> None:
    """No child runs a second later, and the ports are free."""
    _, alive = psutil.wait_procs(children, within_s)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    for port in server.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


def exit_code(server: ServerProcess, within_s: float = 10.0) -> int:
    """Wait until it ends by itself."""
    server.process.wait(within_s)
    return server.stop()  # sends nothing any more, closes the log


class Running:
    """Three requests in the middle of their answers: unstreamed, SSE and gRPC; and a health watcher."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.health: list[int] = []
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Running:
        enter, url = self._exits.enter_async_context, self.server.url + CHAT
        self.client = await enter(httpx.AsyncClient(timeout=60))
        self.channel = await enter(grpc.aio.insecure_channel(self.server.grpc_target))
        watch = health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest())
        self._watching = asyncio.create_task(self._watch(watch))
        self.whole = asyncio.create_task(self.client.post(url, **fields()))
        self.sse = asyncio.create_task(self.client.post(url, **fields(stream="true")))
        call = SpeechChatStub(self.channel).ChatStream(chat_request("Hi", CLIP, NUM_TOKENS))
        self.grpc = asyncio.create_task(self._read(call))
        running = "wavllm_num_requests_running"
        tokens = "wavllm_generation_tokens_total"
        await asyncio.to_thread(
            until,
            lambda: (now := metrics_of(self.server))[running] == 3 and now[tokens] > 10,
            "the requests do not run",
        )
        assert not [task for task in (self.whole, self.sse, self.grpc) if task.done()]
        return self

    async def __aexit__(self, *exception: object) -> None:
        tasks = (self._watching, self.whole, self.sse, self.grpc)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._exits.aclose()

    async def _watch(self, watch: AsyncIterator[Any]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for answer in watch:
                self.health.append(answer.status)

    async def _read(self, call: AsyncIterator[pb.ChatEvent]) -> list[pb.ChatEvent]:
        return [event async for event in call]

    async def check_whole(self) -> None:
        """All three are answered to the last token, and say the same."""
        whole = (await self.whole).json()["choices"][0]["token_ids"]
        streamed, error = read_sse((await self.sse).text)
        assert error == {}
        assert len(whole) == NUM_TOKENS
        assert streamed == whole
        assert ids_of(await self.grpc) == whole

    async def check_refused(self) -> None:
        """All three end with a clean error."""
        assert refusal(await self.whole) == (503, "not_ready", None)
        streamed, error = read_sse((await self.sse).text)
        assert error["code"] == "not_ready"
        assert 0 < len(streamed) < NUM_TOKENS
        with pytest.raises(grpc.RpcError) as failed:
            await self.grpc
        assert grpc_refusal(failed.value) == (grpc.StatusCode.UNAVAILABLE, "not_ready")


@pytest.fixture
def draining(endless: Path) -> Iterator[ServerProcess]:
    with ServerProcess(endless, "--drain-delay", "1.5", "--shutdown-timeout", "20") as server:
        yield server


async def test_the_first_signal_lets_everything_finish(draining: ServerProcess) -> None:
    server, children = draining, family_of(draining)
    async with Running(server) as running:
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(
            until, lambda: HTTP.get(f"{server.url}/readyz").status_code == 503, "still ready", 0.3
        )
        assert HTTP.get(f"{server.url}/livez").status_code == 200
        stub = health_pb2_grpc.HealthStub(running.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING

        late = await running.client.post(server.url + CHAT, **fields(2))
        assert late.status_code == 200, "taken for the balancer's sake during the delay"
        assert late.headers["connection"] == "close"
        assert time.monotonic() - begin < 1.5

        await asyncio.sleep(max(0.0, begin + 1.7 - time.monotonic()))
        assert not running.sse.done(), "too late: make the answers longer"
        refused = await running.client.post(server.url + CHAT, **fields(2))
        assert refusal(refused) == (503, "not_ready", None)
        assert refused.headers["retry-after"]
        with pytest.raises(grpc.RpcError) as error:
            await SpeechChatStub(running.channel).Chat(chat_request("Hi", CLIP, 2))
        assert grpc_refusal(error.value) == (grpc.StatusCode.UNAVAILABLE, "not_ready")

        await running.check_whole()
        assert running.health[:2] == [SERVING, NOT_SERVING]
    assert await asyncio.to_thread(exit_code, server) == 0
    check_gone(server, children)


async def test_the_second_signal_ends_it_now(draining: ServerProcess) -> None:
    server, children = draining, family_of(draining)
    async with Running(server) as running:
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await running.check_refused()
        assert time.monotonic() - begin < 1
        assert await asyncio.to_thread(exit_code, server) == 0
        assert time.monotonic() - begin < 5
    check_gone(server, children)


async def test_the_shutdown_timeout_ends_what_is_left(endless: Path) -> None:
    """Ctrl-C this time: SIGINT means the same."""
    with ServerProcess(endless, "--shutdown-timeout", "0.5") as server:
        children = family_of(server)
        async with Running(server) as running:
            begin = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            await running.check_refused()
            assert 0.3 < time.monotonic() - begin < 2
            assert await asyncio.to_thread(exit_code, server) == 0
        check_gone(server, children)


async def test_a_kill_leaves_no_child_and_no_port(endless: Path) -> None:
    """In the middle of work, and with the terminal's group of processes spared."""
    with ServerProcess(endless) as server:
        children = family_of(server)
        async with Running(server):
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            check_gone(server, children)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading(endless: Path, number: signal.Signals) -> None:
    server = ServerProcess(endless)
    until(lambda: "http" in server.ports and "metrics" in server.ports, "no ports", 60)
    assert HTTP.get(f"{server.url}/livez").status_code == 200
    assert HTTP.get(f"{server.url}/readyz").json() == {"status": "starting"}
    assert refusal(HTTP.post(server.url + CHAT, **fields(2))) == (503, "not_ready", None)
    children = psutil.Process(server.process.pid).children(recursive=True)
    begin = time.monotonic()
    assert server.stop(number) == 0, server.text
    assert time.monotonic() - begin < 5
    assert '"ready"' not in server.text
    assert "Traceback" not in server.text
    check_gone(server, children)


def test_a_kill_while_loading(endless: Path) -> None:
    server = ServerProcess(endless)
    until(lambda: "metrics" in server.ports, "no ports", 60)
    until(lambda: bool(psutil.Process(server.process.pid).children()), "no engine", 10)
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.stop(signal.SIGKILL)
    check_gone(server, children)
