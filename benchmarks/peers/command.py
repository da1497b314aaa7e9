"""Our engine and server beside what a Python team would use instead: same weights, clips and questions.

    python -m benchmarks.peers [WORKLOAD ...] [--model default|middle|DIR] [--repetitions 3] [--output FOLDER]

Appends a row for each workload to peers.jsonl in the folder, prints what was reached. Exits with 1 if a
target is missed. The sizes are those of the targets unless options change them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.command import run_workloads, workload_parser
from benchmarks.peers import reuse, transport, workloads
from benchmarks.peers.questions import Shape
from benchmarks.peers.targets import Outcome, figures_of


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """What measures it, how often and with which sizes unless one says otherwise."""

    measure: Callable[[Path, int, Shape], Outcome]
    repetitions: int
    shape: Shape


WORKLOADS = {
    "requests": Workload(workloads.requests, workloads.REPETITIONS, workloads.SHAPE),
    "reuse": Workload(reuse.reuse, reuse.REPETITIONS, reuse.SHAPE),
    "transport": Workload(transport.transport, workloads.REPETITIONS, transport.SHAPE),
}
RESULTS = "peers"


def table(outcomes: Sequence[Outcome]) -> str:
    """What was reached and the figures behind it, in Markdown."""
    lines = ["| workload | figure | median (range, repetitions) |", "|---|---|---|"]
    for one in outcomes:
        figures = figures_of(one)
        for name, agreed in one.row.get("agreement", {}).items():
            counts = f"{agreed['equal']} of {agreed['compared']}"
            figures.append((f"answers with our token ids: {name}", counts))
        lines += [f"| {one.row['workload']} | {name} | {figure} |" for name, figure in figures]
    return "\n".join(lines)


def shape_of(options: argparse.Namespace, default: Shape) -> Shape:
    """The sizes that were given, the others as they are."""
    names = [field.name for field in dataclasses.fields(Shape)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(default, **given)


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = workload_parser(__doc__, RESULTS, WORKLOADS)
    parser.add_argument("--repetitions", type=int)
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    return parser


def measure(name: str, model: Path, options: argparse.Namespace) -> Outcome:
    """One workload, with what the options leave open as it is."""
    workload = WORKLOADS[name]
    repetitions = options.repetitions or workload.repetitions
    return workload.measure(model, repetitions, shape_of(options, workload.shape))


def main() -> None:
    """Measure, write, print."""
    run_workloads(make_parser(), RESULTS, WORKLOADS, measure, table)
