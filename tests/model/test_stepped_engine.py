"""What is measured on an engine stepped by hand, for real, at sizes at which no figure means anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import growth, stalls
from benchmarks.in_process import SteppedEngine, heard
from server.bench.questions import synthetic_clip
from server.bench.types import BenchError, Question

pytestmark = pytest.mark.usefixtures("_quiet_threads")


def test_clips_of_one_name_are_told_apart() -> None:
    short, long = synthetic_clip(0.5, 1), synthetic_clip(1.0, 1)
    assert short.name == long.name
    assert (len(heard(short.data).waveform), len(heard(long.data).waveform)) == (8_000, 16_000)


def test_so_many_answers_are_under_way_until_they_are_dropped(endless: Path) -> None:
    engine = SteppedEngine(endless)
    beside = engine.core.scheduler.limits.prefill_beside
    question = Question("q", synthetic_clip(0.5, 1), "What is said?")
    accepted = engine.fill(question, 5, 100)
    assert [engine.step().num_tokens for _ in range(3)] == [5, 5, 5]
    assert {len(s.prompt) for s in engine.core.scheduler.live()} == {accepted.prompt_tokens}
    assert engine.core.scheduler.limits.prefill_beside == beside
    engine.drop_all()
    assert not engine.core.scheduler.live()
    assert engine.steps_to_the_end() == []


def test_what_cannot_be_asked_ends_the_run(endless: Path) -> None:
    engine = SteppedEngine(endless, max_batch_size=4)
    with pytest.raises(BenchError, match="refused"):
        engine.submit(Question("q", synthetic_clip(0.5, 1), "What? " * 3000), 1)
    with pytest.raises(BenchError, match="5 answers at once, but room for 4"):
        engine.fill(Question("q", synthetic_clip(0.5, 1), "What?"), 5, 10)


def test_every_curve_has_its_points(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "RUNNING", (1, 9))
    monkeypatch.setattr(growth, "CONTEXTS", (125, 1500))
    monkeypatch.setattr(growth, "CLIP_SECONDS", (1.0, 2.5, 500.0))
    monkeypatch.setattr(growth, "WAITING", (0, 7))
    row = growth.growth(endless, 2).row
    curves = {name: curve for name, curve in row.items() if " by " in name}
    points = [["1", "9"], ["125", "1500"], ["1", "2.5"], ["0", "7"]]
    assert [list(curve) for curve in curves.values()] == points
    assert all(s.count == 2 and s.low > 0 for curve in curves.values() for s in curve.values())


def test_gaps_of_a_running_answer(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "NUM_QUIET", 5)
    monkeypatch.setattr(stalls, "NUM_GAPS", 20)
    monkeypatch.setattr(stalls, "ENCODER_STEP_MS", 1.0)
    outcome = stalls.stalls(endless, 2, clip_seconds=4.5)
    (spread,) = outcome.reached.values()
    assert spread.count == 2
    assert 0 < outcome.row["quiet_median_ms"].low < outcome.row["longest_ms"].high
