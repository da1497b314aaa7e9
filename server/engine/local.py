"""The `Engine` interface over a thread of this process: for `wavllm ask`, tests, and a Ray replica."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from server.engine.factory import DEFAULT_CORE, Core, Progress, build_core
from server.engine.front import EngineFront
from server.engine.loop import run_engine
from server.errors import EngineError
from server.types import EngineConfig, GenerateRequest, StepOutput

STOP_GRACE_S = 2.0
"""`stop` waits this long for a step or a load that is running; the thread ends by itself after it."""
RETRY_AFTER_S = 5.0


class LocalEngine(EngineFront):
    """An engine that loads and steps in one thread of this process; not restarted when it breaks down.

    factory: "module:function" that builds the core. on_progress: called while loading, in the event loop,
    with (done, total, name).
    """

    def __init__(
        self, config: EngineConfig, *, factory: str = DEFAULT_CORE, on_progress: Progress | None = None
    ) -> None:
        super().__init__()
        self._config = config
        self._factory = factory
        self._on_progress = on_progress
        self._core: Core | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._heard = 0.0

    async def start(self) -> None:
        """Load and warm up; returns when ready.

        Raises EngineError with one line if the model cannot be loaded or `stop` comes first.
        """
        loaded = self._begin_start()
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="engine", daemon=True)
        self._thread.start()
        await loaded

    async def stop(self) -> None:
        """End every live request, then free the model. Idempotent."""
        self._stopping.set()
        self._end_stopped()
        self._refuse_start("stopped while loading")
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_GRACE_S)
        self._core = None

    def _submit(self, request: GenerateRequest) -> None:
        if self._core is not None:
            self._mailboxes.deliver(self._core.submit(request))

    def _abort(self, request_id: str) -> None:
        if self._core is not None:
            self._core.abort(request_id)

    def _last_heard(self) -> float | None:
        return self._heard

    def _retry_after_s(self) -> float:
        return RETRY_AFTER_S

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The engine's thread, from loading to the end."""

        def post(callback: Callable[..., Any], *arguments: object) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(callback, *arguments)

        def send(output: StepOutput) -> None:
            self._heard = time.monotonic()
            post(self._deliver, output)

        try:
            core = build_core(self._factory, self._config, lambda *done: post(self._on_loading, *done))
            self._heard = time.monotonic()
            post(self._on_loaded, core)
            run_engine(core, send, self._stopping)
        except EngineError as error:
            post(self._on_broken, error.message)

    def _on_loading(self, done: int, total: int, name: str) -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, name)

    def _on_loaded(self, core: Core) -> None:
        if not self._stopping.is_set():
            self._core = core
            self._set_ready(core.info)

    def _on_broken(self, why: str) -> None:
        """The thread has ended: the model could not be loaded, or a step raised."""
        self._core = None
        if not self._stopping.is_set():
            self._end_failed(why)
            self._refuse_start(why)
