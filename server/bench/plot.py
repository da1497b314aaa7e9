"""Latency and throughput against load as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

LATENCIES = {"ttft_ms": "time to first token", "itl_ms": "inter-token latency", "e2e_ms": "end to end"}
STYLES = {"p50": "-", "p95": "--", "p99": ":"}


def plot_latency(rows: Rows, path: Path) -> None:
    """rows: as in results.json. One place on the axis for each rate, so that infinity has one, too."""
    figure = Figure(figsize=(4.2 * (len(LATENCIES) + 1), 4), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: no display, no global state
    *panels, last = figure.subplots(1, len(LATENCIES) + 1)
    for axes, (name, title) in zip(panels, LATENCIES.items(), strict=True):
        _plot_percentiles(axes, rows, name, title)
    _plot_throughput(last, rows)
    figure.savefig(path, dpi=120)


def _plot_percentiles(axes: Axes, rows: Rows, name: str, title: str) -> None:
    for percentile, style in STYLES.items():
        _line(axes, [row[name][percentile] for row in rows], percentile, style)
    if any(row[name]["p50"] for row in rows):
        axes.set_yscale("log")
    _finish(axes, rows, title, "ms, from the scheduled send")


def _plot_throughput(axes: Axes, rows: Rows) -> None:
    _line(axes, [row["throughput"]["requests_per_s"] for row in rows], "answered", "-")
    if any(row["goodput"] for row in rows):
        _line(axes, [(row["goodput"] or {}).get("requests_per_s") for row in rows], "goodput", "--")
    axes.set_ylim(bottom=0)
    _finish(axes, rows, "throughput", "requests per second")


def _line(axes: Axes, values: Sequence[float | None], label: str, style: str) -> None:
    """Values that are None leave a gap."""
    heights = [math.nan if value is None else value for value in values]
    axes.plot(range(len(heights)), heights, style, marker="o", label=label)


def _finish(axes: Axes, rows: Rows, title: str, unit: str) -> None:
    labels = [row["request_rate"] for row in rows]
    axes.set_xticks(range(len(labels)), [name if isinstance(name, str) else f"{name:g}" for name in labels])
    axes.set(title=title, xlabel="requests per second offered", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend()
