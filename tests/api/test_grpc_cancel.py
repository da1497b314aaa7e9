"""Calls that end early: by the client, by a lost connection, by a deadline, by the server's end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fakes import FakeDecoder, FakeEngine, eventually, wav_clip
from grpc_harness import Harness, details_of, reason_of, request, serving, upload

from server import grpc_call
from server.admission import DrainRate
from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

Code = grpc.StatusCode
METHODS = ("Chat", "ChatStream", "ChatUpload")
CONFIG = pb.ChatUploadRequest(config=request(audio=None))


def call_of(stub: SpeechChatStub, method: str, **options: Any) -> Any:
    message = upload(wav_clip(), 4096) if method == "ChatUpload" else request()
    return getattr(stub, method)(message, **options)


def finish(call: Any) -> asyncio.Task[Any]:
    """Run a call of any kind to its end in a task."""

    async def run() -> None:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass

    return asyncio.ensure_future(run())


async def stalled_upload(started: asyncio.Event) -> AsyncIterator[pb.ChatUploadRequest]:
    """A config, half a clip, and silence."""
    yield CONFIG
    yield pb.ChatUploadRequest(chunk=wav_clip()[:1000])
    started.set()
    await asyncio.Event().wait()


class Stage:
    """A server whose requests stop in one stage, so that a test can cut them off there."""

    def __init__(self, name: str) -> None:
        gate = asyncio.Event()
        points: dict[str, str | int] = {
            "queued": "start",
            "encoding": "encode",
            "prefilling": "prefill",
            "generating": 2,
        }
        self.name = name
        self.gate = gate
        self.engine = FakeEngine(gates={points[name]: gate} if name in points else {})
        self.decoder = FakeDecoder()

    async def reached(self, server: Harness) -> None:
        """Wait until the one open request is in this stage, and the engine has seen what it shall."""

        def is_there() -> bool:
            stages = [reservation.stage.value for reservation in server.service._open]
            return stages == [self.name] and bool(self.engine.live) == (
                self.name not in ("receiving", "decoding")
            )

        await eventually(is_there)


@contextlib.asynccontextmanager
async def stopped_in(stage: Stage, **settings: Any) -> AsyncIterator[Harness]:
    async with serving(stage.engine, stage.decoder, **settings) as server:
        if stage.name == "decoding":
            stage.decoder.gate = stage.gate
        yield server


async def check_freed(stage: Stage, server: Harness) -> None:
    """The place is free at once, the engine has let go, and the cancellation is counted where it happened."""
    await eventually(lambda: server.service.ledger.num_open == 0, timeout_s=0.5)
    assert not stage.engine.live
    assert len(stage.engine.aborted) == (stage.name not in ("receiving", "decoding"))
    assert server.metrics()[f"requests_cancelled_total/{stage.name}"] == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["decoding", "queued", "encoding", "prefilling", "generating"])
async def test_a_cancel_frees_the_place_in_every_stage(name: str, method: str) -> None:
    stage = Stage(name)
    async with stopped_in(stage) as server:
        call = call_of(server.stub, method)
        task = finish(call)
        await stage.reached(server)
        call.cancel()
        await check_freed(stage, server)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("name", ["decoding", "queued", "generating"])
async def test_a_lost_connection_frees_the_place(name: str) -> None:
    stage = Stage(name)
    async with stopped_in(stage) as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            task = finish(call_of(SpeechChatStub(channel), "ChatStream"))
            await stage.reached(server)
        await check_freed(stage, server)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_cancel_in_the_middle_of_an_upload_frees_the_place() -> None:
    stage = Stage("receiving")
    async with stopped_in(stage) as server:
        started = asyncio.Event()
        call = server.stub.ChatUpload(stalled_upload(started))
        await started.wait()
        await stage.reached(server)
        assert server.service.ledger.num_bytes >= 25 << 20
        call.cancel()
        await check_freed(stage, server)
        assert not stage.engine.requests


@pytest.mark.parametrize("method", ["Chat", "ChatStream"])
async def test_a_cancel_before_the_message_frees_the_place(method: str) -> None:
    stage = Stage("receiving")
    async with stopped_in(stage) as server:
        call = server.channel.stream_stream(f"/wavllm.v1.SpeechChat/{method}")()
        await stage.reached(server)
        assert server.service.ledger.num_bytes >= 25 << 20  # nobody knows yet how large the message is
        call.cancel()
        await check_freed(stage, server)


async def test_a_cancel_while_waiting_for_a_turn_frees_the_place() -> None:
    """With a budget for one message at a time, the second call waits unread."""
    async with serving(max_inflight_mb=40) as server:
        open_call = server.channel.stream_stream("/wavllm.v1.SpeechChat/Chat")
        first, second = open_call(), open_call()
        await eventually(lambda: server.service.ledger.num_open == 2)
        second.cancel()
        await eventually(lambda: server.service.ledger.num_open == 1)
        first.cancel()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert (await server.stub.Chat(request())).finish_reason == "stop"


@pytest.mark.parametrize("method", METHODS)
async def test_a_deadline_ends_a_running_call(method: str) -> None:
    stage = Stage("generating")
    async with stopped_in(stage) as server:
        start = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(call_of(server.stub, method, timeout=0.5))
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        assert 0.4 < time.monotonic() - start < 1.0
        assert (
            reason_of(caught.value) == "deadline_exceeded"
        )  # the server's own words, ahead of the client's clock
        await eventually(lambda: not stage.engine.live)
        assert server.metrics()["requests_failed_total/deadline_exceeded"] == 1


async def test_the_request_timeout_bounds_calls_without_a_deadline() -> None:
    stage = Stage("generating")
    async with stopped_in(stage, request_timeout=0.3) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.Chat(request())
        assert (caught.value.code(), reason_of(caught.value)) == (Code.DEADLINE_EXCEEDED, "deadline_exceeded")


@pytest.mark.parametrize(("request_timeout", "client_timeout"), [(0.4, None), (60.0, 0.4)])
async def test_a_stalled_upload_is_bounded(request_timeout: float, client_timeout: float | None) -> None:
    async with serving(request_timeout=request_timeout) as server:
        call = server.stub.ChatUpload(stalled_upload(asyncio.Event()), timeout=client_timeout)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(call)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert server.metrics()["requests_failed_total/deadline_exceeded"] == 1


async def test_a_stalled_message_is_bounded() -> None:
    async with serving(request_timeout=0.3) as server:
        start = time.monotonic()
        call = server.channel.stream_stream("/wavllm.v1.SpeechChat/Chat")()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(call)
        assert (caught.value.code(), reason_of(caught.value)) == (Code.DEADLINE_EXCEEDED, "deadline_exceeded")
        assert time.monotonic() - start < 0.8
        assert server.metrics()["requests_failed_total/deadline_exceeded"] == 1


async def test_a_silent_call_does_not_keep_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget for one message at a time, the next call must not wait for a minute-long silence."""
    monkeypatch.setattr("server.grpc_servicer.MESSAGE_S", 0.3)
    async with serving(max_inflight_mb=40) as server:
        silent = server.channel.stream_stream("/wavllm.v1.SpeechChat/Chat")()
        await eventually(lambda: server.service.ledger.num_open == 1)
        assert (await server.stub.Chat(request())).finish_reason == "stop"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(silent)
        assert reason_of(caught.value) == "deadline_exceeded"
        assert server.service.ledger.num_open == 0


