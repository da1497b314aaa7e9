"""One side under one load, round after round, and what came of each round."""

from __future__ import annotations

import asyncio
import contextlib
import math
import operator
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.peers.sides import Side
from server.bench.load import Offer
from server.bench.schedule import Arrivals
from server.bench.types import BenchError, Exchange, Load, Outcome, Question, Record

MIN_AGREEMENT = 0.5
"""Rounding alone turns few answers; below this share the sides do not compute the same."""

Answers = dict[str, tuple[int, ...]]
"""Token ids by the question's id."""


@dataclass(frozen=True, slots=True)
class Round:
    """Questions that one side was asked, and the load's records."""

    questions: Sequence[Question]
    load: Load

    @property
    def records(self) -> tuple[Record, ...]:
        """One for each question."""
        return self.load.records

    @property
    def requests_per_s(self) -> float:
        """From the first scheduled send to the last end."""
        begin = min(one.due for one in self.records)
        return len(self.records) / (max(one.exchange.ended for one in self.records) - begin)

    @property
    def ttft_p95_s(self) -> float:
        """From the scheduled send to the first token; linear interpolation, as in `wavllm bench`."""
        return float(np.percentile([one.exchange.pieces[0].at - one.due for one in self.records], 95))

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first of each answer, per second in which any answer was under way."""
        spans = [(one.exchange.pieces[0].at, one.exchange.ended) for one in self.records]
        tokens = sum(len(one.exchange.token_ids) - 1 for one in self.records)
        return tokens / covered(spans)

    @property
    def answers(self) -> Answers:
        """What was answered."""
        return {self.questions[one.arrival.question].id: one.exchange.token_ids for one in self.records}


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


@dataclass(slots=True)
class Arm:
    """A side, and the questions of each repetition.

    figure: what a round is measured by. rate: of a round that begins, in requests per second, by a Poisson
    process; infinity asks all at once. around: entered for each round.
    """

    name: str
    side: Side
    rounds: Sequence[Sequence[Question]]
    figure: Callable[[Round], float] = operator.attrgetter("requests_per_s")
    rate: Callable[[], float] = lambda: math.inf
    around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    done: list[Round] = field(default_factory=list)

    async def warm_up(self, questions: Sequence[Question]) -> None:
        """Ask what does not count: memory, kernels and connections are there before the first that does."""
        note(f"warming up: {self.name}")
        with self.around():
            await ask(self.side, questions)

    async def measure(self) -> float:
        """The next round."""
        number = len(self.done)
        with self.around():
            done = await ask(self.side, self.rounds[number], self.rate(), seed=number)
        self.done.append(done)
        value = self.figure(done)
        note(f"{self.name}, repetition {number + 1}: {value:.4g}")
        return value


async def ask(side: Side, questions: Sequence[Question], rate: float = math.inf, seed: int = 0) -> Round:
    """Each question once, at random instants and in a random order that the seed fixes.

    Raises BenchError unless each is answered by the side's number of tokens.
    """
    side.take(questions)
    offer = Offer(side, questions, [None] * len(questions), None, lambda _: None)
    arrivals = Arrivals(len(questions), len(questions), seed).at_rate(rate)
    load = await offer.run(rate, arrivals)
    for one in load.records:
        check(one.exchange, side.num_tokens)
    return Round(questions, load)


def check(exchange: Exchange, num_tokens: int) -> None:
    """Raise BenchError for anything but a whole answer."""
    if exchange.outcome is not Outcome.OK or len(exchange.token_ids) != num_tokens:
        found = f"{exchange.outcome}, {len(exchange.token_ids)} of {num_tokens} tokens"
        raise BenchError(f"{found}: {exchange.error}: {exchange.detail}")


async def alternate(*arms: Arm) -> None:
    """All rounds of all arms in turn."""
    await in_turn({arm.name: arm.measure for arm in arms}, len(arms[0].rounds))


async def in_turn(
    measures: Mapping[str, Callable[[], Coroutine[Any, Any, float]]], repetitions: int
) -> dict[str, list[float]]:
    """`record.alternate`, beside the event loop that the measures run on."""
    loop = asyncio.get_running_loop()
    blocking = {name: _from_thread(loop, measure) for name, measure in measures.items()}
    return await asyncio.to_thread(record.alternate, blocking, repetitions)


def _from_thread(
    loop: asyncio.AbstractEventLoop, measure: Callable[[], Coroutine[Any, Any, float]]
) -> Callable[[], float]:
    return lambda: asyncio.run_coroutine_threadsafe(measure(), loop).result()


def ratios(ours: Arm, theirs: Arm, figure: Callable[[Round], float] | None = None) -> record.Spread:
    """Ours over theirs, repetition by repetition; by the arms' own figure unless one is given."""
    take = figure or ours.figure
    return record.ratios([take(done) for done in ours.done], [take(done) for done in theirs.done])


def agreement(ours: Arm, theirs: Arm) -> dict[str, int]:
    """How many of their answers have our token ids, over all repetitions.

    Raises BenchError if it is less than half of them.
    """
    pairs = [
        (mine.answers[question], ids)
        for mine, their in zip(ours.done, theirs.done, strict=True)
        for question, ids in their.answers.items()
    ]
    equal = sum(mine == their for mine, their in pairs)
    if equal < MIN_AGREEMENT * len(pairs):
        raise BenchError(f"{theirs.name}: only {equal} of {len(pairs)} answers are those of {ours.name}")
    return {"compared": len(pairs), "equal": equal}


def spreads(*arms: Arm, figure: Callable[[Round], float] | None = None) -> dict[str, record.Spread]:
    """Each arm's figure over its repetitions; its own unless one is given."""
    return {
        arm.name: record.Spread.of([(figure or arm.figure)(done) for done in arm.done]) for arm in arms
    }


def note(text: str) -> None:
    """Say on stderr how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
