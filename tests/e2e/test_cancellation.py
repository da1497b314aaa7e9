"""A client that leaves frees its place within a second, in every stage and over every transport.

One request at a time (`--max-batch-size 1`) through a model that is slow in every stage; the metrics say
when a request has come to the stage in which its client is to leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import pytest
from audio_samples import encode_soundfile, noise
from e2e_client import (
    CHAT,
    GONE_WITHIN_S,
    IDLE,
    chat_request,
    check_idle,
    growth,
    json_body,
    load_of,
    metrics_of,
    until,
    upload_of,
)
from random_models import make_slow
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

SEEDS = itertools.count()
TRANSPORTS = ("rest", "sse", "Chat", "ChatStream", "ChatUpload")
over_each = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One place, 8 tokens a forward, one decoding worker."""
    model = make_slow(tmp_path_factory.mktemp("slow") / "model")
    flags = ("--max-batch-size", "1", "--max-batch-tokens", "8", "--audio-workers", "1")
    with ServerProcess(model, *flags) as running:
        yield running


@dataclass
class Question:
    """A clip and an instruction that no cache knows."""

    seconds: float = 0.5
    words: int = 2
    max_tokens: int = 2

    def __post_init__(self) -> None:
        seed = next(SEEDS)
        self.clip = encode_soundfile(noise(self.seconds, seed=seed), 16_000, "WAV", "PCM_16")
        self.prompt = f"{seed} " + "w " * self.words


