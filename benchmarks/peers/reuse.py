"""What the caches save a user who is alone: the second question, the known instruction, the known pair."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import record
from benchmarks.peers.arms import check, note
from benchmarks.peers.questions import QuestionMaker, Shape
from benchmarks.peers.sides import EngineSide
from benchmarks.peers.targets import LAST_BLOCK, PROMPT_PASSES, SECOND_QUESTION, Outcome
from benchmarks.peers.workloads import maker, outcome
from server.bench.types import BenchError, Question
from server.types import EngineConfig

REPETITIONS = 5
SHAPE = Shape(answer_tokens=4)


def reuse(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """Questions one after another, with a new clip and new instructions in each repetition.

    Raises BenchError if the first question about a clip does not cost what the later ones are to save.
    """
    return asyncio.run(_reuse(model, repetitions, shape))


async def _reuse(model: Path, repetitions: int, shape: Shape) -> Outcome:
    make, block = maker(model, shape), EngineConfig(model).page_size
    async with EngineSide.started(model, shape.answer_tokens) as engine:
        await cost_of(engine, make.about(make.clip()))
        turns = [await _turn(engine, make, block) for _ in range(repetitions)]
    firsts, seconds = [turn.first.ttft_s for turn in turns], [turn.second.ttft_s for turn in turns]
    reached = {
        SECOND_QUESTION: record.ratios(seconds, firsts),
        PROMPT_PASSES: record.Spread.of([turn.same_instruction.passes for turn in turns]),
        LAST_BLOCK: record.Spread.of([turn.same_pair.prefilled / block for turn in turns]),
    }
    row = {"first_ttft_s": record.Spread.of(firsts), "second_ttft_s": record.Spread.of(seconds)}
    return outcome("reuse", model, shape, reached, row)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one question cost. passes: prompt passes. prefilled: prompt tokens that were not cached."""

    ttft_s: float
    passes: int
    prefilled: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One clip's questions: the first, a second, its instruction about a new clip, itself again."""

    first: Cost
    second: Cost
    same_instruction: Cost
    same_pair: Cost


async def _turn(engine: EngineSide, make: QuestionMaker, block: int) -> Turn:
    clip = make.clip()
    first, second = make.about(clip), make.about(clip)
    other = make.about(make.clip(), second.prompt)
    turn = Turn(*[await cost_of(engine, question) for question in (first, second, other, second)])
    if turn.first.passes != 1 or turn.second.passes != 1 or turn.first.prefilled <= block:
        raise BenchError(f"the first questions show no passes and prefills to save: {turn}")
    note(f"second question: {turn.second.ttft_s / turn.first.ttft_s:.3f} of the first's time")
    return turn


async def cost_of(engine: EngineSide, question: Question) -> Cost:
    """Ask, with nobody else about."""
    engine.take([question])
    misses = engine.engine.stats().prompt_cache_misses
    sent = time.perf_counter()
    reply = await engine.reply(question)
    check(reply.exchange, engine.num_tokens)
    return Cost(
        reply.exchange.pieces[0].at - sent,
        engine.engine.stats().prompt_cache_misses - misses,
        reply.usage.prompt_tokens - reply.usage.cached_tokens,
    )
