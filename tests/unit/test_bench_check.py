"""The check of all targets: it passes when each was measured and met, and in no other way."""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from benchmarks import check
from benchmarks.check import CHECKS, Check, Line, lines_of, run, verdict
from benchmarks.command import Measure
from benchmarks.peers.targets import Outcome, Target
from benchmarks.record import Spread

ROOT = Path(__file__).resolve().parents[2]
MORE, LESS = Target("more", 2.0), Target("less", 2.0, at_least=False)
BOTH = (MORE, LESS)
GOOD = {MORE: Spread.of([2.0, 3.0, 4.0]), LESS: Spread.of([0.5, 1.0, 1.5])}
HOLDERS = (
    "benchmarks.decoders.targets",
    "benchmarks.peers.targets",
    "benchmarks.floor.targets",
    "benchmarks.memory",
    "benchmarks.scheduling",
    "benchmarks.stalls",
    "benchmarks.startup",
)


def good(repetitions: int) -> Outcome:
    return Outcome(GOOD, {"repetitions": repetitions})


def missed(repetitions: int) -> Outcome:
    return Outcome(GOOD | {LESS: Spread.of([1.0, 2.1, 9.0])}, {})


def silent(repetitions: int) -> Outcome:
    return Outcome({MORE: GOOD[MORE]}, {})


def hasty(repetitions: int) -> Outcome:
    return Outcome(GOOD | {LESS: Spread.of([1.0, 1.0])}, {})


def broken(repetitions: int) -> Outcome:
    raise OSError("no such\nprogram")


def dying(repetitions: int) -> Outcome:
    os._exit(0)


def here(measure: Measure, repetitions: int) -> Outcome:
    return measure(repetitions)


def checked(measure: Measure, folder: Path) -> list[Line]:
    return list(run([Check("one", "rows", measure, BOTH)], 3, folder, here))


def test_all_met_passes_and_leaves_a_row(tmp_path: Path) -> None:
    lines = checked(good, tmp_path)
    assert [str(line)[:12].strip() for line in lines] == ["met", "met"]
    assert verdict(lines, BOTH)
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == '{"repetitions": 3}\n'


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (missed, ["met", "MISSED        less: at most 2: 2.1 (1 to 9, n=3)"]),
        (silent, ["met", "NOT MEASURED  less: at most 2: the workload left it out"]),
        (hasty, ["met", "NOT MEASURED  less: at most 2: 2 repetitions, not 3"]),
    ],
)
def test_a_target_that_is_missed_or_left_out_fails(measure: Measure, words: list[str]) -> None:
    lines = lines_of(Check("one", "rows", measure, BOTH), measure(3), 3)
    for line, start in zip(lines, words, strict=True):
        assert str(line).startswith(start)
    assert not verdict(lines, BOTH)


def test_a_measurement_that_breaks_fails_each_of_its_targets(tmp_path: Path) -> None:
    lines = checked(broken, tmp_path)
    assert [line.target for line in lines] == list(BOTH)
    why = "OSError: no such program"
    assert all(str(line).startswith("NOT MEASURED") and str(line).endswith(why) for line in lines)
    assert not verdict(lines, BOTH)


@pytest.mark.slow
def test_a_measurement_whose_process_dies_fails(tmp_path: Path) -> None:
    (line, _) = run([Check("one", "rows", dying, BOTH)], 3, tmp_path)
    assert "BrokenProcessPool" in str(line)
    assert not line.is_met


@pytest.mark.slow
def test_sigterm_ends_the_measurement_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.check", "scheduling", "--repetitions", "1000"]
    with subprocess.Popen([*command, "--output", tmp_path], cwd=ROOT) as checking:
        # A tracker of resources, the server of forks, and what it forked.
        wait_for(lambda: len(psutil.Process(checking.pid).children(recursive=True)) > 2)
        measuring = psutil.Process(checking.pid).children(recursive=True)
        checking.terminate()
        assert checking.wait(30) == 128 + signal.SIGTERM
    assert psutil.wait_procs(measuring, 30)[1] == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_target_without_a_line_fails() -> None:
    lines = [Line(MORE, GOOD[MORE])]
    assert verdict(lines, [MORE])
    assert not verdict(lines, BOTH)
    assert not verdict([], [MORE])


def test_no_number_meets_no_target() -> None:
    assert not any(Line(target, Spread.of([math.nan] * 3)).is_met for target in BOTH)


def test_every_target_there_is_is_checked_once() -> None:
    listed = [target for one in CHECKS for target in one.targets]
    held = [value for name in HOLDERS for value in vars(importlib.import_module(name)).values()]
    nested = [one for value in held if isinstance(value, dict) for one in value.values()]
    assert set(listed) == {value for value in [*held, *nested] if isinstance(value, Target)}
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("arguments", [["nothing"], ["--repetitions", "2"]])
def test_the_command_refuses_what_would_check_less(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(check, "restart_passive", lambda: None)
    monkeypatch.setattr("sys.argv", ["check", *arguments])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 2


@pytest.mark.parametrize(("measure", "code"), [(good, 0), (missed, 1), (broken, 1)])
def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measure: Measure, code: int
) -> None:
    monkeypatch.setattr(check, "restart_passive", lambda: None)
    monkeypatch.setattr(check, "CHECKS", (Check("one", "rows", measure, BOTH),))
    monkeypatch.setattr(check, "run", partial(run, apart=here))
    monkeypatch.setattr("sys.argv", ["check", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == code


def test_what_a_docstring_calls_a_command_is_one() -> None:
    """What is imported only would do nothing, and exit with 0."""
    documented, silent = 0, []
    for path in (ROOT / "benchmarks").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if f"python -m {module} " in text.split('"""')[1]:
            documented += 1
            silent += [] if '\nif __name__ == "__main__":\n' in text else [module]
    assert documented >= 8
    assert silent == []