async def test_an_upload_that_falls_silent_gives_its_bytes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.grpc_servicer.PIECE_S", 0.3)
    async with serving() as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(server.stub.ChatUpload(stalled_upload(asyncio.Event())))
        assert reason_of(caught.value) == "deadline_exceeded"
        await eventually(lambda: server.service.ledger.num_bytes == 0)


async def test_a_deadline_that_the_queue_outlasts_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrainRate, "wait_s", lambda self, num_requests: 30.0)
    engine, decoder = FakeEngine(), FakeDecoder()
    async with serving(engine, decoder) as server:
        decoded = decoder.num_decoded
        start = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.Chat(request(), timeout=10)
        assert time.monotonic() - start < 0.5
        assert (caught.value.code(), reason_of(caught.value)) == (Code.DEADLINE_EXCEEDED, "deadline_exceeded")
        assert not engine.requests
        assert decoder.num_decoded == decoded
        assert (await server.stub.Chat(request())).finish_reason == "stop"


async def test_a_queue_that_grew_meanwhile_is_refused_before_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, decoder = FakeEngine(), FakeDecoder()
    async with serving(engine, decoder) as server:
        decoder.gate = asyncio.Event()
        task = finish(server.stub.ChatStream(request(), timeout=10))
        await eventually(lambda: [each.stage.value for each in server.service._open] == ["decoding"])
        monkeypatch.setattr(DrainRate, "wait_s", lambda self, num_requests: 30.0)
        decoder.gate.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await task
        assert reason_of(caught.value) == "deadline_exceeded"
        assert not engine.requests


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free when the answer is made; the call itself ends after the deadline."""
    monkeypatch.setattr(grpc_call, "STALL_S", 0.1)
    piece = "x" * 65_000
    engine = FakeEngine(pieces=(piece,) * 256)
    async with serving(engine, request_timeout=0.5) as server:
        call = server.stub.ChatStream(request())
        await eventually(lambda: bool(engine.requests) and not engine.live)
        await eventually(lambda: server.service.ledger.num_open == 0)
        await asyncio.wait_for(server.server._chat.wait_idle(), 3.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await finish(call)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED


async def test_stop_lets_a_running_stream_end() -> None:
    stage = Stage("generating")
    async with stopped_in(stage) as server:
        stream = finish(server.stub.ChatStream(request()))
        unary = finish(server.stub.Chat(request()))
        await eventually(lambda: len(stage.engine.live) == 2)
        stopping = asyncio.create_task(server.server.stop(5.0))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        async with grpc.aio.insecure_channel(server.target) as late:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await SpeechChatStub(late).Chat(request())
            assert caught.value.code() is Code.UNAVAILABLE
        stage.gate.set()
        start = time.monotonic()
        await asyncio.gather(stream, unary, stopping)
        assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["decoding", "queued", "generating"])
async def test_what_outlasts_the_grace_ends_with_a_clean_error(name: str, method: str) -> None:
    stage = Stage(name)
    async with stopped_in(stage) as server:
        task = finish(call_of(server.stub, method))
        await stage.reached(server)
        start = time.monotonic()
        await server.server.stop(0.2)
        assert time.monotonic() - start < 1.5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await task
        assert (caught.value.code(), reason_of(caught.value)) == (Code.UNAVAILABLE, "not_ready")
        assert details_of(caught.value)["RetryInfo"].retry_delay.ToMilliseconds() > 0
        assert not stage.engine.live
