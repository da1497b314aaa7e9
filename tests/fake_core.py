"""A small real core for a real child process: answers with counted words, or misbehaves when told to.

The prompt is a list of commands: "tokens=N" (default: max_tokens), "wait" (never finishes), "slow" (10 ms a
step), "hang" (a step that never returns), "exit" (the process exits), "raise" (step raises), "refuse"
(Failed instead of Accepted), "submit-raises", "modules" (answers with the child's heavy modules).
`config.served_name` tells `build_core` how to fail: see `_fail`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.errors import InvalidRequest
from server.types import (
    Accepted,
    Delta,
    EncoderRun,
    EngineConfig,
    EngineStats,
    EngineTimings,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    ModelInfo,
    SamplingParams,
    Stage,
    StageChanged,
    StepOutput,
    Usage,
)

FACTORY = "fake_core:build_core"
HEAVY = ("fastapi", "uvicorn", "grpc", "starlette", "multiprocessing.resource_tracker", "pytest")


def request(
    prompt: str = "tokens=3", request_id: str = "a", waveform: npt.NDArray[np.float32] | None = None
) -> GenerateRequest:
    """A request with the commands in `prompt`; five tokens unless they say otherwise."""
    key = b"" if waveform is None else hashlib.sha256(waveform.tobytes()).digest()
    return GenerateRequest(request_id, prompt, waveform, key, SamplingParams(max_tokens=5))


@dataclass
class _Live:
    request: GenerateRequest
    commands: dict[str, str]
    text: deque[str]
    done: int = 0


class FakeCore:
    """One word per live request and step."""

    def __init__(self, config: EngineConfig) -> None:
        self.info = ModelInfo("fake", 2048, 80.0, 512, 1, "float32", "cpu")
        self._log = config.model_dir / "aborted"
        self._inbox: deque[_Live] = deque()
        self._live: dict[str, _Live] = {}
        self._aborted: set[str] = set()
        self._changed = threading.Condition()
        self._num_steps = 0

    def submit(self, request: GenerateRequest) -> tuple[Event, ...]:
        commands = dict(([*word.split("="), ""])[:2] for word in request.prompt.split())
        if "submit-raises" in commands:
            raise KeyError(request.prompt)
        if "refuse" in commands:
            return (Failed(request.request_id, InvalidRequest("no", param="prompt")),)
        with self._changed:
            self._inbox.append(_Live(request, commands, _words(request, commands)))
            self._changed.notify()
        if "late-accept" in commands:
            time.sleep(0.1)
        return (Accepted(request.request_id, 0, len(commands), 0),)

    def abort(self, request_id: str) -> None:
        with self._changed, self._log.open("a", encoding="ascii") as log:
            self._aborted.add(request_id)
            print(request_id, file=log)

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._inbox or self._live, timeout_s)

    def stats(self) -> EngineStats:
        return EngineStats(num_requests_running=len(self._live), num_steps=self._num_steps)

    def close(self) -> None:
        (self._log.parent / "closed").touch()

    def step(self) -> StepOutput:
        events: list[Event] = []
        with self._changed:
            for live in self._inbox:
                self._live[live.request.request_id] = live
                events.append(StageChanged(live.request.request_id, Stage.GENERATING))
            self._inbox.clear()
            for request_id in self._aborted:
                self._live.pop(request_id, None)
            self._aborted.clear()
        if any("slow" in live.commands or "wait" in live.commands for live in self._live.values()):
            time.sleep(0.01)
        for live in list(self._live.values()):
            events += self._advance(live)
        self._num_steps += 1
        return StepOutput(tuple(events), self.stats(), (EncoderRun("whisper", 0.001, 1),))

    def _advance(self, live: _Live) -> list[Event]:
        _misbehave(live.commands)
        request_id = live.request.request_id
        if "wait" in live.commands:
            live.done += 1
            return [Delta(request_id, f"{live.done} ", (live.done,))]
        if live.text:
            live.done += 1
            return [Delta(request_id, live.text.popleft(), (live.done,))]
        del self._live[request_id]
        usage = Usage(len(live.commands), live.done, 0, 0)
        return [Finished(request_id, "stop", usage, EngineTimings(0.0, 0.0, 0.0))]


def _words(request: GenerateRequest, commands: dict[str, str]) -> deque[str]:
    if "frozen" in commands:
        return deque([str(gc.get_freeze_count())])
    if "modules" in commands:
        return deque([" ".join(name for name in HEAVY if name in sys.modules)])
    if "samples" in commands:
        assert request.waveform is not None
        return deque([f"{request.waveform.size} {request.waveform.dtype} {float(request.waveform.sum())}"])
    count = int(commands.get("tokens", request.sampling.max_tokens))
    return deque(f"{i} " for i in range(1, count + 1))


def _misbehave(commands: dict[str, str]) -> None:
    if "hang" in commands:
        time.sleep(3600)
    if "exit" in commands:
        os._exit(3)
    if "raise" in commands:
        raise ValueError(" ".join(commands))


def build_core(config: EngineConfig, progress: Callable[[int, int, str], None] | None) -> FakeCore:
    """Counts its calls in `model_dir/builds`, so that a test can let only the first or second one fail."""
    builds = config.model_dir / "builds"
    with builds.open("a") as count:
        count.write("x")
    if progress is not None:
        progress(1, 2, "half")
        progress(2, 2, "all")
    _fail(config.served_name or "", len(builds.read_text()))
    return FakeCore(config)


def _fail(how: str, build: int) -> None:
    if how == "bad-directory":
        Path("/nonexistent/config.json").read_text(encoding="ascii")
    if how == "value-error":
        raise ValueError("config.json: llama.vocab_size:\n missing")
    if how == "runtime-error":
        raise RuntimeError("CUDA out of memory")
    if how == "dies":
        os.kill(os.getpid(), 9)
    if how == "slow-load":
        time.sleep(3600)
    if how == "second-fails" and build == 2:
        raise ValueError("not this time")
    if how == "second-fails-third-hangs" and build in (2, 3):
        if build == 2:
            raise ValueError("not this time")
        time.sleep(3600)
