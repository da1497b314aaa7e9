"""Where an engine's core comes from: an importable "module:function", so that a child can be told by name."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from typing import Protocol

from server.errors import EngineError, ServerError
from server.types import EngineConfig, EngineStats, Event, GenerateRequest, ModelInfo, StepOutput

DEFAULT_CORE = "server.engine.build:build_core"

Progress = Callable[[int, int, str], None]
"""Called while loading with (done, total, name of the part)."""


class Core(Protocol):
    """The engine proper: no threads, no processes of its own. Built by `build_core`."""

    info: ModelInfo

    def submit(self, request: GenerateRequest) -> tuple[Event, ...]:
        """Validate and queue. From any thread. Returns (Accepted,) or (Failed,)."""

    def abort(self, request_id: str) -> None:
        """End a request early; unknown ids are ignored. From any thread."""

    def wait(self, timeout_s: float) -> bool:
        """Block until there is work (True) or the time is up (False)."""

    def step(self) -> StepOutput:
        """One turn: schedule, compute, commit. From one thread only."""

    def stats(self) -> EngineStats:
        """Gauges and counters of this moment. From any thread."""

    def close(self) -> None:
        """Free everything. From the thread that steps."""


def build_core(factory: str, config: EngineConfig, progress: Progress | None = None) -> Core:
    """Import `factory` ("module:function") and call it: loads the model and warms it up.

    Raises EngineError with one line that an operator can act on, whatever went wrong inside.
    """
    module, _, function = factory.partition(":")
    try:
        core: Core = getattr(importlib.import_module(module), function)(config, progress)
    except Exception as error:
        raise EngineError(reason(error)) from error
    return core


def reason(error: BaseException) -> str:
    """An exception as one line; the type is named where the message alone would say little.

    ValueError (ConfigError, CheckpointError), OSError and ServerError carry messages made for people.
    """
    message = " ".join(str(error).split())
    if message and isinstance(error, ValueError | OSError | ServerError):
        return message
    return f"{type(error).__name__}: {message}".removesuffix(": ")


def safe_traceback(error: BaseException) -> str:
    """Where an exception came from, without its message, which may quote a client's text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__} at\n{frames}"
