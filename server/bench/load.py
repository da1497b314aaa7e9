"""Open-loop load: requests go out when they are due, whatever became of the earlier ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from server.bench.types import Arrival, Asker, Load, Question, Record, References

LEAD_S = 0.05
"""Between the start's choice and the first possible send, so that nothing is late from the beginning."""
TICK_S = 0.02
"""Of the clock that watches the generator's own event loop."""


@dataclass(slots=True)
class Offer:
    """Sends one rate's requests.

    references: say how long the answers are of which clients leave. on_end: called after each request.
    """

    asker: Asker
    questions: Sequence[Question]
    references: References
    max_concurrency: int | None
    on_end: Callable[[Record], None]
    _start: float = 0.0
    _num_sent: int = 0
    _records: list[Record] = field(default_factory=list)

    async def run(self, rate: float, arrivals: Iterable[Arrival]) -> Load:
        """Send all, wait for all."""
        places = self._places()
        self._start = time.perf_counter() + LEAD_S
        lags: list[float] = []
        watch = asyncio.create_task(_watch_loop(lags))
        try:
            async with asyncio.TaskGroup() as tasks:
                for arrival in arrivals:
                    await _sleep_until(self._start + arrival.at_s)
                    tasks.create_task(self._send(arrival, places))
        finally:
            watch.cancel()
            await asyncio.wait({watch})
        return Load(rate, self._num_sent, tuple(self._records), tuple(lags))

    def _places(self) -> AbstractAsyncContextManager[None]:
        if self.max_concurrency is None:
            return contextlib.nullcontext()
        return asyncio.Semaphore(self.max_concurrency)

    async def _send(self, arrival: Arrival, places: AbstractAsyncContextManager[None]) -> None:
        ready = time.perf_counter()
        async with places:
            sent = time.perf_counter()
            self._num_sent += 1
            question = self.questions[arrival.question]
            exchange = await self.asker.ask(question, self._leave_after(arrival))
        record = Record(arrival, self._start + arrival.at_s, ready, sent, exchange)
        self._records.append(record)
        self.on_end(record)

    def _leave_after(self, arrival: Arrival) -> int | None:
        """Characters after which the client leaves: fewer than the answer has, where it has any."""
        reference = self.references[arrival.question]
        if arrival.leave_share is None or reference is None:
            return None
        return int(arrival.leave_share * len(reference.text))


async def _sleep_until(instant: float) -> None:
    delay = instant - time.perf_counter()
    if delay > 0:
        await asyncio.sleep(delay)


async def _watch_loop(lags: list[float]) -> None:
    """Note how much later than asked the event loop wakes a sleeper."""
    while True:
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        lags.append(time.perf_counter() - due)
