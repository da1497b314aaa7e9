"""Every refusal over a real channel: its status, its google.rpc details, and what it leaves behind."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import grpc
import pytest
from fakes import FakeDecoder, FakeEngine, wav_clip
from grpc_harness import Harness, details_of, field_of, reason_of, request, serving, upload

from server import errors
from server.grpc_errors import status_of
from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

Code = grpc.StatusCode
CONFIG = pb.ChatUploadRequest(config=request(audio=None))
CHUNK = pb.ChatUploadRequest(chunk=wav_clip())

# Beside the table in api.md: what each class of error is told as.
TABLE = {
    errors.ServerError: Code.INTERNAL,
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.InvalidAudio: Code.INVALID_ARGUMENT,
    errors.ContextLengthExceeded: Code.INVALID_ARGUMENT,
    errors.UnsupportedAudio: Code.INVALID_ARGUMENT,
    errors.AuthenticationError: Code.UNAUTHENTICATED,
    errors.ModelNotFound: Code.NOT_FOUND,
    errors.PayloadTooLarge: Code.RESOURCE_EXHAUSTED,
    errors.RetryableError: Code.INTERNAL,
    errors.RateLimited: Code.RESOURCE_EXHAUSTED,
    errors.Overloaded: Code.UNAVAILABLE,
    errors.NotReady: Code.UNAVAILABLE,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.RequestCancelled: Code.CANCELLED,
    errors.EngineError: Code.INTERNAL,
}


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call, unary or streaming."""
    answered = call if isinstance(call, grpc.aio.UnaryUnaryCall) else collect(call, [])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answered
    return caught.value


async def collect(call: Any, seen: list[str]) -> None:
    """Put the kinds of a stream's events into `seen`."""
    async for event in call:
        seen.append(event.WhichOneof("event"))


def test_every_error_class_has_its_status() -> None:
    classes = {
        cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.ServerError)
    }
    assert classes == set(TABLE)
    assert {cls: status_of(cls("m"), "id").code for cls in classes} == TABLE


@pytest.mark.parametrize("cls", TABLE)
async def test_an_engines_refusal_keeps_code_field_and_name(cls: type[errors.ServerError]) -> None:
    engine = FakeEngine(refuse=cls("Said plainly: nö.", param="prompt"))
    async with serving(engine) as server:
        for call in (server.stub.Chat, server.stub.ChatStream):
            error = await failure(call(request(request_id="mine")))
            assert (error.code(), error.details()) == (TABLE[cls], "Said plainly: nö.")
            assert (reason_of(error), field_of(error)) == (cls.code, "prompt")
            assert details_of(error)["ErrorInfo"].domain == "wavllm"
            assert details_of(error)["RequestInfo"].request_id == "mine"
            assert dict(error.trailing_metadata())["x-request-id"] == "mine"
            assert not error.initial_metadata()
            assert ("RetryInfo" in details_of(error)) == issubclass(cls, errors.RetryableError)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"generation": {"max_tokens": 0}}, "max_tokens"),
        ({"generation": {"max_tokens": -1}}, "max_tokens"),
        ({"generation": {"max_tokens": 513}}, "max_tokens"),
        ({"generation": {"temperature": float("nan")}}, "temperature"),
        ({"generation": {"temperature": float("inf")}}, "temperature"),
        ({"generation": {"temperature": -0.5}}, "temperature"),
        ({"generation": {"top_p": 0.0}}, "top_p"),
        ({"generation": {"top_p": float("nan")}}, "top_p"),
        ({"generation": {"top_k": -1}}, "top_k"),
        ({"generation": {"stop": [""]}}, "stop"),
        ({"generation": {"stop": ["x"] * 5}}, "stop"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"system": "x" * 4001}, "system"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "two words"}, "request_id"),
        ({"request_id": "line\nbreak"}, "request_id"),
        ({"request_id": "naïve"}, "request_id"),
        ({"audio": None}, "audio"),
        ({"audio": pb.Audio()}, "audio"),
        ({"audio": pb.Audio(data=b"RIFF")}, "audio"),
        ({"audio": pb.Audio(data=b"hello")}, "audio"),
        ({"audio": pb.Audio(data=wav_clip(0.05))}, "audio"),
        ({"audio": pb.Audio(data=wav_clip(61))}, "audio"),
    ],
)
async def test_a_bad_field_is_named(fields: dict[str, Any], field: str) -> None:
    engine = FakeEngine()
    async with serving(engine) as server:
        for call in (server.stub.Chat, server.stub.ChatStream):
            error = await failure(call(request(**fields)))
            assert (error.code(), field_of(error)) == (Code.INVALID_ARGUMENT, field)
    assert not engine.requests


