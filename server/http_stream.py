"""Sending an answer while watching the client: whole, or as server-sent events with keep-alives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import RequestCancelled, ServerError
from server.http_errors import dump_json, error_body
from server.http_middleware import Trace
from server.http_replies import Answer
from server.service import ChatStream
from server.types import Delta

Result = TypeVar("Result")

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
STALL_TIMEOUT_S = 60.0
"""How long one write may wait for a client that does not read."""

Events = Callable[[Delta | None], bytes]
"""Server-sent events for one delta, none at all for some; None stands for the end."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` until the client leaves. Raises RequestCancelled then, with the work cancelled and ended."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestCancelled("The client went away.")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(stream: ChatStream, add: Callable[[Delta], None], trace: Trace) -> None:
    """Take the whole answer. Aborts the request if it is left before the end."""
    async with stream:
        async for delta in stream:
            add(delta)
    note_end(stream, trace)


def note_end(stream: ChatStream, trace: Trace) -> None:
    """Counts and durations for the access line."""
    if stream.finished is not None and stream.timings is not None:
        trace.fields["completion_tokens"] = stream.finished.usage.completion_tokens
        trace.fields["finish_reason"] = stream.finished.finish_reason
        trace.fields["queue_ms"] = round(stream.timings.queue_ms, 2)
        trace.fields["ttft_ms"] = round(stream.timings.ttft_ms, 2)


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event. JSON keeps line breaks escaped, so one line is one event."""
    return b"data: " + dump_json(data) + b"\n\n"


def chat_events(stream: ChatStream, answer: Answer, *, include_usage: bool) -> tuple[bytes, Events]:
    """First event of a chat stream, and the events of each delta and of the end."""

    def events(delta: Delta | None) -> bytes:
        if delta is not None:
            chunk = answer.delta_chunk(delta)
            return event(chunk) if chunk else b""
        usage = event(answer.usage_chunk(stream)) if include_usage else b""
        return event(answer.finish_chunk(stream)) + usage + DONE

    return event(answer.role_chunk()), events


class EventStream(Response):
    """An accepted request's answer as server-sent events.

    first: sent at once. keepalive_s: seconds between comment lines, from acceptance on.
    """

    media_type = "text/event-stream"

    def __init__(
        self, stream: ChatStream, first: bytes, events: Events, *, keepalive_s: float, trace: Trace
    ) -> None:
        self._stream = stream
        self._first = first
        self._make_events = events
        self._keepalive_s = keepalive_s
        self._trace = trace
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    def init_headers(self, headers: Any = None) -> None:
        """As any response, but without a length."""
        super().init_headers(headers)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, an error, or the client's departure."""
        async with self._stream:
            try:
                await while_connected(receive, self._send_all(send))
            except RequestCancelled:
                self._trace.is_gone = True
            except TimeoutError:
                self._trace.is_gone = True  # it stopped reading; the connection is dropped unfinished

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data, is_last in self._pieces():
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def _pieces(self) -> AsyncIterator[tuple[bytes, bool]]:
        """What is written at a time, and whether it is the last.

        The end is one write with the delta before it, if both are there: each write costs 0.1 to 0.2 ms.
        """
        yield self._first, False
        data = b""
        next_comment = time.monotonic() + self._keepalive_s
        while not self._stream.is_exhausted:
            if data:
                yield data, False
            try:
                async with asyncio.timeout(next_comment - time.monotonic()):
                    data = self._make_events(await anext(self._stream))
            except TimeoutError:
                next_comment += self._keepalive_s
                data = KEEP_ALIVE
            except StopAsyncIteration:
                data = b""
                break
            except ServerError as error:
                self._trace.error_code = error.code
                yield event(error_body(error)), True
                return
        note_end(self._stream, self._trace)
        yield data + self._make_events(None), True
