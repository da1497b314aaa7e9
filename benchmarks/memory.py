"""Resident memory of `wavllm serve` over 2,000 requests: does it still grow in the last thousand?

    python -m benchmarks.memory [--repetitions 3] [--output FOLDER]

A small random model behind the real server, engine process and audio workers; every request has a clip of
its own, of 101 lengths. What the server keeps on purpose is bounded (512 KV pages, 1 MiB of audio
embeddings, the scales of a hundred instructions, 32 MiB of decoded clips before the engine and in it, the
plans of products for some shapes), and the bounds are reached in the first thousand. Memory is that of all
processes of the server. The 95 % interval of its growth a request in the second thousand comes from a
bootstrap that draws increments in blocks of consecutive ones, for a rise that is taken back soon is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks import command, record
from benchmarks.peers.arms import ask, note
from benchmarks.peers.questions import QuestionMaker, Shape
from benchmarks.peers.served import Served, WavllmSide, free_port
from benchmarks.peers.targets import Outcome, Target
from model.checkpoint_format import TOKENIZER_FILE
from model.config import SpeechLLMConfig
from model.tiny import VOCAB_SIZE, make_tiny
from model.tokenizer import Tokenizer
from server.bench.questions import synthetic_clip
from server.bench.types import Clip

SEED = 4
REPETITIONS = 3
NUM_REQUESTS = 2000
EVERY = 10
"""Requests between two samples; so many are asked at once."""
NUM_INSTRUCTIONS = 100
WINDOW_S = 2
SHAPE = Shape(instruction_tokens=12, answer_tokens=8)
NUM_LENGTHS = 101  # a prime, so that each instruction meets all of them
SHORTEST_S, LONGEST_S = 0.5, 1.5
BLOCK = 10
"""Samples that are drawn together: a hundred requests."""
NUM_RESAMPLES = 2000
GROWTH = Target(
    "KiB a request by which resident memory grows for certain (95 %) in the last half of 2,000 requests",
    0.0,
    False,
)


@dataclass(frozen=True, slots=True)
class Slope:
    """Units a request: the mean growth and its 95 % interval."""

    estimate: float
    low: float
    high: float

    @property
    def certain_growth(self) -> float:
        """The least growth that the interval allows; 0 where it does not exclude a flat line."""
        return max(0.0, self.low)


def memory(repetitions: int = REPETITIONS, num_requests: int = NUM_REQUESTS) -> Outcome:
    """A new server in each repetition, all asked at the same time: nothing of it is about speed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = make_small(Path(folder) / "model")
        servers = [stack.enter_context(start(model)) for _ in range(repetitions)]
        runs = asyncio.run(ask_all(servers, model, num_requests))
    slopes = [slope_of(samples[len(samples) // 2 :], EVERY) for samples in runs]
    firsts, lasts = ([samples[at] / 1024 for samples in runs] for at in (0, -1))
    for first, last, slope in zip(firsts, lasts, slopes, strict=True):
        note(f"{first:.4g} to {last:.4g} MiB, {slope}")
    row = {
        "slope_kib_per_request": record.Spread.of([slope.estimate for slope in slopes]),
        "intervals": [dataclasses.asdict(slope) for slope in slopes],
        "first_mib": record.Spread.of(firsts),
        "last_mib": record.Spread.of(lasts),
    }
    reached = {GROWTH: record.Spread.of([slope.certain_growth for slope in slopes])}
    return command.outcome_of("memory", SEED, reached, row, num_requests=num_requests)


def make_small(directory: Path) -> Path:
    """The tiny sizes with a short window, so that requests are quick; answers run to their last token."""
    config = SpeechLLMConfig.tiny(VOCAB_SIZE)
    whisper = dataclasses.replace(config.whisper, max_source_positions=50 * WINDOW_S)
    llama = dataclasses.replace(config.llama, suppress_token_ids=(0, config.llama.eos_token_id))
    make_tiny(directory, dataclasses.replace(config, whisper=whisper, llama=llama, window_seconds=WINDOW_S))
    return directory


def start(model: Path) -> Served:
    """A server whose caches are small."""
    port = free_port()
    flags = ["--model", str(model), "--http-port", str(port)]
    return Served(["benchmarks.bounded_server", *flags], port, "/readyz")


async def ask_all(servers: Sequence[Served], model: Path, num_requests: int) -> list[list[float]]:
    """Each the same, each at its own pace."""
    return await asyncio.gather(*(resident_kib(server, model, num_requests) for server in servers))


async def resident_kib(server: Served, model: Path, num_requests: int) -> list[float]:
    """Resident memory of a server after every EVERY requests."""
    make = QuestionMaker(Tokenizer(model / TOKENIZER_FILE).encode, SHAPE, SEED)
    prompts = [make.instruction() for _ in range(NUM_INSTRUCTIONS)]
    samples = []
    side = WavllmSide(server.url, SHAPE.answer_tokens)
    try:
        for begin in range(0, num_requests, EVERY):
            numbers = range(begin, begin + EVERY)
            await ask(side, [make.about(clip(n), prompts[n % NUM_INSTRUCTIONS]) for n in numbers])
            samples.append(tree_kib(server.process.pid))
    finally:
        await side.aclose()
    return samples


def clip(number: int) -> Clip:
    """A clip of its own; lengths come in no order."""
    share = number * 37 % NUM_LENGTHS / NUM_LENGTHS
    return synthetic_clip(SHORTEST_S + share * (LONGEST_S - SHORTEST_S), number)


def tree_kib(pid: int) -> float:
    """Resident memory of a process and all that it started."""
    parent = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (parent, *parent.children(recursive=True))) / 1024


def slope_of(samples: Sequence[float], every: int = 1, seed: int = SEED) -> Slope:
    """The mean growth a request of samples that lie `every` requests apart, with its interval.

    Increments are drawn, not residuals around a line: memory keeps its highest mark, and one late step of an
    allocator would make any line rise for certain, where among increments it is the chance that it is. After
    the last one comes the first. With so few blocks, "95 %" is about right.
    """
    increments = np.diff(np.asarray(samples, dtype=np.float64))
    count, block = len(increments), min(BLOCK, len(increments))
    starts = np.random.default_rng(seed).integers(0, count, (NUM_RESAMPLES, -(-count // block)))
    order = (starts[:, :, None] + np.arange(block)).reshape(NUM_RESAMPLES, -1)[:, :count] % count
    low, high = np.percentile(increments[order].mean(axis=1), [2.5, 97.5])
    return Slope(float(increments.mean()) / every, float(low) / every, float(high) / every)


if __name__ == "__main__":
    command.run(__doc__, "memory", memory, REPETITIONS)
