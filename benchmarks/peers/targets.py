"""What is to be reached, in the issue's words, and what a workload hands back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.record import Spread


@dataclass(frozen=True, slots=True)
class Target:
    """bound: of the median; a lower bound if at_least, else an upper one."""

    sentence: str
    bound: float
    at_least: bool = True

    def is_met(self, spread: Spread) -> bool:
        """Whether the median keeps the bound."""
        return spread.median >= self.bound if self.at_least else spread.median <= self.bound

    def verdict(self, spread: Spread) -> str:
        """In a word."""
        return "met" if self.is_met(spread) else "MISSED"

    def __str__(self) -> str:
        return f"{self.sentence}: at {'least' if self.at_least else 'most'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a workload measured: each target's spread over the repetitions, and the row for the results."""

    reached: Mapping[Target, Spread]
    row: Mapping[str, Any]


def figures_of(outcome: Outcome) -> list[tuple[str, object]]:
    """Names and spreads: the targets, then what else the row has."""
    reached = outcome.reached.items()
    targets = [(f"**{target.verdict(spread)}: {target}**", spread) for target, spread in reached]
    return [*targets, *(pair for pair in spreads_in(outcome.row) if not pair[0].startswith("reached: "))]


def spreads_in(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Spread]]:
    """All spreads of a row, by their path."""
    for name, value in row.items():
        if isinstance(value, Spread):
            yield prefix + name, value
        elif isinstance(value, Mapping):
            yield from spreads_in(value, f"{prefix}{name}: ")


DECODE = Target("decode tokens/s at 16 concurrent, clips encoded, over transformers' generate alone", 5.0)
FOUR_OVER_SCRIPT = Target("requests/s with four questions a clip, over transformers' generate alone", 3.0)
ONE_OVER_SCRIPT = Target("requests/s with one question a clip, over transformers' generate alone", 1.3)
OVER_BATCHES = Target("requests/s of ragged arrivals with four questions a clip, over static batches", 1.3)
OVER_LITSERVE = Target("requests/s over HTTP with four questions a clip, over LitServe", 2.0)
TTFT_OVER_LITSERVE = Target("LitServe's p95 time to first token, over ours", 1.0)
SECOND_QUESTION = Target("time to first token of a clip's second question, over the first's", 0.25, False)
PROMPT_PASSES = Target("prompt passes for an instruction that was asked before", 0.0, False)
LAST_BLOCK = Target("KV blocks prefilled for a pair that was asked before", 1.0, False)
HTTP_ADDS = Target("ms that HTTP adds to an idle request over the engine's own time", 3.0, False)
GRPC_ADDS = Target("ms that gRPC adds to an idle request over the engine's own time", 3.0, False)
