"""The pure parts of memory, scheduling and stalls."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.in_process import Step
from benchmarks.memory import slope_of
from benchmarks.scheduling import Scheduling
from benchmarks.stalls import gaps
from server.bench.types import BenchError
from server.types import Delta, EngineTimings, Finished, StepOutput, Usage

NUM_SAMPLES = 100


def neighbours(seed: int) -> np.ndarray:
    """Noise whose neighbours resemble each other, as resident memory's do."""
    steps = np.random.default_rng(seed).normal(0, 20, NUM_SAMPLES)
    noise = np.zeros(NUM_SAMPLES)
    for index in range(1, NUM_SAMPLES):
        noise[index] = 0.5 * noise[index - 1] + steps[index]
    return noise


def test_a_leak_is_found_and_a_flat_line_is_none() -> None:
    flat = [slope_of(5000 + neighbours(seed), every=10).certain_growth for seed in range(20)]
    assert sum(growth > 0 for growth in flat) <= 2
    leaking = slope_of(5000 + neighbours(1) + 10 * np.arange(NUM_SAMPLES), every=10)
    assert leaking.low < 1.0 < leaking.high
    assert leaking.certain_growth > 0.8
    assert slope_of(5000 - 10 * np.arange(NUM_SAMPLES)).certain_growth == 0
    assert slope_of([7.0] * NUM_SAMPLES).certain_growth == 0


def test_a_late_high_mark_is_no_leak_and_frequent_ones_are() -> None:
    once, often = (np.zeros(NUM_SAMPLES) for _ in range(2))
    once[63:] += 1800
    often += 1800 * (np.arange(NUM_SAMPLES) // 12)
    assert slope_of(5000 + once, every=10).certain_growth == 0
    assert slope_of(5000 + often, every=10).certain_growth > 5


def test_the_slope_is_that_of_a_request() -> None:
    slope = slope_of(3.0 * np.arange(50), every=10)
    assert slope.estimate == pytest.approx(0.3)
    assert slope.low == pytest.approx(0.3)


@pytest.mark.parametrize(("running", "waiting"), [(5, 0), (5, 40)])
def test_so_many_decode_and_so_many_wait(running: int, waiting: int) -> None:
    scheduling = Scheduling(running, waiting)
    assert (scheduling.scheduler.num_running, scheduling.scheduler.num_waiting) == (running, waiting)
    assert [scheduling.step() for _ in range(40)] == [running] * 40
    assert scheduling.step_ms() > 0
    scheduling.scheduler.check_integrity()


@dataclass
class Scripted:
    """An engine whose steps take 10 ms; every third gives "a" a token, every fifth ends a clip's question."""

    encoding: tuple[str, ...] = ("clip",)
    submitted: list[str] = field(default_factory=list)
    steps: int = 0

    @property
    def core(self) -> SimpleNamespace:
        return SimpleNamespace(encoding=SimpleNamespace(keys=self.encoding))

    def submit(self, question: str, num_tokens: int) -> None:
        self.submitted.append(question)

    def step(self) -> Step:
        self.steps += 1
        events: tuple[object, ...] = (Delta("other", "", (1,)),)
        if self.steps % 3 == 0:
            events += (Delta("a", "", (1,)),)
        if self.steps % 5 == 0:
            events += (Finished("other", "length", Usage(1, 1, 1, 0), EngineTimings(0, 0, 0)),)
        return Step(0.01, StepOutput(events))  # type: ignore[arg-type]


def test_a_gap_is_the_time_of_all_steps_between_two_tokens() -> None:
    engine = Scripted()
    assert gaps(engine, "a", 4) == pytest.approx([30.0] * 4)  # type: ignore[arg-type]
    assert not engine.submitted


def test_questions_keep_arriving_as_others_end() -> None:
    engine = Scripted()
    gaps(engine, "a", 5, lambda: "q")  # type: ignore[arg-type, return-value]
    assert engine.steps == 15
    assert len(engine.submitted) == 2 + 2  # the third ended in the last step


def test_gaps_without_a_clip_under_way_are_refused() -> None:
    with pytest.raises(BenchError, match="clips were under way in 0 steps"):
        gaps(Scripted(encoding=()), "a", 4, lambda: "q")  # type: ignore[arg-type, return-value]
