"""What the figures are held to. Only the released size on a GPU can say anything about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """path: where the figure is. meets: whether (figure, limit) is good enough."""

    name: str
    path: tuple[str, ...]
    limit: float
    is_most: bool


TARGETS = (
    Target("decode at batch 1 over weights/bandwidth", ("decode", "batch_1", "over_weights"), 1.3, True),
    Target("decode at batch 64, share of the floor", ("decode", "batch_64", "share_of_floor"), 0.6, False),
    Target("first token for a 10 s clip, ms", ("first_token", "median_ms"), 40.0, True),
    Target("audio s/s, 30 s clips", ("encoders", "30s_x16", "audio_s_per_s"), 2500.0, False),
    Target("audio s/s, 10 s clips", ("encoders", "10s_x32", "audio_s_per_s"), 1000.0, False),
)


def judge(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target with its figure and a verdict: met, missed or unmeasured."""
    return [_row(target, _find(parts, target.path)) for target in TARGETS]


def _row(target: Target, value: float | None) -> dict[str, Any]:
    verdict = "unmeasured"
    if value is not None:
        compare: Callable[[float, float], bool] = float.__le__ if target.is_most else float.__ge__
        verdict = "met" if compare(float(value), target.limit) else "missed"
    sign = "at most" if target.is_most else "at least"
    shown = None if value is None else round(value, 3)
    return {"name": target.name, "value": shown, "target": f"{sign} {target.limit:g}", "verdict": verdict}


def _find(figures: Any, path: tuple[str, ...]) -> float | None:
    for step in path:
        if not isinstance(figures, Mapping) or step not in figures:
            return None
        figures = figures[step]
    return float(figures)
