"""A confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from server.eval.scoring import MAX_DRAWN

INCHES_PER_CELL = 0.7
INCHES_AROUND = 2.0


def plot_confusion(confusion: dict[str, Any], title: str, path: Path) -> None:
    """confusion: `labels`, `columns` and `counts`, as in report.json. Rows are shaded by their share.

    Raises ValueError for more than MAX_DRAWN labels or columns: the picture would fill the memory.
    """
    labels, columns = confusion["labels"], confusion["columns"]
    if max(len(labels), len(columns)) > MAX_DRAWN:
        raise ValueError(f"more than {MAX_DRAWN} classes")
    counts = np.array(confusion["counts"])
    size = (INCHES_AROUND + INCHES_PER_CELL * len(columns), INCHES_AROUND + INCHES_PER_CELL * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: no display, no global state
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(title=title, xlabel="answer", ylabel="reference")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color)
    figure.savefig(path, dpi=150)
