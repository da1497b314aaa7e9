"""Bookkeeping of results that several requests share: a clip's embeddings, an instruction's scale.

Single flight: the first request that needs a key makes it pending, later ones wait for the same result.
Finished results stay until their total cost passes the bound, least recently used first, but never while
a live request refers to them. The results themselves are tensors and live in the runner.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")


@dataclass(slots=True)
class _Entry(Generic[Waiter]):
    """waiters: live requests that refer to the key, in order of arrival."""

    cost: int
    ready: bool = False
    waiters: dict[int, Waiter] = field(default_factory=dict)


class ResultCache(Generic[Waiter]):
    """Keys that are pending or ready, with who refers to them. Costs are in any one unit (bytes, entries)."""

    def __init__(self, max_cost: int) -> None:
        self.max_cost = max_cost
        self.cost = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._entries: OrderedDict[bytes, _Entry[Waiter]] = OrderedDict()
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._pending: OrderedDict[bytes, None] = OrderedDict()
        self._idle_cost = 0

    @property
    def cost_in_use(self) -> int:
        """Of the finished results that live requests refer to; none of it can be evicted."""
        return self.cost - self._idle_cost

    @property
    def pending(self) -> tuple[bytes, ...]:
        """Keys that somebody waits for, oldest first."""
        return tuple(self._pending)

    @property
    def ready(self) -> frozenset[bytes]:
        """Keys whose results are there."""
        return frozenset(key for key, entry in self._entries.items() if entry.ready)

    def is_pending(self, key: bytes) -> bool:
        """Whether somebody waits for the result."""
        return key in self._pending

    def is_ready(self, key: bytes) -> bool:
        """Whether the result is there."""
        entry = self._entries.get(key)
        return entry is not None and entry.ready

    def waiters(self, key: bytes) -> tuple[Waiter, ...]:
        """Live requests that refer to `key`."""
        return tuple(self._entries[key].waiters.values())

    def acquire(self, key: bytes, cost: int, waiter: Waiter) -> bool:
        """Refer to `key`; True if its result is ready. The first to ask makes it pending."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(cost)
            self._pending[key] = None
            self.misses += 1
        else:
            if key in self._idle:
                del self._idle[key]
                self._idle_cost -= entry.cost
            self.hits += 1
        entry.waiters[id(waiter)] = waiter
        return entry.ready

    def release(self, key: bytes, waiter: Waiter) -> None:
        """Drop a reference. A pending result that nobody waits for any more is forgotten."""
        entry = self._entries[key]
        del entry.waiters[id(waiter)]
        if entry.waiters:
            return
        if entry.ready:
            self._idle[key] = None
            self._idle_cost += entry.cost
        else:
            del self._entries[key], self._pending[key]

    def finish(self, key: bytes) -> tuple[Waiter, ...]:
        """The result is there; returns those who waited for it."""
        entry = self._entries[key]
        entry.ready = True
        del self._pending[key]
        self.cost += entry.cost
        return tuple(entry.waiters.values())

    def evict(self) -> list[bytes]:
        """Forget unreferenced results until the cost is within the bound; returns their keys."""
        evicted = []
        while self.cost > self.max_cost and self._idle:
            key, _ = self._idle.popitem(last=False)
            cost = self._entries.pop(key).cost
            self.cost -= cost
            self._idle_cost -= cost
            self.evictions += 1
            evicted.append(key)
        return evicted

    def check_integrity(self, live: int) -> None:
        """Recount. live: references that live requests hold. Raises AssertionError on any difference."""
        entries = self._entries.items()
        assert sum(len(entry.waiters) for _, entry in entries) == live, "references differ"
        assert self.cost == sum(entry.cost for _, entry in entries if entry.ready), "cost differs"
        idle_cost = sum(entry.cost for _, entry in entries if entry.ready and not entry.waiters)
        assert self._idle_cost == idle_cost, "cost of what is idle differs"
        assert set(self._pending) == {key for key, entry in entries if not entry.ready}, "pending differs"
        assert set(self._idle) == {key for key, e in entries if e.ready and not e.waiters}, "idle differs"