async def test_an_unknown_model_is_not_found() -> None:
    async with serving() as server:
        error = await failure(server.stub.Chat(request(model="gpt")))
    assert (error.code(), reason_of(error), field_of(error)) == (Code.NOT_FOUND, "model_not_found", "model")


async def test_bytes_that_are_no_message_are_invalid() -> None:
    async with serving() as server:
        for method in ("Chat", "ChatStream", "ChatUpload"):
            raw = server.channel.stream_stream(f"/wavllm.v1.SpeechChat/{method}")
            error = await failure(raw(iter([b"\xff\xff\xff"])))
            assert (error.code(), reason_of(error)) == (Code.INVALID_ARGUMENT, "invalid_request")


async def test_a_call_without_a_message_is_invalid() -> None:
    async with serving() as server:
        for method in ("Chat", "ChatStream", "ChatUpload"):
            raw = server.channel.stream_stream(f"/wavllm.v1.SpeechChat/{method}")
            error = await failure(raw(iter(())))
            assert (error.code(), reason_of(error)) == (Code.INVALID_ARGUMENT, "invalid_request")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([CHUNK, CONFIG], "config"),
        ([CONFIG, CHUNK, CONFIG], "config"),
        ([CONFIG], "audio"),
        ([CONFIG, pb.ChatUploadRequest(chunk=b"")], "audio"),
        ([CONFIG, pb.ChatUploadRequest()], "chunk"),
        ([pb.ChatUploadRequest()], "config"),
        ([pb.ChatUploadRequest(config=request())], "config.audio"),
        ([pb.ChatUploadRequest(config=request(audio=None, request_id=" ")), CHUNK], "request_id"),
        (
            [pb.ChatUploadRequest(config=request(audio=None, generation={"max_tokens": 0})), CHUNK],
            "max_tokens",
        ),
    ],
)
async def test_a_bad_upload_names_its_part(messages: list[pb.ChatUploadRequest], field: str) -> None:
    async with serving() as server:
        error = await failure(server.stub.ChatUpload(iter(messages)))
    assert (error.code(), field_of(error)) == (Code.INVALID_ARGUMENT, field)


async def test_an_upload_is_refused_for_its_config_before_its_audio_comes() -> None:
    async def forever() -> AsyncIterator[pb.ChatUploadRequest]:
        yield pb.ChatUploadRequest(config=request(audio=None, generation={"max_tokens": 100_000}))
        await asyncio.sleep(60)

    async with serving() as server, asyncio.timeout(10):
        error = await failure(server.stub.ChatUpload(forever()))
    assert (error.code(), field_of(error)) == (Code.INVALID_ARGUMENT, "max_tokens")


async def pieces(seconds: float, gap_s: float, sent: list[float]) -> AsyncIterator[pb.ChatUploadRequest]:
    """A config, then a little audio every `gap_s` for so many seconds; `sent` gets the time of its end."""
    end = time.monotonic() + seconds
    yield CONFIG
    while time.monotonic() < end:
        await asyncio.sleep(gap_s)
        yield pb.ChatUploadRequest(chunk=bytes(100))
    sent.append(time.monotonic())


async def refusals_of(uploads: Iterable[AsyncIterator[pb.ChatUploadRequest]], **given: float) -> set[Any]:
    """What uploads without the server's key are told."""
    async with serving(api_key=("secret",)) as server:
        calls = [server.stub.ChatUpload(messages, **given) for messages in uploads]
        failures = await asyncio.gather(*(failure(call) for call in calls))
    return {(error.code(), reason_of(error)) for error in failures}


async def test_a_refusal_waits_for_a_slow_upload_to_end() -> None:
    """grpc.aio's clients lose a status that overtakes one of their writes."""
    sent: list[float] = []
    seen = await refusals_of(pieces(0.5, 0.003, sent) for _ in range(8))
    assert seen == {(Code.UNAUTHENTICATED, "invalid_api_key")}
    assert len(sent) == 8, "cut off"


