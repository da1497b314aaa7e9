"""The `Engine` interface over a supervised child process: Python on the event loop delays no step.

Only a loop that stands still until some forty steps' messages fill the pipe would hold the engine up.

A child that dies or hangs ends its requests with an error and is started again, with back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from server.engine.backoff import Backoff
from server.engine.factory import DEFAULT_CORE, Progress
from server.engine.front import EngineFront
from server.engine_link import EXIT_GRACE_S, EngineLink
from server.engine_wire import Abort, Build, LoadFailed, Loading, Ready, Replies, ToParent
from server.types import EngineConfig, EngineState, GenerateRequest, ModelInfo, StepOutput

MIN_RETRY_AFTER_S = 1.0
TICK_S = 1.0
"""How often the child is looked after."""
KILLED_S = 30.0
"""A killed child gets this long to be gone; a driver may take a while to give up a large model's memory."""

logger = logging.getLogger(__name__)


class EngineProcess(EngineFront):
    """An engine in a child process, watched and restarted by a task of this event loop.

    The thread that runs the event loop must live as long as the process (best: the main thread), because
    Linux ties the child's life to the thread that started it.

    factory: "module:function" that builds the core, imported in the child. heartbeat_timeout_s: a loaded
    child that is silent for longer is taken for hung and killed; keep it above the longest step.
    on_progress: called while loading, in the event loop, with (done, total, name).
    log: format and level of the child's log lines, as `server.logs.configure` takes them.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        factory: str = DEFAULT_CORE,
        heartbeat_timeout_s: float = 60.0,
        on_progress: Progress | None = None,
        log: tuple[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._build = Build(factory, config, log)
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._on_progress = on_progress
        self._link: EngineLink | None = None
        self._stopping = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._load_failure: str | None = None
        self._load_began = 0.0
        self._load_s = 0.0
        self._ready_since: float | None = None
        self._woke = 0.0
        self._expected_ready = 0.0

    async def start(self) -> None:
        """Start the child; returns when it has loaded and warmed up.

        Raises EngineError with the child's own one-line reason if this first load fails (there is no
        restart then), or if `stop` comes first.
        """
        loaded = self._begin_start()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        await loaded

    async def stop(self) -> None:
        """End every live request, let the child exit, kill it after two seconds. Idempotent."""
        self._stopping.set()
        self._end_stopped()
        if self._link is not None:
            await self._link.stop()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor], timeout=3 * EXIT_GRACE_S)

    @property
    def child_pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._link.pid if self._link is not None else None

    def _submit(self, request: GenerateRequest) -> None:
        if self._link is not None:
            self._link.send(request)

    def _abort(self, request_id: str) -> None:
        if self._link is not None:
            self._link.send(Abort(request_id))

    def _last_heard(self) -> float | None:
        return self._link.last_heard if self._link is not None else None

    def _retry_after_s(self) -> float:
        return max(MIN_RETRY_AFTER_S, self._expected_ready - time.monotonic())

    async def _supervise(self) -> None:
        """Run children one after the other until stopped, or until the first one cannot load."""
        backoff = Backoff()
        why = "the engine was stopped"
        try:
            while not self._stopping.is_set():
                why = await self._run_child()
                if self._info is None:
                    return
                delay_s = backoff.next_delay(self._healthy_s())
                await self._pause(delay_s, why)
        finally:
            self._refuse_start(why)

    async def _run_child(self) -> str:
        """One child from start to end; returns why it ended."""
        self._load_failure = self._ready_since = None
        self._load_began = time.monotonic()
        self._expected_ready = self._load_began + self._load_s
        self._state = EngineState.STARTING
        try:
            why = await self._watch_child()
        except OSError as error:
            why = f"the engine process could not be started: {error}"
        if not self._stopping.is_set():
            self._end_failed(why)
        return why

    async def _watch_child(self) -> str:
        link = self._link = await EngineLink.open(self._on_message)
        try:
            link.send(self._build)
            if self._stopping.is_set():  # since before the child was there to be told
                await link.stop()
                return "the engine was stopped"
            while not link.lost.done():
                await self._wait_a_tick(link)
                if self._is_hung(link):
                    return await self._end_hung(link)
            return self._load_failure or f"the engine process {link.lost.result()}"
        finally:
            link.kill()  # also when this task is cancelled
            self._link = None

    async def _wait_a_tick(self, link: EngineLink) -> None:
        """Until the child is lost, or a moment is over; notices if the moment was far longer.

        Then the whole server was suspended, and the child may have a long step still to end.
        """
        tick_s = min(TICK_S, self._heartbeat_timeout_s / 4)
        began = time.monotonic()
        await asyncio.wait([link.lost], timeout=tick_s)
        if time.monotonic() - began > 2 * tick_s:
            self._woke = time.monotonic()

    async def _end_hung(self, link: EngineLink) -> str:
        """Kill a silent child. Its requests end before that: a stuck driver can hold a killed process.

        One that is held for longer is left behind: the next child may find the device free, or fail to load
        and be tried again.
        """
        why = f"the engine gave no sign of life for {self._heartbeat_timeout_s:g} s"
        self._end_failed(why)
        link.kill()
        await asyncio.wait([link.lost], timeout=KILLED_S)
        return why

    def _is_hung(self, link: EngineLink) -> bool:
        """Whether the child has been silent for too long; loading has no limit."""
        silent_s = time.monotonic() - max(link.last_heard, self._woke)
        return self._state is EngineState.READY and silent_s >= self._heartbeat_timeout_s

    def _healthy_s(self) -> float:
        return time.monotonic() - self._ready_since if self._ready_since is not None else 0.0

    async def _pause(self, delay_s: float, why: str) -> None:
        """Wait before the next start; less if stopped."""
        if self._stopping.is_set():
            return
        logger.error("engine lost, starting again in %.1f s: %s", delay_s, why)
        self._expected_ready = time.monotonic() + delay_s + self._load_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)

    def _on_message(self, message: ToParent) -> None:
        match message:
            case StepOutput():
                self._deliver(message)
            case Replies(events):
                self._mailboxes.deliver(events)
            case Loading(done, total, name):
                self._on_loading(done, total, name)
            case Ready(info):
                self._on_ready(info)
            case LoadFailed(reason):
                self._load_failure = reason

    def _on_loading(self, done: int, total: int, name: str) -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, name)

    def _on_ready(self, info: ModelInfo) -> None:
        if not self._stopping.is_set():
            self._ready_since = time.monotonic()
            self._load_s = self._ready_since - self._load_began
            self._set_ready(info)
