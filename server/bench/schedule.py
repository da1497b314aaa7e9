"""When which question is asked: pure draws from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from server.bench.types import Arrival


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A renewal process of requests.

    burstiness: the shape of the gamma-distributed gaps, whose mean is 1 / rate: 1 is a Poisson process, less
    comes in bursts, more is steadier. duration_s: requests as they come until then, in place of num_requests.
    cancel_share: of all requests, those whose client leaves early.
    """

    num_requests: int
    num_questions: int
    seed: int
    burstiness: float = 1.0
    duration_s: float | None = None
    num_warmup: int = 0
    cancel_share: float = 0.0

    def at_rate(self, rate: float) -> list[Arrival]:
        """The requests at this many per second, infinity: all at once.

        The same draws at every rate, only closer together; no kind of draw moves another. At infinity there
        is no warm-up: to leave out the first of a burst would leave out the luckiest.
        """
        for_gaps, for_questions, for_leaving = np.random.default_rng(self.seed).spawn(3)
        times = self._times(rate, for_gaps)
        questions = _in_rounds(self.num_questions, for_questions)
        num_warmup = 0 if math.isinf(rate) else self.num_warmup
        return [
            Arrival(index, at_s, next(questions), self._leave_share(for_leaving), index < num_warmup)
            for index, at_s in enumerate(times)
        ]

    def _times(self, rate: float, generator: np.random.Generator) -> Iterator[float]:
        if math.isinf(rate):
            yield from [0.0] * self.num_requests
            return
        now, count = 0.0, 0
        while True:
            now += generator.gamma(self.burstiness, 1 / (rate * self.burstiness))
            if self._is_over(now, count):
                return
            yield now
            count += 1

    def _is_over(self, now: float, count: int) -> bool:
        if self.duration_s is not None:
            return now >= self.duration_s
        return count >= self.num_requests + self.num_warmup

    def _leave_share(self, generator: np.random.Generator) -> float | None:
        """Two draws for every request, so that the rest do not depend on the share."""
        chosen, share = generator.random(2)
        return float(share) if chosen < self.cancel_share else None


def only_asked(loads: Sequence[Sequence[Arrival]]) -> tuple[list[int], list[list[Arrival]]]:
    """The questions that any load asks, in their order, and the loads with places among these for indices."""
    asked = sorted({arrival.question for load in loads for arrival in load})
    place = {question: number for number, question in enumerate(asked)}
    return asked, [[replace(arrival, question=place[arrival.question]) for arrival in load] for load in loads]


def _in_rounds(count: int, generator: np.random.Generator) -> Iterator[int]:
    """Every question once in a random order, then again in another."""
    while True:
        yield from generator.permutation(count).tolist()