async def test_a_refusal_does_not_wait_past_the_clients_deadline() -> None:
    """Also not where it waits for its turn to be read on."""
    seen = await refusals_of((pieces(30, 30, []) for _ in range(20)), timeout=0.4)
    assert seen == {(Code.UNAUTHENTICATED, "invalid_api_key")}


async def test_an_upload_fails_at_the_cap_and_not_after() -> None:
    sent: list[int] = []

    def endless() -> Iterator[pb.ChatUploadRequest]:
        yield CONFIG
        for number in range(10_000):
            sent.append(number)
            yield pb.ChatUploadRequest(chunk=bytes(1 << 16))

    def refused(target: str) -> grpc.RpcError:
        # Not grpc.aio's client: its own failed write may hide the status that made it fail.
        with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as caught:
            list(SpeechChatStub(channel).ChatUpload(endless()))
        return caught.value

    async with serving(max_upload_mb=1) as server:
        error = await asyncio.to_thread(refused, server.target)
    assert (error.code(), reason_of(error), field_of(error)) == (
        Code.RESOURCE_EXHAUSTED,
        "payload_too_large",
        "audio",
    )
    assert len(sent) < 200  # 16 reach the cap and 16 are drained; the rest was on its way


async def test_a_clip_over_the_cap_is_refused() -> None:
    async with serving(max_upload_mb=1) as server:
        error = await failure(server.stub.Chat(request(audio=pb.Audio(data=bytes((1 << 20) + 1)))))
    assert (error.code(), reason_of(error), field_of(error)) == (
        Code.RESOURCE_EXHAUSTED,
        "payload_too_large",
        "audio",
    )


async def test_a_message_over_the_receive_limit_is_refused_by_the_transport() -> None:
    async with serving(max_upload_mb=1) as server:
        for call in (server.stub.Chat, server.stub.ChatStream):
            error = await failure(call(request(audio=pb.Audio(data=bytes(8 << 20)))))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "message larger than max" in str(error.details())
        answer = await server.stub.Chat(request())
    assert answer.finish_reason == "stop"


async def test_compression_cannot_smuggle_a_large_message() -> None:
    async with serving(max_upload_mb=1) as server:
        bomb = request(audio=pb.Audio(data=bytes(64 << 20)))
        error = await failure(server.stub.Chat(bomb, compression=grpc.Compression.Gzip))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "message larger than max" in str(error.details())


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic secret", "secret", "Bearer", "Bearer "])
async def test_a_missing_or_wrong_key_is_unauthenticated(header: str | None) -> None:
    metadata = (("authorization", header),) if header else ()
    async with serving(api_key=("secret",)) as server:
        for call, message in (
            (server.stub.Chat, request()),
            (server.stub.ChatStream, request()),
            (server.stub.ChatUpload, upload(wav_clip(), 1000)),
            (server.stub.GetModelInfo, pb.GetModelInfoRequest()),
        ):
            error = await failure(call(message, metadata=metadata))
            assert (error.code(), reason_of(error)) == (Code.UNAUTHENTICATED, "invalid_api_key")


async def test_the_right_key_is_taken() -> None:
    async with serving(api_key=("other", "secret")) as server:
        metadata = (("authorization", "bearer secret"),)
        assert (await server.stub.Chat(request(), metadata=metadata)).finish_reason == "stop"
        assert (await server.stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata)).id


async def test_a_client_over_its_rate_learns_when_to_come_back() -> None:
    async with serving(rate_limit=0.5) as server:
        await server.stub.Chat(request())
        error = await failure(server.stub.Chat(request()))
    assert (error.code(), reason_of(error)) == (Code.RESOURCE_EXHAUSTED, "rate_limited")
    assert 1.0 < details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() / 1e3 <= 2.0


async def test_a_loading_server_is_unavailable() -> None:
    async with serving(start=False) as server:
        for call, message in (
            (server.stub.Chat, request()),
            (server.stub.ChatStream, request()),
            (server.stub.ChatUpload, upload(wav_clip(), 1000)),
            (server.stub.GetModelInfo, pb.GetModelInfoRequest()),
        ):
            error = await failure(call(message))
            assert (error.code(), reason_of(error)) == (Code.UNAVAILABLE, "not_ready")
            assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_a_closed_server_is_unavailable() -> None:
    async with serving() as server:
        server.service.close()
        error = await failure(server.stub.Chat(request()))
    assert (error.code(), reason_of(error)) == (Code.UNAVAILABLE, "not_ready")


