"""What every engine shows the service, whoever does the work: streams by request, newest numbers, state."""

from __future__ import annotations

import abc
import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator

from server.engine.mailbox import Mailboxes
from server.errors import EngineError, NotReady, ServerError
from server.types import (
    EncoderRun,
    EngineState,
    EngineStats,
    Event,
    GenerateRequest,
    Health,
    ModelInfo,
    StepOutput,
)

MAX_ENCODER_RUNS = 4096
"""Encoder passes kept for the histograms when nobody collects them; older ones are forgotten."""
STOPPED_MESSAGE = "the engine stopped before this request was finished; please retry"


class EngineFront(abc.ABC):
    """The half of `Engine` that `LocalEngine` and `EngineProcess` share. All of it belongs to the event loop.

    Subclasses bring step outputs to `_deliver` by one call a step, and take submissions and aborts.
    """

    def __init__(self) -> None:
        self._mailboxes = Mailboxes()
        self._stats = EngineStats()
        self._encoder_runs: deque[EncoderRun] = deque(maxlen=MAX_ENCODER_RUNS)
        self._info: ModelInfo | None = None
        self._state = EngineState.STARTING
        self._detail = "not started"
        self._lost_at: float | None = None
        self._loaded: asyncio.Future[None] | None = None

    @property
    def info(self) -> ModelInfo:
        """Facts of the loaded model. Raises NotReady before it has been loaded once."""
        if self._info is None:
            raise self._not_ready()
        return self._info

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Submit; yields as `Engine.generate` says. A reader that lags gets its deltas joined.

        Leave early through `aclose` (or `contextlib.aclosing`) or by cancelling the task: the request is
        aborted at once.
        """
        return self._mailboxes.stream(request, self._submit_if_ready, self._abort)

    async def abort(self, request_id: str) -> None:
        """End a request early: its stream ends with RequestCancelled. Unknown ids are ignored."""
        if request_id in self._mailboxes:
            self._abort(request_id)
            self._mailboxes.cancel(request_id)

    def health(self) -> Health:
        """State and reason. The heartbeat's age is 0 unless ready: loading gives no heartbeat."""
        heard = self._last_heard() if self._state is EngineState.READY else None
        age_s = 0.0 if heard is None else max(0.0, time.monotonic() - heard)
        lost_s = 0.0 if self._lost_at is None else time.monotonic() - self._lost_at
        return Health(self._state, age_s, self._detail, lost_s)

    def stats(self) -> EngineStats:
        """The newest snapshot; zeros while the engine is down."""
        return self._stats

    def take_encoder_runs(self) -> tuple[EncoderRun, ...]:
        """Encoder passes since the last call."""
        runs = tuple(self._encoder_runs)
        self._encoder_runs.clear()
        return runs

    @abc.abstractmethod
    def _submit(self, request: GenerateRequest) -> None:
        """Hand a request to the engine; never blocks for long."""

    @abc.abstractmethod
    def _abort(self, request_id: str) -> None:
        """Hand an abort to the engine, if there is one; never blocks."""

    @abc.abstractmethod
    def _last_heard(self) -> float | None:
        """Monotonic time of the engine's last sign of life."""

    @abc.abstractmethod
    def _retry_after_s(self) -> float:
        """Seconds after which a refused request may be accepted."""

    def _submit_if_ready(self, request: GenerateRequest) -> None:
        if self._state is EngineState.READY:
            self._submit(request)
        else:
            self._mailboxes.fail(request.request_id, self._not_ready())

    def _not_ready(self) -> NotReady:
        what = {
            EngineState.STARTING: "the model is being loaded",
            EngineState.STOPPED: "the server is shutting down",
        }.get(self._state, "the engine is being restarted")
        return NotReady(what, retry_after_s=self._retry_after_s())

    def _begin_start(self) -> asyncio.Future[None]:
        """The future that `start` waits for. Raises RuntimeError on a second start or one after `stop`."""
        if self._loaded is not None or self._state is EngineState.STOPPED:
            raise RuntimeError("an engine is started once")
        self._detail = "loading"
        self._loaded = asyncio.get_running_loop().create_future()
        return self._loaded

    def _set_ready(self, info: ModelInfo) -> None:
        self._info, self._state, self._detail, self._lost_at = info, EngineState.READY, "", None
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)

    def _refuse_start(self, why: str) -> None:
        """Let a `start` that still waits raise EngineError."""
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(EngineError(why))

    def _deliver(self, output: StepOutput) -> None:
        self._stats = output.stats
        self._encoder_runs.extend(output.encoder_runs)
        self._mailboxes.deliver(output.events)

    def _end_failed(self, why: str) -> None:
        """The engine broke down: every open stream ends with an error that says no more than that."""
        if self._info is not None and self._lost_at is None:  # else it was lost before, and is so still
            self._lost_at = time.monotonic()
        self._end_all(EngineState.FAILED, why, EngineError(STOPPED_MESSAGE))

    def _end_stopped(self) -> None:
        """The engine was told to stop."""
        self._end_all(EngineState.STOPPED, "stopped", NotReady("the server is shutting down"))

    def _end_all(self, state: EngineState, detail: str, error: ServerError) -> None:
        self._state, self._detail = state, detail
        self._stats = EngineStats()
        self._mailboxes.fail_all(error)
