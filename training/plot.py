"""Curves of all stages as one picture: `state/curves/curves.png`."""

from __future__ import annotations

import csv
from pathlib import Path

from training.assemble import STAGES
from training.recipe import State

WIDTH, HEIGHT = 3.2, 2.6
"""Inches of one stage's panel."""


def read_curve(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Figures of a stage's CSV by name, as (step, value); a step logged twice counts as logged last."""
    steps: dict[int, dict[str, str]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            steps[int(row["step"])] = row
    names = [name for name in next(iter(steps.values()), {}) if name != "step"]
    return {name: [(step, float(steps[step][name])) for step in sorted(steps)] for name in names}


def plot(state: State) -> Path:
    """Draw what has been trained so far. Returns the picture's path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    paths = [state.curve(stage) for stage in STAGES if state.curve(stage).exists()]
    figure, axes = plt.subplots(1, len(paths), figsize=(WIDTH * len(paths), HEIGHT), squeeze=False)
    for axis, path in zip(axes[0], paths, strict=True):
        for name, points in read_curve(path).items():
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set(title=path.stem, xlabel="step", yscale="log")
        axis.legend(fontsize="x-small")
    figure.tight_layout()
    target = state.root / "curves" / "curves.png"
    figure.savefig(target, dpi=120)
    plt.close(figure)
    return target
