"""Seconds from the start of `wavllm serve` until it is ready, with the embedded default.

    python -m benchmarks.startup [--repetitions 3] [--output FOLDER]

Readiness is asked for every 0.2 s, so a figure is too large by as much at most.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import command, record, sizes
from benchmarks.peers.arms import note
from benchmarks.peers.served import serve_wavllm
from benchmarks.peers.targets import Outcome, Target
from model.config import SpeechLLMConfig

SEED = 0
REPETITIONS = 3
READY_S = Target("seconds from start to ready with the embedded default", 8.0, False)


def startup(repetitions: int = REPETITIONS, model: Path = sizes.DEFAULT) -> Outcome:
    """One start after another, none left out; from the second on the system has the files in its cache."""
    reached = {READY_S: record.Spread.of([start_s(model) for _ in range(repetitions)])}
    return command.outcome_of("startup", SEED, reached, {}, model=SpeechLLMConfig.load(model).name)


def start_s(model: Path) -> float:
    """Start, wait until ready, end."""
    begin = time.perf_counter()
    with serve_wavllm(model):
        seconds = time.perf_counter() - begin
    note(f"ready after {seconds:.3g} s")
    return seconds


if __name__ == "__main__":
    command.run(__doc__, "startup", startup, REPETITIONS)
