"""One request's hold on the server, from the headers to its one outcome."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Self

from server.admission import Ledger, Slot
from server.errors import DeadlineExceeded, RequestCancelled, ServerError
from server.metrics import INTERNAL_ERROR, Metrics, Outcome
from server.types import Stage


class Reservation:
    """A slot in the ledger. Ends in exactly one outcome: the first that `finish` is told.

    As a context manager it finishes with the exception that leaves the block, if one does.
    """

    def __init__(
        self,
        ledger: Ledger,
        slot: Slot,
        metrics: Metrics,
        *,
        transport: str,
        timeout_s: float,
        on_finish: Callable[[Reservation], None],
    ) -> None:
        self.request_id = f"chatcmpl-{uuid.uuid4().hex}"
        self.transport = transport
        self.stage = Stage.RECEIVING
        self.audio_s = 0.0
        self.started_at = time.monotonic()
        self.deadline = self.started_at + timeout_s
        self.outcome: Outcome | None = None
        self._ledger = ledger
        self._slot = slot
        self._metrics = metrics
        self._on_finish = on_finish
        self._scopes: set[asyncio.Timeout] = set()
        self._ended_by: ServerError | None = None
        self._follower: asyncio.Task[None] | None = None
        metrics.accepted()

    def follow_with(self, task: asyncio.Task[None]) -> None:
        """The task that reads the engine; it ends when an exception leaves the `with` block."""
        self._follower = task

    def resize_bytes(self, num_bytes: int) -> None:
        """Hold this many bytes from now on. Raises Overloaded if that is more and does not fit."""
        self._ledger.resize_bytes(self._slot, num_bytes)

    def reserve_audio(self, seconds: float) -> None:
        """Count the decoded clip. Raises Overloaded when too many seconds wait."""
        self._ledger.reserve_audio(self._slot, seconds)

    def enter_queue(self) -> None:
        """The engine is given the request."""
        self.stage = Stage.QUEUED
        self._ledger.enter_queue(self._slot)

    def enter(self, stage: Stage) -> None:
        """The engine moved the request into this stage; it waits no more."""
        self.stage = stage
        self._ledger.leave_queue(self._slot)

    def limit_time(self, timeout_s: float | None) -> None:
        """Bring the deadline forward to this long after the start; it never moves back."""
        if timeout_s is not None:
            self.deadline = min(self.deadline, self.started_at + timeout_s)

    @contextlib.asynccontextmanager
    async def before_deadline(self) -> AsyncIterator[None]:
        """Run the block until the deadline at most. Raises DeadlineExceeded, or what `expire` was given."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()) as scope:
                self._scopes.add(scope)
                if self._ended_by is not None:
                    scope.reschedule(0.0)
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise self._ended_by or _deadline_exceeded() from error
        finally:
            self._scopes.discard(scope)

    def expire(self, error: ServerError) -> None:
        """End every block under `before_deadline` with this error, now."""
        self._ended_by = error
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(0.0)

    def finish(self, outcome: Outcome) -> None:
        """Give back all that is held and count the outcome; later calls change nothing."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        self._ledger.release(self._slot, completed=outcome.kind == "success")
        self._metrics.ended(outcome, self.audio_s)
        self._on_finish(self)

    def fail(self, error: BaseException) -> None:
        """Finish as this exception says: a departed client is a cancellation, all else a failure."""
        if isinstance(error, RequestCancelled | asyncio.CancelledError | GeneratorExit):
            self.finish(Outcome.cancelled(self.stage))
        else:
            self.finish(Outcome.failed(error.code if isinstance(error, ServerError) else INTERNAL_ERROR))

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Finish with whatever exception leaves the block."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
            if self._follower is not None:
                self._follower.cancel()


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("The request did not end before its deadline.")
