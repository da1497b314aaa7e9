"""How a measurement is repeated, summed up and written down."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from server.bench.setup import ROOT, commit, processor

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = ("torch", "transformers", "peft", "numpy")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up `values`, at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g}, n={self.count})"


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Spread of above[i] / below[i]: both of one repetition, for the machine's speed drifts."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def alternate(arms: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Measure the arms in turn, `repetitions` rounds of all of them, every other round backwards."""
    measured: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions):
        for name in list(arms) if repetition % 2 == 0 else reversed(list(arms)):
            measured[name].append(arms[name]())
    return measured


def setup(seed: int, **more: Any) -> dict[str, Any]:
    """What a row says of where it was measured."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "commit": commit(ROOT),
        "processor": processor(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        **more,
    }


def append(name: str, row: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Add a row to results/NAME.jsonl. Spreads become objects."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, default=_plain) + "\n")
    return path


def _plain(value: object) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written to a row")
