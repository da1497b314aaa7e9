"""The comparisons with the peers, each a function of a model directory that measures its targets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import operator
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.peers import waiting
from benchmarks.peers.arms import Arm, agreement, alternate, ask, note, ratios, spreads
from benchmarks.peers.questions import QuestionMaker, Shape, thinned
from benchmarks.peers.script import Script
from benchmarks.peers.served import LitServeSide, WavllmSide, serve_litserve, serve_wavllm
from benchmarks.peers.sides import BatchSide, EngineSide, ScriptSide, Side
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


def decode_against_script(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """Tokens per second of decoding, all questions at once, against one at a time.

    Encoding and prefill are out of it on both sides: ours was asked each question once before and finds
    clip and prefix in its caches; the script's clips are prepared and its clock runs from the first token.
    """
    return run(_decode(model, repetitions, shape))


async def _decode(model: Path, repetitions: int, shape: Shape) -> Outcome:
    script = ScriptSide(Script(model), shape.answer_tokens)
    questions = maker(model, shape).round()
    sample = thinned(questions, shape.sample)
    async with EngineSide.started(model, shape.answer_tokens) as engine:
        note("asking all questions once")
        await ask(engine, questions)
        script.prepare(sample)
        await ask(script, sample[:1])
        ours = Arm("engine", engine, [questions] * repetitions, DECODE_RATE)
        theirs = Arm("script", script, [sample] * repetitions, DECODE_RATE)
        await alternate(ours, theirs)
    row = {"decode_tokens_per_s": spreads(ours, theirs), "agreement": agreement(ours, theirs)}
    return outcome("decode", model, shape, {DECODE: ratios(ours, theirs)}, row)


def requests_against_script(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """Requests per second, all at once, against one at a time: `per_clip` questions a clip, then one a clip.

    Clips and instructions are new in each repetition. The script is asked a part of the first questions.
    """
    return run(_requests(model, repetitions, shape))


async def _requests(model: Path, repetitions: int, shape: Shape) -> Outcome:
    script, make = ScriptSide(Script(model), shape.answer_tokens), maker(model, shape)
    shared = [make.round() for _ in range(repetitions)]
    single = [make.round(per_clip=1) for _ in range(repetitions)]
    async with EngineSide.started(model, shape.answer_tokens) as engine:
        await _warm_up(make, engine, script)
        ours = Arm("engine, shared clips", engine, shared)
        alone = Arm("engine, a clip each", engine, single)
        theirs = Arm("script", script, [thinned(questions, shape.sample) for questions in shared])
        await alternate(ours, alone, theirs)
    reached = {FOUR_OVER_SCRIPT: ratios(ours, theirs), ONE_OVER_SCRIPT: ratios(alone, theirs)}
    row = {"requests_per_s": spreads(ours, alone, theirs), "agreement": agreement(ours, theirs)}
    return outcome("requests", model, shape, reached, row)


def requests_against_batches(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """Requests per second of ragged arrivals, against static padded batches of up to `num_questions`.

    Both sides meet the same Poisson arrivals, at the rate that our engine reaches with all at once.
    """
    return run(_batches(model, repetitions, shape))


async def _batches(model: Path, repetitions: int, shape: Shape) -> Outcome:
    make = maker(model, shape)
    rounds = [make.round() for _ in range(repetitions)]
    batches = BatchSide(
        Script(model), shape.answer_tokens, max_batch=shape.num_questions, wait_s=WAIT_S
    )
    async with batches.running(), EngineSide.started(model, shape.answer_tokens) as engine:
        await _warm_up(make, engine, batches)
        rate = (await ask(engine, make.round())).requests_per_s
        note(f"{rate:.4g} arrivals a second")
        ours, theirs = Arm("engine", engine, rounds, rate=rate), Arm("batches", batches, rounds, rate=rate)
        await alternate(ours, theirs)
    row = {"arrivals_per_s": rate, **_rates(ours, theirs)}
    return outcome("batches", model, shape, {OVER_BATCHES: ratios(ours, theirs)}, row)


def servers_against_litserve(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """Two real servers over HTTP, all questions at once: requests per second, p95 time to first token."""
    return run(_servers(model, repetitions, shape))


async def _servers(model: Path, repetitions: int, shape: Shape) -> Outcome:
    make = maker(model, shape)
    rounds = [make.round() for _ in range(repetitions)]
    async with contextlib.AsyncExitStack() as stack:
        litserve = stack.enter_context(serve_litserve(model, shape.num_questions, WAIT_S))
        wavllm = stack.enter_context(serve_wavllm(model))
        our_side = WavllmSide(wavllm.url, shape.answer_tokens)
        their_side = LitServeSide(litserve.url, shape.answer_tokens)
        stack.push_async_callback(our_side.aclose)
        stack.push_async_callback(their_side.aclose)
        await _warm_up(make, our_side, their_side)
        litserve.pause()
        ours = Arm("wavllm serve", our_side, rounds)
        theirs = Arm("litserve", their_side, rounds, around=litserve.awake)
        await alternate(ours, theirs)
    reached = {OVER_LITSERVE: ratios(ours, theirs), TTFT_OVER_LITSERVE: ratios(theirs, ours, TTFT_P95)}
    row = {"litserve_version": importlib.metadata.version("litserve"), **_rates(ours, theirs)}
    return outcome("litserve", model, shape, reached, row)


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


async def _warm_up(make: QuestionMaker, *sides: Side) -> None:
    """A question each: memory, kernels and connections are there before the first that counts."""
    for side in sides:
        note(f"warming up: {type(side).__name__}")
        await ask(side, make.round(1))


def _rates(ours: Arm, theirs: Arm) -> dict[str, Any]:
    return {
        "requests_per_s": spreads(ours, theirs),
        "ttft_p95_s": spreads(ours, theirs, figure=TTFT_P95),
        "agreement": agreement(ours, theirs),
    }
