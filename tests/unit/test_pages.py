"""The page pool against a plain reference: lists and counts, no cleverness."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.pages import OutOfPages, PagePool, next_hash


class PoolMachine(RuleBasedStateMachine):
    """`written` is what each page holds; a match must only ever give a page that holds what was asked for."""

    @initialize(num_pages=st.integers(1, 8), reuse=st.booleans())
    def build(self, num_pages: int, reuse: bool) -> None:
        self.pool = PagePool(num_pages, 4, reuse=reuse)
        self.tables: list[list[int]] = []
        self.written: dict[int, bytes] = {}
        self.fresh = itertools.count()

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        free = self.pool.num_free
        table = [self.pool.allocate() for _ in range(min(count, free))]
        if count > free:
            with pytest.raises(OutOfPages):
                self.pool.allocate()
        held = set(itertools.chain(*self.tables))
        assert not held & set(table)
        for page in table:
            self.written[page] = b"partial %d" % next(self.fresh)
        if table:
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), key=st.integers(0, 5))
    def fill(self, data: st.DataObject, key: int) -> None:
        page = data.draw(st.sampled_from(data.draw(st.sampled_from(self.tables))))
        if self.written[page].startswith(b"partial"):
            self.written[page] = b"%d" % key
            self.pool.remember(page, b"%d" % key)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @rule(keys=st.lists(st.integers(0, 6), unique=True, max_size=4))
    def match(self, keys: list[int]) -> None:
        known = set(self.pool._page_of) if self.pool.reuse else set()
        wanted = [b"%d" % key for key in keys]
        table = self.pool.match(iter(wanted))
        assert [self.written[page] for page in table] == wanted[: len(table)]
        assert table or not wanted or wanted[0] not in known
        if table:
            self.tables.append(table)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity(self.tables)
        assert self.pool.num_used == len(set(itertools.chain(*self.tables)))
        assert self.pool.num_used + self.pool.num_free == self.pool.num_pages
        assert self.pool.reuse or self.pool.num_cached == 0


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_pages_without_contents_are_taken_before_cached_ones() -> None:
    pool = PagePool(3, 4)
    cached, plain = pool.allocate(), pool.allocate()
    pool.remember(cached, b"a")
    pool.release([cached])
    pool.release([plain])
    assert pool.num_cached == 1
    assert pool.allocate() == plain
    pool.allocate()
    assert pool.match([b"a"]) == [cached]


def test_of_a_sequence_the_last_page_is_forgotten_first() -> None:
    pool = PagePool(3, 4)
    table = [pool.allocate() for _ in range(3)]
    for page, key in zip(table, (b"a", b"b", b"c"), strict=True):
        pool.remember(page, key)
    pool.release(table)
    assert pool.allocate() == table[2]
    assert pool.match([b"a", b"b", b"c"]) == table[:2]


def test_a_shared_page_is_free_only_after_its_last_release() -> None:
    pool = PagePool(1, 4)
    page = pool.allocate()
    pool.remember(page, b"a")
    assert pool.match([b"a"]) == [page]
    pool.release([page])
    with pytest.raises(OutOfPages):
        pool.allocate()
    pool.release([page])
    assert pool.allocate() == page
    assert pool.match([b"a"]) == []


def test_the_first_page_with_a_content_stays_the_one_that_is_found() -> None:
    pool = PagePool(2, 4)
    first, second = pool.allocate(), pool.allocate()
    pool.remember(first, b"a")
    pool.remember(second, b"a")
    pool.release([second])
    assert pool.num_cached == 0
    assert pool.match([b"a"]) == [first]


def test_matching_reads_no_hash_after_the_first_unknown_one() -> None:
    def hashes():
        yield b"unknown"
        pytest.fail("read on")

    assert PagePool(2, 4).match(hashes()) == []


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ([[0, 0]], "twice"),
        ([[0]], "reference counts"),
        ([], "reference counts"),
        ([[0, 1], [0]], "reference"),
    ],
)
def test_the_check_sees_wrong_tables(tables: list[list[int]], complaint: str) -> None:
    pool = PagePool(3, 4)
    table = [pool.allocate(), pool.allocate()]
    pool.check_integrity([table])
    with pytest.raises(AssertionError, match=complaint):
        pool.check_integrity(tables)


contents = st.lists(st.binary(max_size=6), max_size=4)


@given(st.binary(max_size=4), contents, st.binary(max_size=4), contents)
def test_hashes_differ_wherever_parents_or_contents_do(
    parent: bytes, content: list[bytes], other_parent: bytes, other: list[bytes]
) -> None:
    parent, other_parent = parent.ljust(4), other_parent.ljust(4)  # parents are hashes: of one length
    same = (parent, content) == (other_parent, other)
    assert (next_hash(parent, content) == next_hash(other_parent, other)) == same