class Asked:
    """A question on its way to the server; `leave` drops the connection, or cancels the call."""

    def __init__(self, server: ServerProcess, transport: str, question: Question) -> None:
        self._server = server
        self._transport = transport
        self._question = question
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Asked:
        if self._transport in ("rest", "sse"):
            await self._send_http()
        else:
            await self._call_grpc()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._exits.aclose()

    async def leave(self) -> None:
        await self._exits.aclose()

    async def _send_http(self) -> None:
        question = self._question
        stream, max_tokens = self._transport == "sse", question.max_tokens
        fields = json_body(question.clip, question.prompt, stream=stream, max_tokens=max_tokens)
        body = json.dumps(fields).encode()
        await self.send_raw(body, len(body))

    async def send_raw(self, body: bytes, length: int) -> None:
        """A POST that promises `length` bytes; leaving resets the connection."""
        client = socket.create_connection(("127.0.0.1", self._server.ports["http"]), timeout=10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._exits.callback(client.close)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"content-length: {length}\r\n\r\n"
        await asyncio.to_thread(client.sendall, head.encode() + body)

    async def _call_grpc(self) -> None:
        channel = await self._exits.enter_async_context(grpc.aio.insecure_channel(self._server.grpc_target))
        stub, question = SpeechChatStub(channel), self._question
        request = chat_request(question.prompt, question.clip, question.max_tokens)
        if self._transport == "Chat":
            call: Any = stub.Chat(request)
        elif self._transport == "ChatStream":
            call = stub.ChatStream(request)
        else:
            call = stub.ChatUpload(upload_of(question.prompt, question.clip, question.max_tokens))
        self._exits.callback(call.cancel)
        if self._transport == "Chat":
            await asyncio.sleep(0)  # the call starts with the next turn of the loop


@contextlib.asynccontextmanager
async def cancelled_in(
    server: ServerProcess, stage: str, step_s: float = 0.0
) -> AsyncIterator[None]:
    """The one request of the block leaves at its end, and is counted under this stage and no other.

    step_s: what the step may take that is under way; pages are given back between steps.
    """
    before = metrics_of(server)
    yield
    await asyncio.to_thread(until, lambda: no_place_is_held(server), "its place is not free", GONE_WITHIN_S)
    await asyncio.to_thread(check_idle, server, GONE_WITHIN_S + step_s)
    counted = growth(before, metrics_of(server))
    ends = {name: count for name, count in counted.items() if name.startswith("requests_")}
    assert ends == {"requests_accepted_total": 1, f"requests_cancelled_total/{stage}": 1}


def no_place_is_held(server: ServerProcess) -> bool:
    """All but the pages, which are the engine's."""
    load = load_of(server)
    return {**load, "kv_cache_usage": 0} == IDLE


async def reached(server: ServerProcess, what: Callable[[dict[str, float]], bool]) -> None:
    """Wait until the metrics say so."""
    await asyncio.to_thread(until, lambda: what(metrics_of(server)), "the stage was never reached", 20)


def more(server: ServerProcess, name: str) -> Callable[[dict[str, float]], bool]:
    """Whether the metric is higher than it is now."""
    now = metrics_of(server)[name]
    return lambda metrics: metrics[name] > now


def holds_pages(metrics: dict[str, float]) -> bool:
    return metrics["wavllm_kv_cache_usage_perc"] > 0


def is_decoder(process: psutil.Process) -> bool:
    """Whether it decodes clips, and lives."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "server.audio_worker" in process.cmdline()
    return False


@contextlib.contextmanager
def stopped_decoder(server: ServerProcess) -> Iterator[None]:
    """The decoding worker gets no time to run; it is killed with its clip or goes on at the end."""
    workers: list[psutil.Process] = []
    while len(workers) != 1:  # the one that the last test had killed may not be buried, or not replaced yet
        time.sleep(0.01)
        workers = [child for child in psutil.Process(server.process.pid).children() if is_decoder(child)]
    (worker,) = workers
    worker.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()


@pytest.mark.parametrize("transport", ["rest", "sse"])
async def test_while_receiving_over_http(slow: ServerProcess, transport: str) -> None:
    async with cancelled_in(slow, "receiving"):
        asked = Asked(slow, transport, Question())
        await asked.send_raw(b'{"prompt": "', 1_000_000)
        await asyncio.to_thread(until, lambda: load_of(slow)["inflight_bytes"] == 1_000_000, "no slot")
        await asked.leave()


async def test_while_receiving_an_upload(slow: ServerProcess) -> None:
    sent = asyncio.Event()

    async def some(question: Question) -> AsyncIterator[pb.ChatUploadRequest]:
        for message in upload_of(question.prompt, question.clip)[:3]:
            yield message
        sent.set()
        await asyncio.sleep(60)

    async with cancelled_in(slow, "receiving"), grpc.aio.insecure_channel(slow.grpc_target) as channel:
        call = SpeechChatStub(channel).ChatUpload(some(Question()))
        await sent.wait()
        await asyncio.to_thread(until, lambda: load_of(slow)["inflight_bytes"] > 0, "no slot")
        call.cancel()


@over_each
async def test_while_decoding(slow: ServerProcess, transport: str) -> None:
    with stopped_decoder(slow):
        async with cancelled_in(slow, "decoding"):
            question = Question()
            async with Asked(slow, transport, question):
                await asyncio.to_thread(
                    until, lambda: load_of(slow)["inflight_bytes"] == len(question.clip), "not decoding"
                )
                await asyncio.sleep(0.05)


@over_each
async def test_while_queued(slow: ServerProcess, transport: str) -> None:
    """One runs, one more may be encoded meanwhile, the third waits untouched."""
    async with contextlib.AsyncExitStack() as others:
        decoded = more(slow, "wavllm_request_audio_duration_seconds_count")
        await others.enter_async_context(Asked(slow, "sse", Question(max_tokens=512)))
        await reached(slow, more(slow, "wavllm_generation_tokens_total"))
        await others.enter_async_context(Asked(slow, "sse", Question()))
        await reached(slow, decoded)
        await reached(slow, lambda metrics: metrics["wavllm_num_requests_running"] == 2)
        before = metrics_of(slow)
        decoded = more(slow, "wavllm_request_audio_duration_seconds_count")
        async with Asked(slow, transport, Question()):
            await reached(slow, decoded)
            await asyncio.sleep(0.1)
        await asyncio.to_thread(
            until, lambda: load_of(slow)["num_requests_waiting"] == 0, "still waiting", GONE_WITHIN_S
        )
        counted = growth(before, metrics_of(slow))
        assert counted["requests_cancelled_total/queued"] == 1
        assert load_of(slow)["num_requests_running"] == 2, "the others were to go on"
    await asyncio.to_thread(check_idle, slow)


@over_each
async def test_while_encoding(slow: ServerProcess, transport: str) -> None:
    async with cancelled_in(slow, "encoding", step_s=5):
        encoded = more(slow, "wavllm_encoder_seconds_count/wavlm")
        async with Asked(slow, transport, Question(seconds=50)):
            await reached(slow, lambda metrics: metrics["wavllm_num_requests_running"] == 1)
            await asyncio.sleep(0.05)
            assert not encoded(metrics_of(slow)), "too late: make the clip longer"
    await asyncio.sleep(0.5)
    assert not encoded(metrics_of(slow)), "a pass that nobody wants goes on"


@over_each
async def test_while_prefilling(slow: ServerProcess, transport: str) -> None:
    async with cancelled_in(slow, "prefilling"):
        encoded = more(slow, "wavllm_encoder_seconds_count/wavlm")
        tokens = more(slow, "wavllm_generation_tokens_total")
        async with Asked(slow, transport, Question(words=1000)):
            await reached(slow, encoded)
            await reached(slow, holds_pages)
            await asyncio.sleep(0.1)
            assert not tokens(metrics_of(slow)), "too late: make the prompt longer"


@over_each
async def test_while_generating(slow: ServerProcess, transport: str) -> None:
    async with cancelled_in(slow, "generating"):
        tokens = more(slow, "wavllm_generation_tokens_total")
        async with Asked(slow, transport, Question(max_tokens=512)):
            await reached(slow, tokens)
            assert holds_pages(metrics_of(slow))


async def test_a_client_that_only_closes_its_side_has_left(slow: ServerProcess) -> None:
    """FIN and not a reset: what a killed curl leaves behind."""
    async with cancelled_in(slow, "generating"):
        question = Question(max_tokens=512)
        body = json.dumps(json_body(question.clip, question.prompt, stream=True, max_tokens=512)).encode()
        tokens = more(slow, "wavllm_generation_tokens_total")
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.ports["http"])
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        await reached(slow, tokens)
        await reader.read(1000)
        writer.close()
        await writer.wait_closed()


async def test_everybody_leaves_at_once(slow: ServerProcess) -> None:
    before = metrics_of(slow)
    async with contextlib.AsyncExitStack() as asked:
        for transport in TRANSPORTS * 3:
            await asked.enter_async_context(Asked(slow, transport, Question(max_tokens=256)))
        await reached(slow, lambda metrics: metrics["wavllm_requests_accepted_total"] >= 15)
    await asyncio.to_thread(check_idle, slow)
    counted = growth(before, metrics_of(slow))
    cancelled = sum(count for name, count in counted.items() if name.startswith("requests_cancelled"))
    assert (counted["requests_accepted_total"], cancelled) == (15, 15)
