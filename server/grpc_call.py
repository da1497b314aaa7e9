"""One RPC from its headers on: who calls, by what name, until when; and the one way in which it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc

from server.admission import bearer_token
from server.errors import DeadlineExceeded, EngineError, InvalidRequest, NotReady, ServerError
from server.grpc_errors import status_of
from server.grpc_messages import MAX_REQUEST_ID_CHARS, is_request_id
from server.service import Reservation

logger = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_KEY = "x-request-id"
MAX_REPLY_MARGIN_S = 0.05
"""A refusal for lateness has to reach the client before its own clock runs out; so much is kept for it."""
HALF_CLOSE_S = 0.002
"""A call that is lost looks like one that half-closes, until its cancellation comes by another way of the
library. Without this pause 1 in 30 cancelled uploads went on, cut short, into the decoder."""
DRAIN_BYTES = 2**20
DRAIN_S = 1.0
"""Bounds of what is read of an upload after its refusal."""
STALL_S = 1.0
"""How long a call may hang in writes to a client that does not read: once for what it is owed after the
deadline, once for the status. The transport keeps the rest until the connection's age ends it."""


class Call:
    """What the handlers need of one RPC.

    request_id: the caller's name for it, or one made here. api_key: the bearer token, or None.
    timeout_s: seconds that the client gives, less what the reply needs; None without a deadline.
    status: how it ended; cancelled unless it got to say so.
    """

    def __init__(self, context: Context, method: str, max_s: float) -> None:
        metadata = dict(context.invocation_metadata() or ())
        given_id = metadata.get(REQUEST_ID_KEY)
        self.is_named = isinstance(given_id, str) and is_request_id(given_id)
        self.request_id = str(given_id) if self.is_named else uuid.uuid4().hex
        authorization = metadata.get("authorization")
        self.api_key = bearer_token(authorization) if isinstance(authorization, str) else None
        self.timeout_s = _less_margin(context.time_remaining())
        self.status = grpc.StatusCode.CANCELLED.name
        self._context = context
        self._method = method
        self._max_s = max_s
        self._started_at = time.monotonic()
        self._reservation: Reservation | None = None
        self._input_ended = False

    def hold(self, reservation: Reservation) -> None:
        """The call got its slot: its deadline is the client's now, and so is its name if it gave one."""
        self._reservation = reservation
        reservation.limit_time(self.timeout_s)
        if not self.is_named:
            self.request_id = reservation.request_id

    def rename(self, request_id: str) -> None:
        """Take the name that the request itself gives, if it does; it wins over the metadata's.

        Raises InvalidRequest for one that is not allowed.
        """
        if not request_id:
            return
        if not is_request_id(request_id):
            raise InvalidRequest(
                f"request_id must be 1 to {MAX_REQUEST_ID_CHARS} visible ASCII characters.",
                param="request_id",
            )
        self.request_id = request_id

    def expire(self) -> None:
        """The server cannot wait for it any longer: end it with a clean error."""
        if self._reservation is not None:
            self._reservation.expire(NotReady("The server is shutting down.", retry_after_s=1.0))

    async def read(self, within_s: float | None = None) -> bytes | None:
        """The next message's bytes; None after the last one. Raises DeadlineExceeded if it takes longer."""
        try:
            async with asyncio.timeout(within_s):
                message = await self._context.read()
        except TimeoutError as error:
            raise DeadlineExceeded(f"No message came within {within_s:g} s.") from error
        if isinstance(message, bytes):
            return message
        self._input_ended = True
        await asyncio.sleep(HALF_CLOSE_S)
        return None

    def grace_s(self, max_s: float) -> float:
        """How long a refusal may be held back: half of what the client still waits, at most `max_s`."""
        client_s = self._context.time_remaining()
        return max_s if client_s is None else min(max_s, client_s / 2)

    async def drain(self) -> None:
        """Read on for a moment and throw it away, before a refusal ends the call: grpc.aio's clients report
        INTERNAL in place of the status if that finds them in the middle of a write (grpc/grpc#36066)."""
        num_bytes = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._input_ended and num_bytes < DRAIN_BYTES:
                    num_bytes += len(await self.read() or b"")

    async def write(self, message: Any) -> None:
        """Send one message; returns when the transport has taken it, so a slow reader slows its writer."""
        await self._context.write(message)

    async def send_headers(self) -> None:
        """Open the reply. Only once the request is accepted: a reply that is nothing but a status may be
        tried again by the client's own retry policy, one with headers may not."""
        await self._context.send_initial_metadata(((REQUEST_ID_KEY, self.request_id),))

    async def run(self, handler: Callable[[Call], Awaitable[T]]) -> T:
        """Run the handler; what goes wrong in it becomes a status, never UNKNOWN, never a traceback."""
        try:
            answer = await self._run_bounded(handler)
        except ServerError as error:
            await self._abort(error)
        except grpc.aio.InternalError as error:
            raise asyncio.CancelledError from error  # a batch fails only on a call that is over
        except Exception:
            logger.exception("request failed unexpectedly", extra={"request_id": self.request_id})
            await self._abort(EngineError("internal error"))
        self.status = grpc.StatusCode.OK.name
        return answer

    async def _run_bounded(self, handler: Callable[[Call], Awaitable[T]]) -> T:
        """The reservation's deadline bounds all but a write that the client does not take."""
        allowed_s = self._max_s if self.timeout_s is None else min(self._max_s, self.timeout_s)
        try:
            async with asyncio.timeout(allowed_s + STALL_S):
                return await handler(self)
        except TimeoutError as error:
            raise DeadlineExceeded("The client did not take the answer in time.") from error

    async def _abort(self, error: ServerError) -> NoReturn:
        status = status_of(error, self.request_id)
        self.status = status.code.name
        try:
            async with asyncio.timeout(STALL_S):
                await self._context.abort(status.code, status.message, status.trailing_metadata)
        except (TimeoutError, grpc.aio.InternalError) as failure:
            raise asyncio.CancelledError from failure  # the client does not read, or is gone

    def log(self) -> None:
        """The call's one line, for when it is over: no answer waits for it."""
        fields = {
            "request_id": self.request_id,
            "method": self._method,
            "status": self.status,
            "duration_ms": round((time.monotonic() - self._started_at) * 1e3, 1),
        }
        logger.info("rpc ended", extra=fields)


def _less_margin(client_s: float | None) -> float | None:
    """The client's time without the reply's margin; never 0, for that would read as a bad field."""
    if client_s is None:
        return None
    return max(client_s - min(MAX_REPLY_MARGIN_S, client_s / 10), 1e-6)
