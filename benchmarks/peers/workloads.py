"""The comparison with the peers, a function of a model directory that measures its targets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import operator
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.peers import waiting
from benchmarks.peers.arms import Arm, agreement, in_turn, ratios, spreads
from benchmarks.peers.questions import QuestionMaker, Shape, thinned
from benchmarks.peers.script import Script
from benchmarks.peers.served import LitServeSide, Served, WavllmSide, serve_litserve, serve_wavllm
from benchmarks.peers.sides import BatchSide, ScriptSide
from benchmarks.peers.targets import (
    DECODE,
    FOUR_OVER_SCRIPT,
    ONE_OVER_SCRIPT,
    OVER_BATCHES,
    OVER_LITSERVE,
    TTFT_OVER_LITSERVE,
    Outcome,
    Target,
)
from model.checkpoint_format import TOKENIZER_FILE
from model.config import SpeechLLMConfig
from model.tokenizer import Tokenizer

SEED = 4
REPETITIONS = 3
SHAPE = Shape()
WAIT_S = 0.05
"""How long a static batch that is not full waits for more requests."""
DECODE_RATE = operator.attrgetter("decode_tokens_per_s")
TTFT_P95 = operator.attrgetter("ttft_p95_s")


def requests(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """`wavllm serve` beside the script one at a time, the script in static padded batches, and LitServe.

    All in turn, in one run, so that one round of a side serves each comparison that it is part of. Clips and
    instructions are new in each repetition. The script is asked a part of the questions; its decoding is
    counted from its first token on. Ours is counted in a second round of the same questions, which finds
    clips and prefixes in the caches. Batches and ours also meet the same Poisson arrivals, at the rate that
    ours reached in the first round with all at once.
    """
    return run(_requests(model, repetitions, shape))


async def _requests(model: Path, repetitions: int, shape: Shape) -> Outcome:
    make = maker(model, shape)
    async with Sides.started(model, shape) as sides:
        arms = Arms.of(sides, make, repetitions)
        for arm in (arms.at_once, arms.script, arms.batches, arms.litserve):
            await arm.warm_up(make.round(1))
        await arms.alternate()
    reached = {
        DECODE: ratios(arms.again, arms.script, DECODE_RATE),
        FOUR_OVER_SCRIPT: ratios(arms.at_once, arms.script),
        ONE_OVER_SCRIPT: ratios(arms.alone, arms.script),
        OVER_BATCHES: ratios(arms.ragged, arms.batches),
        OVER_LITSERVE: ratios(arms.at_once, arms.litserve),
        TTFT_OVER_LITSERVE: ratios(arms.litserve, arms.at_once, TTFT_P95),
    }
    return outcome("requests", model, shape, reached, arms.row())


@dataclass(frozen=True, slots=True)
class Sides:
    """All that are asked, the servers among them running."""

    wavllm: WavllmSide
    script: ScriptSide
    batches: BatchSide
    litserve: LitServeSide
    litserve_process: Served

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, model: Path, shape: Shape) -> AsyncIterator[Sides]:
        """Each server alone while it starts. LitServe stands still unless it is asked."""
        async with contextlib.AsyncExitStack() as stack:
            litserve = stack.enter_context(serve_litserve(model, shape.num_questions, WAIT_S))
            litserve.pause()
            their_side = LitServeSide(litserve.url, shape.answer_tokens)
            stack.push_async_callback(their_side.aclose)
            wavllm = stack.enter_context(serve_wavllm(model))
            our_side = WavllmSide(wavllm.url, shape.answer_tokens)
            stack.push_async_callback(our_side.aclose)
            script = Script(model)
            batches = BatchSide(
                script, shape.answer_tokens, max_batch=shape.num_questions, wait_s=WAIT_S
            )
            await stack.enter_async_context(batches.running())
            yield cls(our_side, ScriptSide(script, shape.answer_tokens), batches, their_side, litserve)


@dataclass(frozen=True, slots=True)
class Arms:
    """Ours: all questions at once, the same again, a clip each, as they come; and what stands beside them."""

    at_once: Arm
    again: Arm
    alone: Arm
    script: Arm
    litserve: Arm
    ragged: Arm
    batches: Arm

    @classmethod
    def of(cls, sides: Sides, make: QuestionMaker, repetitions: int) -> Arms:
        """With the questions of all repetitions."""
        shared = [make.round() for _ in range(repetitions)]
        single = [make.round(per_clip=1) for _ in range(repetitions)]
        coming = [make.round() for _ in range(repetitions)]
        sample = [thinned(questions, make.shape.sample) for questions in shared]
        at_once = Arm("wavllm serve", sides.wavllm, shared)
        awake = sides.litserve_process.awake

        def rate() -> float:
            return at_once.done[0].requests_per_s

        return cls(
            at_once,
            Arm("wavllm serve, asked again", sides.wavllm, shared, DECODE_RATE),
            Arm("wavllm serve, a clip each", sides.wavllm, single),
            Arm("script", sides.script, sample),
            Arm("litserve", sides.litserve, shared, around=awake),
            Arm("wavllm serve, as they come", sides.wavllm, coming, rate=rate),
            Arm("batches, as they come", sides.batches, coming, rate=rate),
        )

    async def alternate(self) -> None:
        """All rounds in turn; in each repetition the same questions again right after the first time."""

        async def twice() -> float:
            rate = await self.at_once.measure()
            await self.again.measure()
            return rate

        others = (self.alone, self.script, self.litserve, self.ragged, self.batches)
        measures = {self.at_once.name: twice} | {arm.name: arm.measure for arm in others}
        await in_turn(measures, len(self.at_once.rounds))

    def row(self) -> dict[str, Any]:
        """Rates, times to the first token, and how many answers have our token ids."""
        pairs = ((self.at_once, self.script), (self.at_once, self.litserve), (self.ragged, self.batches))
        answering = (self.at_once, self.alone, self.script, self.litserve, self.ragged, self.batches)
        return {
            "litserve_version": importlib.metadata.version("litserve"),
            "arrivals_per_s": self.ragged.rate(),
            "requests_per_s": spreads(*answering),
            "decode_tokens_per_s": spreads(self.again, self.script, figure=DECODE_RATE),
            "ttft_p95_s": spreads(self.at_once, self.litserve, self.ragged, self.batches, figure=TTFT_P95),
            "agreement": {theirs.name: agreement(ours, theirs) for ours, theirs in pairs},
        }


def run(workload: Coroutine[Any, Any, Outcome]) -> Outcome:
    """To the end. Raises BenchError where the peers' threads would wait otherwise than the engine's."""
    with contextlib.closing(workload):
        waiting.check_set()
        return asyncio.run(workload)


def maker(model: Path, shape: Shape) -> QuestionMaker:
    """Questions whose instructions are counted by the model's own tokenizer."""
    return QuestionMaker(Tokenizer(model / TOKENIZER_FILE).encode, shape, SEED)


def outcome(
    workload: str, model: Path, shape: Shape, reached: Mapping[Target, record.Spread], row: Mapping[str, Any]
) -> Outcome:
    """With what a row says of where it was measured."""
    name, sizes = SpeechLLMConfig.load(model).name, dataclasses.asdict(shape)
    setup = record.setup(SEED, model=name, shape=sizes, waiting=waiting.settings())
    ratio = {target.sentence: spread for target, spread in reached.items()}
    return Outcome(reached, {"workload": workload, **setup, "reached": ratio, **row})
