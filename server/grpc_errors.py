"""The error table for gRPC: a ServerError becomes a status with google.rpc details. The only mapping.

Nothing here sends; `server.grpc_call` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from server.errors import (
    AuthenticationError,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    RequestCancelled,
    RetryableError,
    ServerError,
    UnsupportedAudio,
)

DOMAIN = "wavllm"
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_CHARS = 400
"""Statuses travel in headers, which clients cap at 8 KiB; a character may take 12 bytes there."""

STATUS_CODES: dict[type[ServerError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnsupportedAudio: grpc.StatusCode.INVALID_ARGUMENT,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    PayloadTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Overloaded: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
    EngineError: grpc.StatusCode.INTERNAL,
    ServerError: grpc.StatusCode.INTERNAL,
}
"""Classes that are not named here share the status of their nearest base."""


@dataclass(frozen=True, slots=True)
class CallStatus:
    """What `context.abort` takes."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def status_of(error: ServerError, request_id: str) -> CallStatus:
    """The status for `error`: code, message, and google.rpc details in the trailing metadata."""
    code = next(STATUS_CODES[cls] for cls in type(error).__mro__ if cls in STATUS_CODES)
    message = error.message[:MAX_MESSAGE_CHARS]
    rich = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error, request_id):
        rich.details.add().Pack(detail)
    details_metadata = tuple(rpc_status.to_status(rich).trailing_metadata)
    own_metadata = (("x-request-id", request_id), *_pushback(error))
    return CallStatus(code, message, details_metadata + own_metadata)


def _details(error: ServerError, request_id: str) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.param, description=error.message[:MAX_MESSAGE_CHARS]
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, RetryableError):
        details.append(_retry_info(error.retry_after_s))
    return details


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(math.ceil(seconds * 1000))
    return info


def _pushback(error: ServerError) -> tuple[tuple[str, str], ...]:
    """What a client's own retry policy listens to (gRFC A6); RetryInfo is for the application."""
    if not isinstance(error, RetryableError):
        return ()
    return (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))),)