async def fill_the_queue(server: Harness) -> asyncio.Task[Any]:
    """One request takes the only place; returns its task."""
    task = asyncio.ensure_future(server.stub.Chat(request()))
    while not server.service.ledger.num_waiting:
        await asyncio.sleep(0.001)
    return task


async def test_a_refusal_is_quick_and_reads_nothing() -> None:
    """G2: under 10 ms; here for a 24 MiB message, whose serialization is the client's own time."""
    gate = asyncio.Event()
    engine = FakeEngine(gates={"start": gate})
    async with serving(engine, max_queued_requests=1) as server:
        first = await fill_the_queue(server)
        raw = server.channel.unary_unary("/wavllm.v1.SpeechChat/Chat")
        message = request(audio=pb.Audio(data=bytes(24 << 20))).SerializeToString()
        small = request().SerializeToString()
        seconds = []
        for body in (small, small, message):
            start = time.perf_counter()
            error = await failure(raw(body))
            seconds.append(time.perf_counter() - start)
            assert (error.code(), reason_of(error)) == (Code.UNAVAILABLE, "overloaded")
            assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() >= 1000
            assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1000
        assert server.service.ledger.num_bytes < 1 << 20
        gate.set()
        await first
    assert seconds[1] < 0.05
    assert seconds[2] < 0.5


async def test_a_clients_retry_policy_gets_over_a_refusal() -> None:
    """A refusal is nothing but a status that says when to come back: gRPC clients retry it by themselves."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    gate = asyncio.Event()
    async with serving(
        FakeEngine(gates={"start": gate}),
        max_queued_requests=1,
        channel_options=[("grpc.service_config", config)],
    ) as server:
        first = await fill_the_queue(server)
        second = asyncio.ensure_future(server.stub.Chat(request()))
        while not server.metrics().get("requests_rejected_total/overloaded"):
            await asyncio.sleep(0.01)
        gate.set()
        assert (await first).finish_reason == (await second).finish_reason == "stop"


async def test_a_failure_in_the_middle_of_a_stream_is_its_status() -> None:
    engine = FakeEngine(error=errors.EngineError("The engine failed on this request."), fail_after=2)
    async with serving(engine) as server:
        seen: list[str] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(server.stub.ChatStream(request()), seen)
        unary = await failure(server.stub.Chat(request()))
    assert seen == ["accepted", "delta", "delta"]
    assert (caught.value.code(), reason_of(caught.value)) == (Code.INTERNAL, "engine_error")
    assert (unary.code(), reason_of(unary)) == (Code.INTERNAL, "engine_error")


class BrokenDecoder(FakeDecoder):
    """Breaks on every clip but the warm-up's."""

    async def decode(self, data: bytes) -> Any:
        if self.num_decoded:
            raise ZeroDivisionError("a bug, with secrets")
        return await super().decode(data)


async def test_a_bug_is_internal_logged_by_id_and_never_told(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(decoder=BrokenDecoder()) as server:
        with caplog.at_level(logging.ERROR):
            for call in (server.stub.Chat, server.stub.ChatStream):
                error = await failure(call(request(request_id="mine")))
                assert (error.code(), error.details()) == (Code.INTERNAL, "internal error")
    ours = [record for record in caplog.records if record.name == "server.grpc_call"]
    assert [record.request_id for record in ours] == ["mine", "mine"]
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


async def test_a_long_message_fits_into_the_headers() -> None:
    engine = FakeEngine(refuse=errors.InvalidRequest("ü" * 20_000, param="prompt"))
    async with serving(engine) as server:
        error = await failure(server.stub.Chat(request()))
    assert error.code() is Code.INVALID_ARGUMENT
    assert error.details() == "ü" * 400


async def test_logs_hold_no_content(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serving() as server:
            await server.stub.Chat(request(prompt="SECRET-PROMPT", request_id="named"))
            await failure(server.stub.Chat(request(prompt="SECRET-PROMPT" * 400)))
    assert any(record.message == "rpc ended" and record.request_id == "named" for record in caplog.records)
    assert "SECRET" not in "".join(str(vars(record)) for record in caplog.records)
    assert "Hello" not in "".join(str(vars(record)) for record in caplog.records)
