"""What every measurement of one function has for a command: options, a row, a table, an exit status."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record, sizes
from benchmarks.peers.arms import note
from benchmarks.peers.targets import Outcome, figures_of
from benchmarks.peers.waiting import restart_passive

Measure = Callable[[int], Outcome]
"""Repetitions -> what came of it."""
MeasureModel = Callable[[Path, int], Outcome]
"""Model directory and repetitions -> what came of it."""


def run(description: str | None, results: str, measure: Measure, repetitions: int) -> None:
    """Measure what needs no model of the user's choice, append a row to `results`.jsonl, print.

    Exits with 1 if a target is missed. Threads wait as the engine's.
    """
    restart_passive()
    options = _parser(description, results, repetitions).parse_args()
    _finish(measure(options.repetitions), results, options.output)


def run_on_model(description: str | None, results: str, measure: MeasureModel, repetitions: int) -> None:
    """The same with `--model`."""
    restart_passive()
    parser = _parser(description, results, repetitions)
    parser.add_argument("--model", default="middle", help=f"{' or '.join(sizes.MODELS)}, or a directory")
    options = parser.parse_args()
    _finish(measure(open_model(options.model), options.repetitions), results, options.output)


def workload_parser(description: str | None, results: str, names: Iterable[str]) -> argparse.ArgumentParser:
    """Options of a command that measures several workloads: which, on what model, written where."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(names)}; all unless given")
    parser.add_argument("--model", default="middle", help=f"{' or '.join(sizes.MODELS)}, or a directory")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help=f"folder of {results}.jsonl")
    return parser


def run_workloads(
    parser: argparse.ArgumentParser,
    results: str,
    names: Collection[str],
    measure: Callable[[str, Path, argparse.Namespace], Outcome],
    table: Callable[[Sequence[Outcome]], str],
) -> None:
    """Measure the workloads asked for, append a row for each, print; exits with 1 if a target is missed.

    measure: a workload's name, the model directory and the options -> what came of it. SIGTERM ends it like
    an error, and with it the processes that it started.
    """
    exit_at_sigterm()
    options = parser.parse_args()
    if unknown := set(options.workload) - set(names):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    model = open_model(options.model)
    outcomes = []
    for name in options.workload or names:
        note(name)
        outcomes.append(measure(name, model, options))
        record.append(results, outcomes[-1].row, options.output)
    sys.stdout.write(table(outcomes) + "\n")
    sys.exit(not all(map(_is_met, outcomes)))


def exit_at_sigterm() -> None:
    """Let SIGTERM end this process in good order, servers that it started included."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _parser(description: str | None, results: str, repetitions: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help=f"folder of {results}.jsonl")
    return parser


def _finish(outcome: Outcome, results: str, folder: Path) -> None:
    record.append(results, outcome.row, folder)
    sys.stdout.write(table(outcome) + "\n")
    sys.exit(not _is_met(outcome))


def _is_met(outcome: Outcome) -> bool:
    return all(target.is_met(spread) for target, spread in outcome.reached.items())


def open_model(name: str) -> Path:
    """One of the sizes by its name, made at first use, or a directory."""
    return sizes.open_size(name) if name in sizes.MODELS else Path(name)


def table(outcome: Outcome) -> str:
    """Targets and all spreads of the row, in Markdown."""
    lines = ["| figure | median (range, repetitions) |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {spread} |" for name, spread in figures_of(outcome))])


def outcome_of(
    workload: str, seed: int, reached: Mapping[Any, record.Spread], row: Mapping[str, Any], **setup: Any
) -> Outcome:
    """With what a row says of where it was measured."""
    ratio = {target.sentence: spread for target, spread in reached.items()}
    return Outcome(
        reached, {"workload": workload, **record.setup(seed, **setup), "reached": ratio, **row}
    )
