"""The answer to one accepted request, read from the engine by a task of its own.

The task, not the reader, follows the engine: a client that stalls in the middle of its stream neither
holds a place past the deadline nor bends the timings.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from server.errors import EngineError, RequestCancelled, ServerError
from server.metrics import Metrics, Outcome
from server.reservation import Reservation
from server.types import Accepted, AudioInfo, Delta, Engine, Event, Failed, Finished, Stage, StageChanged

logger = logging.getLogger(__name__)

ABORT_TIMEOUT_S = 1.0
"""How long ending a request may take before a stuck engine is left to itself."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one request; ttft and total count from the slot, so they include the upload.

    decode_ms includes the wait for a decoding worker; queue_ms is the wait in the engine, after decoding.
    """

    queue_ms: float
    decode_ms: float
    encode_ms: float
    ttft_ms: float
    total_ms: float


class EngineCall:
    """One `Engine.generate`, with an `aclose` that always aborts and never hangs."""

    def __init__(self, engine: Engine, request_id: str, events: AsyncIterator[Event]) -> None:
        self._engine = engine
        self._request_id = request_id
        self._events = events

    async def next_event(self) -> Event:
        """The next event. Raises EngineError if the engine stops in the middle."""
        try:
            return await anext(self._events)
        except StopAsyncIteration as error:
            raise EngineError("The engine ended the request without an answer.") from error

    async def aclose(self) -> None:
        """Abort in the engine and close the iterator; gives up on a stuck engine after a second."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                close = getattr(self._events, "aclose", None)
                if close is not None:
                    await close()
                await self._engine.abort(self._request_id)
        except TimeoutError:
            logger.warning("engine did not take an abort in time", extra={"request_id": self._request_id})


class ChatStream:
    """Async iterator of `Delta`; raises the ServerError that ends the request, if one does.

    audio: the clip as received, None without one. decode_s: seconds its decoding took.
    finished, timings: set once the iterator is exhausted without an error.
    """

    def __init__(
        self,
        call: EngineCall,
        reservation: Reservation,
        metrics: Metrics,
        audio: AudioInfo | None,
        decode_s: float,
    ) -> None:
        self.audio = audio
        self.finished: Finished | None = None
        self.timings: Timings | None = None
        self._call = call
        self._reservation = reservation
        self._metrics = metrics
        self._decode_s = decode_s
        self._last_token_at: float | None = None
        self._first_token_s: float | None = None
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._error: ServerError | None = None
        self._accepted: Accepted | None = None
        self._is_answered = asyncio.Event()
        self._task = asyncio.create_task(self._follow(), name=self.request_id)

    @property
    def request_id(self) -> str:
        """The server's own id of the request."""
        return self._reservation.request_id

    @property
    def accepted(self) -> Accepted:
        """The engine's first event; known once `wait_accepted` has returned."""
        if self._accepted is None:
            raise RuntimeError("the engine has not accepted the request yet")
        return self._accepted

    async def wait_accepted(self) -> None:
        """Return when the engine takes the request. Raises its refusal; aborts on every other way out."""
        try:
            await self._is_answered.wait()
            if self._accepted is None and self._error is not None:
                raise self._error
        except BaseException:
            await self.aclose()
            raise

    @property
    def done(self) -> asyncio.Task[None]:
        """The task that follows the engine; the service keeps it alive."""
        return self._task

    @property
    def is_exhausted(self) -> bool:
        """Whether the answer has ended well and its last delta was read."""
        return self.finished is not None and self._deltas.qsize() == 1  # the mark of its end alone

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        delta = await self._deltas.get()
        if delta is not None:
            return delta
        self._deltas.put_nowait(None)
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort in the engine and give back the place; counts as cancelled if it had not ended."""
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _follow(self) -> None:
        """Take events until the end, whatever it is; the outcome is counted before the reader learns it."""
        try:
            async with self._reservation.before_deadline():
                while self.finished is None:
                    self._take(await self._call.next_event())
        except ServerError as error:
            self._end(error)
        except asyncio.CancelledError:
            self._end(RequestCancelled("The client went away."))
            raise
        except Exception:
            logger.exception("engine call broke", extra={"request_id": self.request_id})
            self._end(EngineError("The engine failed on this request."))
        finally:
            if self._error is not None:
                await self._call.aclose()

    def _end(self, error: ServerError) -> None:
        self._error = error
        self._reservation.fail(error)
        self._is_answered.set()
        self._deltas.put_nowait(None)

    def _take(self, event: Event) -> None:
        match event:
            case Failed(error=error):
                raise error
            case Accepted() if self._accepted is None:
                self._take_accepted(event)
            case _ if self._accepted is None:
                raise EngineError("The engine answered before it accepted the request.")
            case StageChanged(stage=stage):
                self._reservation.enter(stage)
                if stage is Stage.PREFILLING and self._accepted is not None:
                    self._metrics.prefilling(self._accepted.prompt_tokens)
            case Delta():
                self._take_delta(event)
            case Finished():
                self._take_finished(event)
            case Accepted():
                raise EngineError("The engine accepted a request twice.")

    def _take_accepted(self, accepted: Accepted) -> None:
        """The engine holds the waveform now; it is its to bound."""
        self._accepted = accepted
        self._reservation.resize_bytes(0)
        self._is_answered.set()

    def _take_delta(self, delta: Delta) -> None:
        if delta.token_ids:
            self._time_tokens(len(delta.token_ids))
        self._deltas.put_nowait(delta)

    def _time_tokens(self, num_tokens: int) -> None:
        now = time.monotonic()
        if self._last_token_at is None:
            self._first_token_s = now - self._reservation.started_at
            self._metrics.first_token(self._first_token_s)
        else:
            self._metrics.next_tokens(num_tokens, now - self._last_token_at)
        self._last_token_at = now
        self._metrics.generated(num_tokens)

    def _take_finished(self, finished: Finished) -> None:
        total_s = time.monotonic() - self._reservation.started_at
        first_s = self._first_token_s if self._first_token_s is not None else total_s
        engine = finished.timings
        self.timings = Timings(
            engine.queue_ms, self._decode_s * 1e3, engine.encode_ms, first_s * 1e3, total_s * 1e3
        )
        self.finished = finished
        self._metrics.answered(
            total_s=total_s, queue_s=engine.queue_ms / 1e3, audio_s=self._reservation.audio_s
        )
        self._reservation.finish(Outcome.success(finished.finish_reason))
        self._deltas.put_nowait(None)
