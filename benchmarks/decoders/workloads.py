"""Tokens per second of the language model alone, beside the peers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import record
from benchmarks.decoders.decoders import Decoded, Decoder, EngineDecoder
from benchmarks.decoders.peers import PEERS
from benchmarks.decoders.prompts import PromptMaker, Shape, TextPrompt
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


def against(
    model: Path,
    repetitions: int = REPETITIONS,
    shape: Shape = SHAPE,
    names: Sequence[str] = tuple(PEERS),
    *,
    targets_only: bool = False,
) -> Outcome:
    """Ours and these peers in turn. targets_only: batches for which a peer has no target are left out."""
    waiting.check_set()
    busy = others_busy()
    return asyncio.run(_against(model, repetitions, shape, names, targets_only, busy))


def reach(model: Path, repetitions: int = REPETITIONS) -> Outcome:
    """What has a target, and nothing else."""
    names = [name for name, peer in PEERS.items() if peer.targets]
    return against(model, repetitions, names=names, targets_only=True)


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


async def _against(
    model: Path, repetitions: int, shape: Shape, names: Sequence[str], targets_only: bool, busy: float
) -> Outcome:
    make = PromptMaker(model, shape, SEED)
    async with contextlib.AsyncExitStack() as stack:
        peers = {name: PEERS[name].start(model, shape, stack) for name in names}
        for peer in peers.values():
            await peer.ready()
        # Alone, for it measures its pace; the piped ones have loaded beside all others.
        ours = await stack.enter_async_context(EngineDecoder.started(model))
        for name, decoder in {OURS: ours, **peers}.items():
            note(f"warming up: {name}")
            await decoder.decode(make.batch(shape.largest_batch), WARM_TOKENS)
        measured = {}
        for batch in shape.batches:
            asked = [name for name in names if not targets_only or batch in PEERS[name].targets]
            decoders = {OURS: ours} | {name: peers[name] for name in asked}
            measured[batch] = await _measure(decoders, [make.batch(batch) for _ in range(repetitions)], shape)
        versions = {name: dict(peer.versions) for name, peer in peers.items()}
    reached = {
        target: record.ratios(_rates(measured[batch][OURS]), _rates(measured[batch][name]))
        for name in names
        for batch, target in PEERS[name].targets.items()
        if batch in measured
    }
    row = _row(model, shape, measured, reached)
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
                agreed[key] = agreement(arms[OURS], done)
                if not PEERS[name].is_rounded:
                    judge(key, agreed[key])
    return {
        "workload": "text",
        **record.setup(SEED, model=SpeechLLMConfig.load(model).name, shape=dataclasses.asdict(shape)),
        "waiting": waiting.settings(),
        "load_average": os.getloadavg(),
        "reached": {target.sentence: spread for target, spread in reached.items()},
        "tokens_per_s": rates,
        "agreement": agreed,
    }


def judge(name: str, agreed: Mapping[str, int]) -> None:
    """Raise BenchError if too few tokens agree for rounding to be the reason."""
    if agreed["tokens_agreed"] < MIN_AGREEMENT * agreed["tokens"]:
        raise BenchError(f"{name}: does not compute what ours does: {agreed}")
