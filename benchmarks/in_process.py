"""The engine's core in this process, stepped by hand: what is timed here is what the server's child runs."""

from __future__ import annotations

import functools
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import waiting
from benchmarks.peers.questions import LIMITS
from server.audio_decode import decode_audio
from server.bench.types import BenchError, Question
from server.engine.build import build_core
from server.engine.core import EngineCore
from server.os_process import keep_workspace
from server.types import (
    Accepted,
    DecodedAudio,
    Delta,
    EngineConfig,
    Failed,
    GenerateRequest,
    SamplingParams,
    StepOutput,
)


def compute_as_engines_do() -> int:
    """The threads that a fresh engine's process has; they wait as its threads do.

    Raises BenchError where the environment does not say how (`restart_passive` sees to it).
    """
    waiting.check_set()
    return torch.get_num_threads()


@functools.lru_cache(maxsize=4)
def heard(data: bytes) -> DecodedAudio:
    """A clip as the engine takes it; many are asked about again and again."""
    return decode_audio(data, LIMITS)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine. seconds: all of it, scheduling and text included."""

    seconds: float
    output: StepOutput

    @property
    def num_tokens(self) -> int:
        """Answers that got a token."""
        return sum(isinstance(event, Delta) for event in self.output.events)


class SteppedEngine:
    """A warm engine with the server's own defaults. Nothing happens but in `step`.

    num_threads: torch's own number, which the warm-up may have found too many for the engine.
    """

    def __init__(self, model: Path, **options: Any) -> None:
        keep_workspace()
        self.num_threads = compute_as_engines_do()
        self.core: EngineCore = build_core(EngineConfig(model, device="cpu", dtype="float32", **options))
        self._ids = itertools.count()

    def submit(self, question: Question, num_tokens: int) -> Accepted:
        """Queue a question. Raises BenchError if it is refused."""
        audio = heard(question.clip.data)
        request = GenerateRequest(
            f"{question.id}-{next(self._ids)}",
            question.prompt,
            audio.waveform,
            audio.key,
            SamplingParams(num_tokens),
        )
        (answer,) = self.core.submit(request)
        if not isinstance(answer, Accepted):
            raise BenchError(f"refused: {answer}")
        return answer

    def step(self) -> Step:
        """One step. Raises BenchError if it failed a request."""
        begin = time.perf_counter()
        output = self.core.step()
        step = Step(time.perf_counter() - begin, output)
        failed = [event.error for event in output.events if isinstance(event, Failed)]
        if failed:
            raise BenchError(f"the engine failed: {failed[0]}")
        return step

    def steps_to_the_end(self) -> list[Step]:
        """Step until no request is left."""
        steps = []
        while self.core.wait(0.0):
            steps.append(self.step())
        return steps

    def fill(self, question: Question, count: int, num_tokens: int) -> Accepted:
        """Step until so many answers to one question are under way at once.

        The first computes clip, instruction and prefix; the others find them. Prefills take what room there
        is meanwhile, for nobody watches the answers yet. Raises BenchError if there is no room for so many.
        """
        limits = self.core.scheduler.limits
        if count > limits.max_batch_size:
            raise BenchError(f"{count} answers at once, but room for {limits.max_batch_size}")
        beside, limits.prefill_beside = limits.prefill_beside, None
        accepted = self.submit(question, 1)
        self.steps_to_the_end()
        for _ in range(count):
            self.submit(question, num_tokens)
        while self.step().num_tokens < count:
            continue
        limits.prefill_beside = beside
        return accepted

    def drop_all(self) -> None:
        """End all requests."""
        for sequence in self.core.scheduler.live():
            self.core.abort(sequence.request_id)
        self.steps_to_the_end()
