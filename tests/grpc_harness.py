"""A real gRPC server on a free port over the fakes, and what tests ask of its clients."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from fakes import FakeDecoder, FakeEngine, make_service, make_settings, wav_clip
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from prometheus_client.parser import text_string_to_metric_families

from server.grpc_api import GrpcServer
from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub
from server.service import SpeechService

DETAIL_TYPES: tuple[type[Message], ...] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.RequestInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
)


class Harness:
    """A running server and a channel to it."""

    def __init__(
        self, service: SpeechService, server: GrpcServer, port: int, channel: grpc.aio.Channel
    ) -> None:
        self.service = service
        self.server = server
        self.target = f"127.0.0.1:{port}"
        self.channel = channel
        self.stub = SpeechChatStub(channel)

    def metrics(self) -> dict[str, float]:
        """Samples by name, with label values after a slash: `requests_cancelled_total/queued`."""
        text = self.service.metrics.render().decode()
        return {
            "/".join([sample.name.removeprefix("wavllm_"), *sample.labels.values()]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def check_idle(self) -> None:
        """Nothing is held, and every accepted request has exactly one outcome."""
        self.service.ledger.check_integrity()
        assert self.service.ledger.num_open == 0
        samples = self.metrics()
        outcomes = ("request_success_total/", "requests_failed_total/", "requests_cancelled_total/")
        ended = sum(value for name, value in samples.items() if name.startswith(outcomes))
        assert samples["requests_accepted_total"] == ended


@contextlib.asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    decoder: FakeDecoder | None = None,
    *,
    start: bool = True,
    channel_options: list[tuple[str, Any]] | None = None,
    **settings: Any,
) -> AsyncIterator[Harness]:
    """A server over the fakes; ready unless `start` is false. Checks that nothing is held at the end."""
    service = make_service(engine, decoder, **settings)
    if start:
        await service.start()
    server = GrpcServer(service, make_settings(**settings))
    port = await server.start()
    server.set_serving(start)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options) as channel:
            harness = Harness(service, server, port, channel)
            yield harness
    finally:
        await server.stop(1.0)
        await service.stop()
    harness.check_idle()


def request(**fields: Any) -> pb.ChatRequest:
    """A request for a valid clip; `generation` may be a dict."""
    given = {"prompt": "What is said?", "audio": pb.Audio(data=wav_clip()), **fields}
    if isinstance(given.get("generation"), dict):
        given["generation"] = pb.Generation(**given["generation"])
    return pb.ChatRequest(**given)


def upload(clip: bytes, size: int, **fields: Any) -> Iterator[pb.ChatUploadRequest]:
    """The messages of an upload whose chunks have `size` bytes."""
    yield pb.ChatUploadRequest(config=request(**{"audio": None, **fields}))
    for start in range(0, len(clip), size):
        yield pb.ChatUploadRequest(chunk=clip[start : start + size])


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of an error by type name; the rich status must say what the plain one does."""
    metadata = dict(error.trailing_metadata())
    rich = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (error.code().value[0], error.details())
    found: dict[str, Any] = {}
    for packed in rich.details:
        kind = next(kind for kind in DETAIL_TYPES if packed.Is(kind.DESCRIPTOR))
        found[kind.__name__] = kind()
        packed.Unpack(found[kind.__name__])
    return found


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The stable error code."""
    return str(details_of(error)["ErrorInfo"].reason)


def field_of(error: grpc.aio.AioRpcError) -> str:
    """The field at fault."""
    return str(details_of(error)["BadRequest"].field_violations[0].field)
