"""How the cost of a step grows: with running sequences, with their context, with a clip, with the queue.

    python -m benchmarks.growth [--model default|middle|DIR] [--repetitions 3] [--output FOLDER]

There is no target: the row says what each costs, in ms of the engine's own steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import command, record
from benchmarks.in_process import SteppedEngine
from benchmarks.peers.arms import note
from benchmarks.peers.questions import QuestionMaker, Shape
from benchmarks.peers.targets import Outcome
from benchmarks.scheduling import Scheduling
from model.checkpoint_format import TOKENIZER_FILE
from model.tokenizer import Tokenizer
from server.bench.types import BenchError

SEED = 4
REPETITIONS = 3
RUNNING = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (125, 250, 500, 1000, 1500)
"""Tokens, about: as many as an instruction of so many makes."""
CONTEXT_BATCH = 8
CLIP_SECONDS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0)
WAITING = (0, 100, 1_000, 10_000)
QUEUE_BATCH = 32
NUM_STEPS = 8
ENDLESS = 400

Curve = dict[str, record.Spread]
"""Milliseconds by what grows."""


def growth(model: Path, repetitions: int = REPETITIONS) -> Outcome:
    """All curves of one model."""
    engine = SteppedEngine(model, max_batch_size=max(RUNNING))
    encode = Tokenizer(model / TOKENIZER_FILE).encode
    limits = engine.core.info
    contexts = [size for size in CONTEXTS if size + ENDLESS <= limits.max_context_tokens]
    clips = [seconds for seconds in CLIP_SECONDS if seconds <= limits.max_audio_seconds]

    def running(count: float) -> list[float]:
        return step_ms(engine, QuestionMaker(encode, Shape(1.0), SEED), int(count), repetitions)

    def context(size: float) -> list[float]:
        shape = Shape(1.0, instruction_tokens=int(size))
        return step_ms(engine, QuestionMaker(encode, shape, SEED), CONTEXT_BATCH, repetitions)

    def clip(seconds: float) -> list[float]:
        make = QuestionMaker(encode, Shape(seconds), SEED + 1)  # other clips than were asked about before
        return [encoding_ms(engine, make) for _ in range(repetitions)]

    def queue(waiting: float) -> list[float]:
        return [Scheduling(QUEUE_BATCH, int(waiting)).step_ms() for _ in range(repetitions)]

    curves = {
        "step ms by running": curve("running", RUNNING, running),
        f"step ms by instruction tokens at {CONTEXT_BATCH} running": curve("tokens", contexts, context),
        "encoding ms by seconds of clip": curve("seconds", clips, clip),
        f"scheduler ms by waiting at {QUEUE_BATCH} running": curve("waiting", WAITING, queue),
    }
    return command.outcome_of("growth", SEED, {}, curves, model=limits.name)


def curve(what: str, points: Sequence[float], measure: Callable[[float], list[float]]) -> Curve:
    """A spread for each point."""
    found = {}
    for point in points:
        found[f"{point:g}"] = record.Spread.of(measure(point))
        note(f"{point:g} {what}: {found[f'{point:g}']} ms")
    return found


def step_ms(engine: SteppedEngine, make: QuestionMaker, batch: int, repetitions: int) -> list[float]:
    """The median decode step of each repetition, with so many answers under way."""
    engine.fill(make.about(make.clip()), batch, ENDLESS)
    medians = []
    for _ in range(repetitions):
        steps = [engine.step() for _ in range(NUM_STEPS)]
        if {step.num_tokens for step in steps} != {batch}:
            raise BenchError(f"not {batch} tokens in each step: {[step.num_tokens for step in steps]}")
        medians.append(1e3 * statistics.median(step.seconds for step in steps))
    engine.drop_all()
    return medians


def encoding_ms(engine: SteppedEngine, make: QuestionMaker) -> float:
    """Both encoders on a new clip, with nothing else to do."""
    engine.submit(make.about(make.clip()), 1)
    runs = [run for step in engine.steps_to_the_end() for run in step.output.encoder_runs]
    if len(runs) != 2:
        raise BenchError(f"not a run of each encoder: {runs}")
    return 1e3 * sum(run.seconds for run in runs)


if __name__ == "__main__":
    command.run_on_model(__doc__, "growth", growth, REPETITIONS)
