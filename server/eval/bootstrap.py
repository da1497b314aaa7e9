"""Percentile bootstrap over rows: every metric here is a function of sums over rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
OfSums = Callable[[Array], Array]
"""[..., k] sums over rows -> [...] values of the metric; NaN where it is not defined."""

RESAMPLES = 1000
SEED = 20240404
CONFIDENCE = 0.95


def interval(rows: Array, of_sums: OfSums) -> tuple[float, float] | None:
    """Bounds that hold 95 % of the metric's values over resampled rows; None if it is defined on none.

    rows: [n, k] statistics of each row, n >= 1.
    """
    values = of_sums(resampled_sums(rows))
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def resampled_sums(rows: Array) -> Array:
    """[n, k] -> [RESAMPLES, k]: sums over n rows drawn with replacement, the same draws for equal n."""
    generator = np.random.default_rng(SEED)
    count = len(rows)
    draws = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    return np.stack([draw @ rows for draw in draws])
