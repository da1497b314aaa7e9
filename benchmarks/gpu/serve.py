"""The engine as it serves, in this process: time to the first token, tokens a second of many requests."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.world import World, say
from server.types import Accepted, Delta, Failed, Finished, GenerateRequest, SamplingParams

PROMPT = "Based on the attached audio, generate a comprehensive text transcription of the spoken content."
LOADS = (64, 16)
TTFT_REPEATS = 12
_names = itertools.count()

Waveform = npt.NDArray[np.float32]


def request(key: bytes, wave: Waveform, tokens: int) -> GenerateRequest:
    """A question about a clip, the same words each time."""
    return GenerateRequest(f"bench-{next(_names)}", PROMPT, wave, key, SamplingParams(tokens))


def run(world: World, requests: Sequence[GenerateRequest]) -> tuple[float, int, dict[str, float]]:
    """Submit all at once and step to the end: seconds, answer tokens, seconds to each one's first token."""
    core = world.core
    first: dict[str, float] = {}
    tokens = 0
    begin = time.perf_counter()
    for each in requests:
        (event,) = core.submit(each)
        assert isinstance(event, Accepted), event
    while core.scheduler.has_work or core.wait(0.0):
        for event in core.step().events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta) and event.token_ids:
                first.setdefault(event.request_id, time.perf_counter() - begin)
            if isinstance(event, Finished):
                tokens += event.usage.completion_tokens
    return time.perf_counter() - begin, tokens, first


def measure_first_token(world: World) -> dict[str, Any]:
    """Milliseconds for new clips of 10 s after an instruction that was read before."""
    seconds = 10.0 if world.is_real else 1.0
    clips = world.clips(TTFT_REPEATS if world.is_real else 3, seconds, seed=77).items()
    taken = [1e3 * min(run(world, [request(key, wave, 1)])[2].values()) for key, wave in clips]
    kept = taken[2:]  # the first reads the instruction and compiles what the warm-up did not meet
    figures = {"median_ms": statistics.median(kept), "low_ms": min(kept), "high_ms": max(kept)}
    say(f"  {figures}")
    return {"clip_s": seconds, **figures}


def measure_throughput(world: World) -> dict[str, Any]:
    """Answer tokens a second, all requests at once: clips of 10 s never heard before, then the same again."""
    figures: dict[str, Any] = {"answer_tokens": world.answer_tokens}
    seconds = 10.0 if world.is_real else 1.0
    loads = LOADS if world.is_real else (4,)
    for load in loads:
        clips = world.clips(load, seconds, seed=1000 + load)
        for name in ("new", "again"):
            requests = [request(key, wave, world.answer_tokens) for key, wave in clips.items()]
            taken, tokens, first = run(world, requests)
            figure = {
                "tokens_per_s": tokens / taken,
                "seconds": taken,
                "last_first_token_s": max(first.values()),
                "decode_tokens_per_s": (tokens - load) / max(taken - max(first.values()), 1e-9),
            }
            figures[f"{load}_{name}"] = figure
            say(f"  {load} requests, clips {name}: {figure}")
    return figures
