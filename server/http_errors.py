"""The error tree on HTTP: one status and one `type` per code, one body shape on every route."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.errors import (
    AuthenticationError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    InvalidAudio,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    RequestCancelled,
    RetryableError,
    ServerError,
    UnsupportedAudio,
)

_INVALID = "invalid_request_error"
_STATUS: dict[str, tuple[int, str]] = {
    InvalidRequest.code: (400, _INVALID),
    InvalidAudio.code: (400, _INVALID),
    ContextLengthExceeded.code: (400, _INVALID),
    AuthenticationError.code: (401, "authentication_error"),
    ModelNotFound.code: (404, _INVALID),
    PayloadTooLarge.code: (413, _INVALID),
    UnsupportedAudio.code: (415, _INVALID),
    RateLimited.code: (429, "rate_limit_error"),
    RequestCancelled.code: (499, "cancelled_error"),
    EngineError.code: (500, "server_error"),
    ServerError.code: (500, "server_error"),
    Overloaded.code: (503, "overloaded_error"),
    NotReady.code: (503, "overloaded_error"),
    DeadlineExceeded.code: (504, "timeout_error"),
}
_FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


class JsonResponse(Response):
    """UTF-8 JSON with characters as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The value as compact JSON."""
        return dump_json(content)


def dump_json(value: Any) -> bytes:
    """Compact UTF-8 JSON; raises ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def status_of(error: ServerError) -> int:
    """The HTTP status of an error."""
    return _STATUS.get(error.code, _STATUS[ServerError.code])[0]


def error_body(error: ServerError) -> dict[str, Any]:
    """`{"error": {...}}`, also for the middle of a stream."""
    kind = _STATUS.get(error.code, _STATUS[ServerError.code])[1]
    return _body(error.message, kind, error.param, error.code)


def error_response(error: ServerError) -> Response:
    """The response that tells a client of this error."""
    headers = {}
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, RetryableError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, DeadlineExceeded):
        # OpenAI's clients would ask twice more, each time for as long, of a server that may be overloaded.
        headers["x-should-retry"] = "false"
    return JsonResponse(error_body(error), status_of(error), headers)


async def handle_server_error(request: Request, error: Exception) -> Response:
    """Exception handler for the error tree."""
    known = error if isinstance(error, ServerError) else ServerError("The server failed on this request.")
    request.state.trace.error_code = known.code
    return error_response(known)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Exception handler for what the framework refuses: unknown routes and methods."""
    if not isinstance(error, HTTPException):
        return await handle_server_error(request, error)
    kind = _INVALID if error.status_code < 500 else "server_error"
    code = _FRAMEWORK_CODES.get(error.status_code, InvalidRequest.code)
    request.state.trace.error_code = code
    return JsonResponse(_body(_message(request, error), kind, None, code), error.status_code, error.headers)


def _message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return "There is no such route."
    if error.status_code == 405:
        return f"This route does not take {request.method}."
    return str(error.detail)


def _body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
