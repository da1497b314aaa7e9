"""Tokens per second of the language model alone beside each peer: functions that measure targets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import record
from benchmarks.decoders.decoders import Decoded, Decoder, EngineDecoder
from benchmarks.decoders.peers import start_llamacpp, start_transformers, start_vllm
from benchmarks.decoders.prompts import PromptMaker, Shape, TextPrompt
from benchmarks.decoders.targets import OVER_LLAMACPP, OVER_TRANSFORMERS, OVER_VLLM
from benchmarks.peers import waiting
from benchmarks.peers.arms import MIN_AGREEMENT, in_turn, note
from benchmarks.peers.targets import Outcome, Target
from model.config import SpeechLLMConfig
from server.bench.types import BenchError

SEED = 4
REPETITIONS = 3
SHAPE = Shape()
OURS = "engine"
WARM_TOKENS = 2
BUSY_S = 1.0
ROUNDED = ("F16",)
"""In a decoder's name: it computes with other weights, so its answers are counted and not judged."""

Start = Callable[[Path, Shape, contextlib.AsyncExitStack], Awaitable[dict[str, Decoder]]]


def against_transformers(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """transformers' own continuous batching."""
    return run("transformers", start_transformers, OVER_TRANSFORMERS, model, repetitions, shape)


def against_llamacpp(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """llama.cpp's server, with F32 weights for the targets and with F16 weights."""
    return run("llamacpp", start_llamacpp, OVER_LLAMACPP, model, repetitions, shape)


def against_vllm(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """vLLM's offline engine for the targets, and its server."""
    return run("vllm", start_vllm, OVER_VLLM, model, repetitions, shape)


def run(
    workload: str, start: Start, targets: Mapping[int, Target], model: Path, repetitions: int, shape: Shape
) -> Outcome:
    """Ours and the peer's decoders in turn. The targets are about the first that `start` names."""
    waiting.check_set()
    busy = others_busy()
    return asyncio.run(_run(workload, start, targets, model, repetitions, shape, busy))


def others_busy() -> float:
    """The share of all cores that other programs take while this one waits."""
    return psutil.cpu_percent(BUSY_S) / 100


@dataclass(slots=True)
class Arm:
    """A decoder and the batches of each repetition."""

    name: str
    decoder: Decoder
    rounds: Sequence[Sequence[TextPrompt]]
    num_tokens: int
    done: list[Decoded] = field(default_factory=list)

    async def measure(self) -> float:
        """The next round; tokens per second."""
        prompts = self.rounds[len(self.done)]
        decoded = await self.decoder.decode(prompts, self.num_tokens)
        check(decoded, len(prompts), self.num_tokens)
        self.done.append(decoded)
        note(f"{self.name}, batch {len(prompts)}: {decoded.tokens_per_s:.4g} tokens/s")
        return decoded.tokens_per_s


def check(decoded: Decoded, num_prompts: int, num_tokens: int) -> None:
    """Raise BenchError unless every prompt has a whole answer."""
    lengths = [len(answer) for answer in decoded.answers]
    if lengths != [num_tokens] * num_prompts:
        raise BenchError(f"answers of {lengths} tokens, not {num_prompts} of {num_tokens}")


def agreement(ours: Sequence[Decoded], theirs: Sequence[Decoded]) -> dict[str, int]:
    """How many of their answers are ours, and how many tokens are up to where the first differs.

    A token that rounding turns changes all that follow it.
    """
    pairs = [
        pair
        for mine, their in zip(ours, theirs, strict=True)
        for pair in zip(mine.answers, their.answers, strict=True)
    ]
    return {
        "compared": len(pairs),
        "equal": sum(mine == their for mine, their in pairs),
        "tokens": sum(len(mine) for mine, _ in pairs),
        "tokens_agreed": sum(common(mine, their) for mine, their in pairs),
    }


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


async def _run(
    workload: str,
    start: Start,
    targets: Mapping[int, Target],
    model: Path,
    repetitions: int,
    shape: Shape,
    busy: float,
) -> Outcome:
    make = PromptMaker(model, shape, SEED)
    async with contextlib.AsyncExitStack() as stack:
        peers = await start(model, shape, stack)
        ours = await stack.enter_async_context(EngineDecoder.started(model))
        decoders = {OURS: ours, **peers}
        for name, decoder in decoders.items():
            note(f"warming up: {name}")
            await decoder.decode(make.batch(shape.largest_batch), WARM_TOKENS)
        measured = {
            batch: await _measure(decoders, [make.batch(batch) for _ in range(repetitions)], shape)
            for batch in shape.batches
        }
        versions = {name: dict(peer.versions) for name, peer in peers.items()}
    first = next(iter(peers))
    reached = {
        target: record.ratios(_rates(measured[batch][OURS]), _rates(measured[batch][first]))
        for batch, target in targets.items()
        if batch in measured
    }
    row = _row(workload, model, shape, measured, reached)
    return Outcome(reached, row | {"peers": versions, "others_busy": busy})


async def _measure(
    decoders: Mapping[str, Decoder], rounds: Sequence[Sequence[TextPrompt]], shape: Shape
) -> dict[str, list[Decoded]]:
    """All decoders in turn with batches of one size."""
    arms = [Arm(name, decoder, rounds, shape.answer_tokens) for name, decoder in decoders.items()]
    await in_turn({arm.name: arm.measure for arm in arms}, len(rounds))
    return {arm.name: arm.done for arm in arms}


def _rates(done: Sequence[Decoded]) -> list[float]:
    return [decoded.tokens_per_s for decoded in done]


def _row(
    workload: str,
    model: Path,
    shape: Shape,
    measured: Mapping[int, Mapping[str, Sequence[Decoded]]],
    reached: Mapping[Target, record.Spread],
) -> dict[str, Any]:
    rates: dict[str, record.Spread] = {}
    agreed: dict[str, dict[str, int]] = {}
    for batch, arms in measured.items():
        for name, done in arms.items():
            key = f"{name}, batch {batch}"
            rates[key] = record.Spread.of(_rates(done))
            if name != OURS:
                agreed[key] = judged(key, agreement(arms[OURS], done))
    return {
        "workload": workload,
        **record.setup(SEED, model=SpeechLLMConfig.load(model).name, shape=dataclasses.asdict(shape)),
        "waiting": waiting.settings(),
        "load_average": os.getloadavg(),
        "reached": {target.sentence: spread for target, spread in reached.items()},
        "tokens_per_s": rates,
        "agreement": agreed,
    }


def judged(name: str, agreed: dict[str, int]) -> dict[str, int]:
    """The same. Raises BenchError if too few tokens agree for rounding to be the reason."""
    rounded = any(part in name for part in ROUNDED)
    if not rounded and agreed["tokens_agreed"] < MIN_AGREEMENT * agreed["tokens"]:
        raise BenchError(f"{name}: does not compute what ours does: {agreed}")
    return agreed
