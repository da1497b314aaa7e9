"""What runs inside Serve's proxies: answers that Serve makes by itself get the shape of ours.

Serve refuses for back-pressure and reports a lost replica in its own words. Here they become the errors that
clients know, over HTTP (`http_middlewares`) and gRPC (`add_speech_chat`). Ray itself is not imported here.
"""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import DeadlineExceeded, EngineError, NotReady, Overloaded, ServerError
from server.grpc_errors import DETAILS_KEY, status_of
from server.grpc_servicer import SERVICE_NAME
from server.http_errors import dump_json, error_body, error_response
from server.pb import speech_pb2 as pb

REQUEST_ID = "x-request-id"
RETRY_AFTER_S = 1.0
"""Serve knows no drain rate; its router tries a free place again within a second."""

Handler = Callable[..., Any]

_KINDS: dict[tuple[bool, bool], Callable[[Any], Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether the client streams, and whether the server does."""


def http_middlewares() -> list[Middleware]:
    """Serve calls this in each proxy, where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it."""
    return [Middleware(ServeErrors)]


def lost() -> ServerError:
    """The replica died, or was killed, with this request."""
    return EngineError("The replica that ran this request was lost.")


def full() -> ServerError:
    """Every replica and the proxy's own queue are full."""
    return Overloaded("Every replica is busy and the queue is full.", retry_after_s=RETRY_AFTER_S)


def absent() -> ServerError:
    """The application is not deployed, or not yet."""
    return NotReady("No replica is ready.", retry_after_s=RETRY_AFTER_S)


def late() -> ServerError:
    """Serve's own end-to-end timeout."""
    return DeadlineExceeded("The request waited past its deadline.")


class ServeErrors:
    """The outermost ASGI layer of a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; Serve's own routes (`/-/healthz`) stay as they are."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        reply = _Reply(scope, receive, send)
        await self._app(scope, receive, reply.send)
        await reply.finish()


class _Reply:
    """One response on its way out: what Serve made is replaced, what broke off is ended."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._has_started = False
        self._has_ended = False
        self._is_stream = False

    async def send(self, message: Message) -> None:
        """Pass a message on, unless it belongs to an answer that was replaced."""
        if self._has_ended:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        self._has_ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """The proxy is through with it: an answer that broke off ends with an error."""
        if not self._has_started:
            await self._refuse(lost(), _new_id())
        elif self._is_stream and not self._has_ended:
            body = b"data: " + dump_json(error_body(lost())) + b"\n\n"
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, message: Message) -> None:
        self._has_started = True
        headers = MutableHeaders(scope=message)
        error = serve_error(message["status"], headers)
        if error is not None:
            await self._refuse(error, headers.get(REQUEST_ID) or _new_id())
            return
        self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        if REQUEST_ID in headers:
            headers[REQUEST_ID] = headers[REQUEST_ID]  # Serve adds a second one; this keeps the first alone
        await self._send(message)

    async def _refuse(self, error: ServerError, request_id: str) -> None:
        response = error_response(error)
        response.headers[REQUEST_ID] = request_id
        await response(self._scope, self._receive, self._send)
        self._has_ended = True


def serve_error(status: int, headers: MutableHeaders) -> ServerError | None:
    """The error that a response of Serve's own stands for; None for one of ours, whose errors are JSON."""
    if status < 400 or not headers.get("content-type", "").startswith("text/plain"):
        return None
    if status == 503 and "retry-after" in headers:
        return full()
    return {404: absent(), 408: late(), 503: absent()}.get(status, lost())


def add_speech_chat(servicer: Any, server: Any) -> None:
    """What `grpc_options.grpc_servicer_functions` names: the methods of SpeechChat, routed by Serve.

    Serve's server makes a handler of its own for each; here each is wrapped. Requests stay raw bytes, as
    `server.grpc_servicer` reads them: the proxy need not parse them, nor pickle can the generated classes.
    """
    methods = {
        method.name: _KINDS[method.client_streaming, method.server_streaming](getattr(servicer, method.name))
        for method in pb.DESCRIPTOR.services_by_name["SpeechChat"].methods
    }
    make = server.service_handler_factory
    server.service_handler_factory = functools.partial(_make_handler, make)
    try:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, methods),))
    finally:
        server.service_handler_factory = make


def _make_handler(make: Callable[..., Handler], **kind: Any) -> Handler:
    handler = make(**kind)
    return _stream_handler(handler) if inspect.isasyncgenfunction(handler) else _unary_handler(handler)


def _unary_handler(handler: Callable[[Any, Any], Awaitable[bytes]]) -> Handler:
    async def relay(request: Any, context: Any) -> bytes:
        answer = await handler(request, context)
        translate_status(context)
        return answer

    return relay


def _stream_handler(handler: Callable[[Any, Any], AsyncIterator[bytes]]) -> Handler:
    async def relay(request: Any, context: Any) -> AsyncIterator[bytes]:
        async for message in handler(request, context):
            if not context.code():  # a refusal reaches the proxy on an empty message, which nobody should see
                yield message
        translate_status(context)

    return relay


def translate_status(context: Any) -> None:
    """Give a status of Serve's own the code and the details that ours have."""
    sent = dict(context.trailing_metadata() or ())
    error = None if DETAILS_KEY in sent else _error_of(context.code())
    if error is None:
        return
    asked = dict(context.invocation_metadata() or ())
    status = status_of(error, str(asked.get(REQUEST_ID) or sent.get("request_id") or _new_id()))
    context.set_code(status.code)
    context.set_details(status.message)
    context.set_trailing_metadata(status.trailing_metadata)


def _error_of(code: Any) -> ServerError | None:
    """None where nothing failed, or the client left. code: a StatusCode, or its number."""
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    if number in (grpc.StatusCode.OK.value[0], grpc.StatusCode.CANCELLED.value[0], None):
        return None
    errors = {
        grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: full(),
        grpc.StatusCode.UNAVAILABLE.value[0]: absent(),
        grpc.StatusCode.NOT_FOUND.value[0]: absent(),
        grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: late(),
    }
    return errors.get(number, lost())


def _new_id() -> str:
    return uuid.uuid4().hex
