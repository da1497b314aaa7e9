"""Warm-up of a fresh engine: clips through every stage, and what they show of this machine's pace."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from model.config import SAMPLE_RATE
from server.engine.core import EngineCore
from server.engine.runner import Threads
from server.errors import EngineError
from server.types import Accepted, Delta, Failed, GenerateRequest, SamplingParams

ANSWER_TOKENS = 8
FEWEST_TOKENS = 32
BIG_STEP_S = 0.012
"""A decode step so long is all arithmetic: threads help for certain, and another turn would cost seconds."""
LONG_STEP_S = 0.004
"""One so long is arithmetic for the most part: there more threads need only be faster at all."""
PLANNED = 0.75
"""Of the time for a prefill, what is planned for: in a small chunk each token takes longer, and so it does
right after an encoder's piece.
"""
WORTH_IT = 0.8
"""More threads must bring the time below this share of one thread's: an idle machine flatters them, and on a
shared one each barrier waits for a core."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer's seconds of encoder pass and of a decode step (median), its prompt tokens a second."""

    encode_s: float
    step_s: float
    prefill_rate: float


@dataclass(frozen=True, slots=True)
class Pace:
    """encode_s: seconds to encode one window. prefill_rate: tokens a second. threads: the best counts."""

    encode_s: float
    prefill_rate: float
    threads: Threads

    def encode_budget(self, step_s: float, window_seconds: int) -> float:
        """Seconds of audio, in whole encoder windows and at least one, that fit a pass of `step_s`."""
        windows = max(1, int(step_s / self.encode_s)) if self.encode_s else 1
        return windows * float(window_seconds)

    def prefill_budget(self, seconds: float) -> int:
        """Prompt tokens to plan for so many seconds; a few at least, or a prompt would take for ever."""
        return max(FEWEST_TOKENS, int(PLANNED * seconds * self.prefill_rate))


def warm_up(core: EngineCore, merged_prompt: str | None) -> Pace:
    """Answer about a clip or a few with an engine that is thrown away; on a CPU it must not reuse prefixes.

    Raises EngineError if it cannot answer.
    """
    prompt = "Warm up." if merged_prompt is None else merged_prompt
    most, on_cpu = torch.get_num_threads(), core.runner.model.device.type == "cpu"
    first = take_turn(core, prompt, 0, most, joins=1)
    if on_cpu and first.step_s > BIG_STEP_S:
        # So large a model encodes for seconds, at its pace from the first time on: its clip need not be new.
        again = take_turn(core, prompt, 0, most)
        return Pace(first.encode_s, again.prefill_rate, Threads.all_of(most))
    full = take_turn(core, prompt, 1, most)
    if most == 1 or not on_cpu:
        return Pace(full.encode_s, full.prefill_rate, Threads.all_of(most))
    return choose(full, take_turn(core, prompt, 2, 1), most)


def choose(full: Turn, single: Turn, most: int) -> Pace:
    """full: a turn with `most` threads, single: one with one. Each kind of work chooses for itself."""
    worth_it = 1.0 if full.step_s > LONG_STEP_S else WORTH_IT
    encode = full.encode_s < WORTH_IT * single.encode_s
    prefill = worth_it * full.prefill_rate > single.prefill_rate
    decode = full.step_s < worth_it * single.step_s
    return Pace(
        full.encode_s if encode else single.encode_s,
        full.prefill_rate if prefill else single.prefill_rate,
        Threads(*(most if helps else 1 for helps in (encode, prefill, decode))),
    )


def take_turn(core: EngineCore, prompt: str, number: int, threads: int, joins: int = 0) -> Turn:
    """One answer about the clip of that number, of one window, with so many threads.

    joins: answers to the same that join it: a prompt beside decoding rows has kernels of its own.
    """
    core.runner.threads = Threads.all_of(threads)
    seconds = max(1, min(core.runner.model.config.window_seconds, int(core.info.max_audio_seconds)))
    noise = 0.1 * np.random.default_rng(number).standard_normal(seconds * SAMPLE_RATE, dtype=np.float32)
    request = GenerateRequest("warm-up", prompt, noise, bytes([number]) * 32, SamplingParams(ANSWER_TOKENS))
    events = list(core.submit(request))
    encode_s, first_s, steps = 0.0, 0.0, []
    while core.wait(0.0):
        begin = time.perf_counter()
        output = core.step()
        steps.append(time.perf_counter() - begin)
        encode_s += sum(run.seconds for run in output.encoder_runs)
        events += output.events
        if not first_s and any(isinstance(event, Delta) for event in output.events):
            first_s = sum(steps)
            for join in range(joins):
                events += core.submit(dataclasses.replace(request, request_id=f"warm-up-{join}"))
    failures = [event.error for event in events if isinstance(event, Failed)]
    if failures:
        raise EngineError(f"warm-up failed: {failures[0].message}") from failures[0]
    prompt_tokens = sum(event.prompt_tokens for event in events if isinstance(event, Accepted))
    return Turn(encode_s, statistics.median(steps), prompt_tokens / max(first_s - encode_s, 1e-6))
