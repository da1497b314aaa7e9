"""The language model alone beside other decoders: same weights, prompts and lengths, float32, greedy.

    python -m benchmarks.decoders [text speech] [--model default|middle|DIR] [--peers NAME ...]

`text` measures all peers in turn with ours, unless some are named. `speech` is a model that hears, behind
vLLM's server and behind ours; its sizes are those of benchmarks.peers. Appends a row for each workload to
decoders.jsonl in the folder, prints what was reached. Exits with 1 if a target is missed. The peers'
environments come from `make bench-env`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.command import run_workloads, workload_parser
from benchmarks.decoders.peers import PEERS
from benchmarks.decoders.prompts import Shape
from benchmarks.decoders.speech import against_qwen2_audio
from benchmarks.decoders.workloads import REPETITIONS, SHAPE, against
from benchmarks.peers.targets import Outcome, figures_of

WORKLOADS = ("text", "speech")
RESULTS = "decoders"


def table(outcomes: Sequence[Outcome]) -> str:
    """What was reached, the figures behind it and the agreement of the answers, in Markdown."""
    lines = ["| workload | figure | median (range, repetitions) |", "|---|---|---|"]
    for one in outcomes:
        figures = figures_of(one)
        figures += [(f"agreement: {name}", agreed(counts)) for name, counts in agreements(one)]
        figures.append(("cores that other programs took before", f"{100 * one.row['others_busy']:.0f} %"))
        lines += [f"| {one.row['workload']} | {name} | {figure} |" for name, figure in figures]
    return "\n".join(lines)


def agreements(outcome: Outcome) -> Iterable[tuple[str, dict[str, int]]]:
    """By the peer's name and batch; none where both sides have weights of their own."""
    counts: Mapping[str, dict[str, int]] = outcome.row.get("agreement", {})
    return counts.items()


def agreed(counts: dict[str, int]) -> str:
    """In words."""
    tokens = f"{counts['tokens_agreed']} of {counts['tokens']} tokens before a first difference"
    return f"{counts['equal']} of {counts['compared']} answers, {tokens}"


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = workload_parser(__doc__, RESULTS, WORKLOADS)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS), metavar="NAME")
    parser.add_argument("--prompt-tokens", type=int, default=SHAPE.prompt_tokens)
    parser.add_argument("--answer-tokens", type=int, default=SHAPE.answer_tokens)
    parser.add_argument("--batches", type=int, nargs="+", default=SHAPE.batches)
    return parser


def measure(name: str, model: Path, options: argparse.Namespace) -> Outcome:
    """One workload."""
    if name == "speech":
        return against_qwen2_audio(model, options.repetitions)
    shape = Shape(options.prompt_tokens, options.answer_tokens, tuple(options.batches))
    return against(model, options.repetitions, shape, options.peers)


def main() -> None:
    """Measure, write, print."""
    run_workloads(make_parser(), RESULTS, WORKLOADS, measure, table)
