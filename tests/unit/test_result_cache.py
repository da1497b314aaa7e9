"""Shared results against a plain reference: who refers to what, and what may be forgotten."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.result_cache import ResultCache

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
COSTS = {b"a": 1, b"b": 2, b"c": 5, b"d": 3}


class Request:
    """Someone who refers to a key; two are never equal."""


class CacheMachine(RuleBasedStateMachine):
    """`holders` and `ready` are the reference; `idle` lists unreferenced results, oldest first."""

    @initialize(max_cost=st.integers(0, 8))
    def build(self, max_cost: int) -> None:
        self.cache: ResultCache[Request] = ResultCache(max_cost)
        self.holders: dict[bytes, list[Request]] = defaultdict(list)
        self.ready: set[bytes] = set()
        self.idle: list[bytes] = []
        self.asked: list[bytes] = []
        self.misses = 0

    @rule(key=KEYS)
    def acquire(self, key: bytes) -> None:
        is_known = key in self.ready or bool(self.holders[key])
        request = Request()
        assert self.cache.acquire(key, COSTS[key], request) == (key in self.ready)
        self.holders[key].append(request)
        if not is_known:
            self.asked.append(key)
            self.misses += 1
        if key in self.idle:
            self.idle.remove(key)

    @precondition(lambda self: any(self.holders.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, held in self.holders.items() if held)))
        request = self.holders[key].pop(data.draw(st.integers(0, len(self.holders[key]) - 1)))
        self.cache.release(key, request)
        if self.holders[key]:
            return
        if key in self.ready:
            self.idle.append(key)
        else:
            self.asked.remove(key)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.asked))
        assert list(self.cache.finish(key)) == self.holders[key]
        self.asked.remove(key)
        self.ready.add(key)

    @rule()
    def evict(self) -> None:
        expected = []
        while self.idle and sum(COSTS[key] for key in self.ready) > self.cache.max_cost:
            expected.append(self.idle.pop(0))
            self.ready.discard(expected[-1])
        before = self.cache.evictions
        assert self.cache.evict() == expected
        assert self.cache.evictions == before + len(expected)

    @invariant()
    def agrees_with_the_reference(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        cache.check_integrity(sum(map(len, self.holders.values())))
        assert cache.pending == tuple(self.asked)
        assert cache.ready == self.ready
        assert cache.cost == sum(COSTS[key] for key in self.ready)
        assert cache.cost_in_use == sum(COSTS[key] for key in self.ready if self.holders[key])
        assert cache.misses == self.misses
        for key in COSTS:
            assert cache.is_pending(key) == (key in self.asked)
            assert cache.is_ready(key) == (key in self.ready)
            if key in self.asked or key in self.ready:
                assert list(cache.waiters(key)) == self.holders[key]


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_least_recently_used_goes_first_and_referenced_results_never() -> None:
    cache: ResultCache[Request] = ResultCache(2)
    held = Request()
    for key in (b"a", b"b", b"c"):
        asker = held if key == b"a" else Request()
        cache.acquire(key, 1, asker)
        cache.finish(key)
        if asker is not held:
            cache.release(key, asker)
    again = Request()
    cache.acquire(b"b", 1, again)
    cache.release(b"b", again)
    assert cache.evict() == [b"c"]
    assert cache.ready == {b"a", b"b"}


def test_a_bound_of_zero_keeps_a_result_only_while_somebody_refers_to_it() -> None:
    cache: ResultCache[Request] = ResultCache(0)
    request = Request()
    cache.acquire(b"a", 1, request)
    cache.finish(b"a")
    assert cache.evict() == []
    cache.release(b"a", request)
    assert cache.evict() == [b"a"]
    assert not cache.acquire(b"a", 1, request)
