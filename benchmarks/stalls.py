"""What a running answer feels while clips of a minute keep arriving, on the engine in this process.

    python -m benchmarks.stalls [--model default|middle|DIR] [--repetitions 3] [--output FOLDER]

A gap is the time that the engine's steps take from one token of the answer to its next. Arriving clips are
made between steps, which no gap sees; two of their questions are always there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import command, record
from benchmarks.in_process import SteppedEngine
from benchmarks.peers.arms import note
from benchmarks.peers.questions import QuestionMaker, Shape
from benchmarks.peers.targets import Outcome, Target
from model.checkpoint_format import TOKENIZER_FILE
from model.tokenizer import Tokenizer
from server.bench.types import BenchError, Question
from server.types import Delta, Finished, StepOutput

SEED = 4
REPETITIONS = 3
LONG_CLIP_S = 60.0
NUM_QUIET, NUM_GAPS = 40, 200
NUM_PENDING = 2
ENCODER_STEP_MS = 100.0
"""`--encoder-step-ms` on a CPU unless an operator says otherwise."""
P99_GAP = Target(
    "ms by which the p99 gap of a running answer exceeds its quiet median while 60 s clips arrive",
    ENCODER_STEP_MS,
    False,
)


def stalls(model: Path, repetitions: int = REPETITIONS, clip_seconds: float = LONG_CLIP_S) -> Outcome:
    """An answer anew in each repetition. Raises BenchError if no clip was under way throughout."""
    engine = SteppedEngine(model, encoder_step_ms=ENCODER_STEP_MS)
    encode = Tokenizer(model / TOKENIZER_FILE).encode
    asked, arriving = (QuestionMaker(encode, Shape(seconds), SEED) for seconds in (1.0, clip_seconds))
    quiet, loud, worst = [], [], []
    for _ in range(repetitions):
        engine.fill(asked.about(asked.clip()), 1, 10 + NUM_QUIET + NUM_GAPS)
        (name,) = (sequence.request_id for sequence in engine.core.scheduler.live())
        quiet.append(float(np.median(gaps(engine, name, NUM_QUIET))))
        gaps_ms = gaps(engine, name, NUM_GAPS, lambda: arriving.about(arriving.clip()))
        loud.append(float(np.percentile(gaps_ms, 99)))
        worst.append(max(gaps_ms))
        note(f"quiet median {quiet[-1]:.4g} ms, p99 {loud[-1]:.4g} ms, longest {worst[-1]:.4g} ms")
        engine.drop_all()
    exceeding = [one - other for one, other in zip(loud, quiet, strict=True)]
    spreads = {"quiet_median_ms": quiet, "p99_ms": loud, "longest_ms": worst}
    return command.outcome_of(
        "stalls",
        SEED,
        {P99_GAP: record.Spread.of(exceeding)},
        {name: record.Spread.of(values) for name, values in spreads.items()},
        model=engine.core.info.name,
        clip_seconds=clip_seconds,
        num_gaps=NUM_GAPS,
    )


def gaps(
    engine: SteppedEngine, name: str, count: int, arrive: Callable[[], Question] | None = None
) -> list[float]:
    """So many gaps of the answer `name`, in ms. arrive: makes what is to be waiting all the time."""
    found: list[float] = []
    since, pending, busy = 0.0, 0, 0
    while len(found) < count:
        while arrive is not None and pending < NUM_PENDING:
            engine.submit(arrive(), 1)
            pending += 1
        step = engine.step()
        since += 1e3 * step.seconds
        pending -= sum(isinstance(event, Finished) for event in step.output.events)
        busy += bool(engine.core.encoding.keys)
        if has_token(step.output, name):
            found.append(since)
            since = 0.0
    if arrive is not None and busy < count / 2:
        raise BenchError(f"clips were under way in {busy} steps, {count} gaps")
    return found


def has_token(output: StepOutput, name: str) -> bool:
    """Whether the answer got one."""
    return any(isinstance(event, Delta) and event.request_id == name for event in output.events)


if __name__ == "__main__":
    command.run_on_model(__doc__, "stalls", stalls, REPETITIONS)
