"""What every HTTP exchange gets: an id, a drained body after a refusal, a JSON 500, one access line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ServerError
from server.http_errors import error_response
from server.logs import log_request

logger = logging.getLogger(__name__)

MAX_REQUEST_ID_CHARS = 128
MAX_DRAIN_BYTES = 2**20
MAX_DRAIN_S = 1.0
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics", "/v1/load", "/v1/models"})


@dataclass(slots=True)
class Trace:
    """What the access line tells of a request. fields: more of them, set by the route."""

    request_id: str
    error_code: str | None = None
    is_gone: bool = False
    fields: dict[str, object] = field(default_factory=dict)


def request_id_of(headers: Headers) -> str:
    """The client's own `x-request-id` if it is 1 to 128 printable ASCII characters, else a new one."""
    sent = headers.get("x-request-id", "")
    is_sane = 0 < len(sent) <= MAX_REQUEST_ID_CHARS and sent.isascii() and sent.isprintable()
    return sent if is_sane and sent == sent.strip() else uuid.uuid4().hex


class ExchangeMiddleware:
    """The outermost ASGI layer. is_draining: whether connections should be closed after their answer."""

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool]) -> None:
        self._app = app
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, whatever the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._is_draining())
        scope.setdefault("state", {})["trace"] = exchange.trace
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            exchange.trace.is_gone = True
            raise
        except Exception:
            logger.exception("request failed", extra={"request_id": exchange.trace.request_id})
            await exchange.send_failure(scope)
        finally:
            exchange.log(scope)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, is_draining: bool) -> None:
        headers = Headers(scope=scope)
        self.trace = Trace(request_id_of(headers))
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._is_draining = is_draining
        self._start = time.monotonic()
        self._length = _content_length(headers)
        self._has_body = "transfer-encoding" in headers or self._length != 0
        self._expects_100 = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        """Pass a message on, noting the end of the body."""
        message = await self._receive()
        self._expects_100 = False  # uvicorn has told the client to go on
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._has_body = False
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on; add the id to the head, drain the body before the end of a refusal."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._finish_head(MutableHeaders(scope=message))
        elif self._must_drain(message):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _finish_head(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.trace.request_id
        if self._is_draining or (self._is_refusal and self._has_body and not self._is_short):
            headers["connection"] = "close"

    @property
    def _is_refusal(self) -> bool:
        return self.status is not None and self.status >= 400

    @property
    def _is_short(self) -> bool:
        """Whether all of the body will come and can be drained, so that the connection lives on."""
        return self._length is not None and self._length <= MAX_DRAIN_BYTES and not self._expects_100

    def _must_drain(self, message: Message) -> bool:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        return is_last and self._is_refusal and self._has_body and not self._expects_100

    async def _drain(self) -> None:
        num_bytes = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_DRAIN_S):
                while self._has_body and num_bytes <= MAX_DRAIN_BYTES:
                    num_bytes += len((await self.receive()).get("body", b""))

    async def send_failure(self, scope: Scope) -> None:
        """Tell the client of a bug as of any other error, if nothing was sent yet."""
        self.trace.error_code = ServerError.code
        if self.status is None:
            response = error_response(ServerError("The server failed on this request."))
            await response(scope, self.receive, self.send)

    def log(self, scope: Scope) -> None:
        """The access line; probes only when debugging."""
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        log_request(
            level=logging.DEBUG if route in _PROBES else logging.INFO,
            request_id=self.trace.request_id,
            method=scope["method"],
            route=route,
            status=499 if self.trace.is_gone else self.status,
            error_code=self.trace.error_code,
            duration_ms=round((time.monotonic() - self._start) * 1e3, 2),
            **self.trace.fields,
        )


def _content_length(headers: Headers) -> int | None:
    """The declared length; None when the body comes in chunks."""
    if "transfer-encoding" in headers:
        return None
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else None
