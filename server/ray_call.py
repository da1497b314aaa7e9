"""gRPC calls in a replica of Ray Serve: the methods of `server.grpc_servicer`, over Serve's kind of context.

Serve's proxy reads the requests, as raw bytes (`server.ray_ingress`), and writes the answers that a replica
yields. Ray itself is not imported here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import grpc

from server.grpc_call import Context
from server.grpc_servicer import SERVICE_NAME, SpeechChat

Metadata = Sequence[tuple[str, str | bytes]]


class Refused(Exception):
    """The call ended with a status, which stands in its context."""


class ServeContext(Protocol):
    """What is used of Serve's own context. A status set on it travels with the next message alone."""

    def invocation_metadata(self) -> Metadata:
        """The client's metadata."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status."""

    def set_details(self, details: str) -> None:
        """Its message."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        """What the client gets at the end."""


class Requests(Protocol):
    """Serve's stream of a client's messages."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """One by one; ends at the half-close, and when the client is gone."""

    def is_cancelled(self) -> bool:
        """Whether the client is gone."""


@dataclass(frozen=True, slots=True)
class _Details(grpc.HandlerCallDetails):
    method: str
    invocation_metadata: Any = ()


class ReplicaCalls:
    """Runs the handlers of a SpeechChat on what Serve hands to a replica."""

    def __init__(self, chat: SpeechChat) -> None:
        self._handlers = chat.rpc_handler()

    async def unary(self, method: str, request: bytes, context: ServeContext) -> Any | None:
        """The answer of a unary method; None for a refusal, whose status then stands in the context."""
        call = ReplicaContext(context, single(request))
        return await call.run(self._handler(method).stream_unary)

    async def stream(
        self, method: str, requests: AsyncIterator[bytes], context: ServeContext
    ) -> AsyncIterator[Any]:
        """The events of a streaming method; None as the last one stands for a refusal."""
        call = ReplicaContext(context, requests)
        running = asyncio.create_task(call.run(self._handler(method).stream_stream))
        try:
            async for event in call.events():
                yield event
            await running
            if call.is_refused:
                yield None
        finally:
            running.cancel()
            await asyncio.wait([running])

    def _handler(self, method: str) -> Any:
        return self._handlers.service(_Details(f"/{SERVICE_NAME}/{method}"))


class ReplicaContext:
    """What `server.grpc_call` needs of grpc.aio's context.

    Serve tells a replica neither the client's deadline nor lets it send initial metadata: a call past its
    deadline is cancelled by the proxy, and what would open the reply ends it instead.
    """

    def __init__(self, given: ServeContext, requests: AsyncIterator[bytes]) -> None:
        self.is_refused = False
        self._given = given
        self._requests = requests
        # Unbounded, for Serve takes every event at once: an answer is bounded by its number of tokens.
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._callbacks: list[Callable[[Any], None]] = []

    async def run(self, behave: Callable[..., Any]) -> Any | None:
        """Run a handler to its end; its answer, or None if it refused or streams."""
        try:
            return await behave(None, cast(Context, self))
        except Refused:
            self.is_refused = True
            return None
        finally:
            self._events.put_nowait(None)
            for callback in self._callbacks:
                callback(self)

    async def events(self) -> AsyncIterator[Any]:
        """What the handler writes, until its end."""
        while (event := await self._events.get()) is not None:
            yield event

    def invocation_metadata(self) -> Metadata:
        """The client's metadata."""
        return self._given.invocation_metadata()

    def time_remaining(self) -> None:
        """Unknown here; the proxy keeps the client's deadline."""

    async def read(self) -> Any:
        """The next message, or None after the last one."""
        return await anext(self._requests, None)

    async def write(self, message: Any) -> None:
        """Hand an event on."""
        self._events.put_nowait(message)

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Comes at the end of the call."""
        self._given.set_trailing_metadata(list(metadata))

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata) -> NoReturn:
        """Set the status and leave the handler."""
        self._given.set_code(code)
        self._given.set_details(details)
        self._given.set_trailing_metadata(list(trailing_metadata))
        raise Refused

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Called when the handler has ended."""
        self._callbacks.append(callback)


async def single(request: bytes) -> AsyncIterator[bytes]:
    """A request as the stream that handlers read."""
    yield request


async def pieces(requests: Requests) -> AsyncIterator[bytes]:
    """The messages of an upload. Raises CancelledError if the client left, for a cut clip is no clip."""
    async for request in requests:
        yield request
    if requests.is_cancelled():
        raise asyncio.CancelledError
