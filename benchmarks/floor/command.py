"""Every stage of the engine against what this machine allows, measured in the same run.

    python -m benchmarks.floor [--model default|middle|DIR] [--repetitions 3] [--clip-seconds 10]
                               [--output FOLDER]

Appends a row to floor.jsonl in the folder, prints a table. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import record, sizes
from benchmarks.floor.measure import REPETITIONS, floor
from benchmarks.peers.targets import Outcome

RESULTS = "floor"


def table(outcome: Outcome) -> str:
    """Stages and targets, in Markdown."""
    row = outcome.row
    lines = [
        f"Reads {row['read_bytes_per_s'] / 1e9:.3g} GB/s, multiplies {row['matrix_flops_per_s'] / 1e9:.3g} "
        f"GFLOP/s; {row['model']}, clip of {row['clip_seconds']:g} s.",
        "",
        "| stage | GFLOP | MB | ms | floor ms | over the floor | over the machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, stage in row["stages"].items():
        cells = [
            f"{stage['flops'] / 1e9:.3g}",
            f"{stage['bytes'] / 1e6:.3g}",
            f"{1e3 * stage['engine_s'].median:.3g}",
            f"{1e3 * stage['floor_s'].median:.3g}",
            str(stage["over_floor"]),
            str(stage["over_machine"]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    reached = outcome.reached.items()
    lines += ["", *(f"{target.verdict(spread)}: {target}: {spread}" for target, spread in reached)]
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="middle", help=f"{' or '.join(sizes.MODELS)}, or a directory")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--clip-seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of floor.jsonl")
    options = parser.parse_args()
    model = sizes.open_size(options.model) if options.model in sizes.MODELS else Path(options.model)
    outcome = floor(model, options.repetitions, options.clip_seconds)
    record.append(RESULTS, outcome.row, options.output)
    sys.stdout.write(table(outcome) + "\n")
    sys.exit(any(not target.is_met(spread) for target, spread in outcome.reached.items()))
