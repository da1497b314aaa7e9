"""How long to wait before a dead engine is started again."""

from __future__ import annotations

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
HEALTHY_AFTER_S = 60.0


class Backoff:
    """Delays that double with every failure and start over after a minute of health."""

    def __init__(self) -> None:
        self._delay_s = FIRST_DELAY_S

    def next_delay(self, healthy_s: float) -> float:
        """Seconds to wait now. healthy_s: how long the engine had been ready before it failed."""
        if healthy_s >= HEALTHY_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, MAX_DELAY_S)
        return delay_s
