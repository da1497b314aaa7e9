"""Which KV page belongs to whom: reference counts, a free list that remembers, and prefix hashes.

A full page whose tokens are known carries a hash of everything before and in it. Released pages keep
their hash and wait in the free list, oldest first; a new sequence that starts with the same tokens
takes them back instead of computing them again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence


class OutOfPages(Exception):
    """No free page is left; the scheduler decides who gives way."""


class PagePool:
    """`num_pages` pages of `page_size` token slots, shared by reference count.

    num_cached: free pages that still hold reusable tokens. reuse: False keeps no contents at all.
    """

    def __init__(self, num_pages: int, page_size: int, *, reuse: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.reuse = reuse
        self._references = [0] * num_pages
        self.num_cached = 0
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._hash_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that no live sequence holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages held by live sequences."""
        return self.num_pages - len(self._free)

    def allocate(self) -> int:
        """The page unused longest, its old contents forgotten, for one owner. Raises OutOfPages."""
        if not self._free:
            raise OutOfPages
        page, _ = self._free.popitem(last=False)
        if self._forget(page):
            self.num_cached -= 1
        self._references[page] = 1
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Give back one reference to each page; a sequence's last page is reused first."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free[page] = None
                if page in self._hash_of:
                    self.num_cached += 1
                else:
                    self._free.move_to_end(page, last=False)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Take references to the pages of the longest known prefix of `hashes`, read no further than it."""
        pages = []
        for key in hashes:
            page = self._page_of.get(key)
            if page is None:
                break
            if self._references[page] == 0:
                del self._free[page]
                self.num_cached -= 1
            self._references[page] += 1
            pages.append(page)
        return pages

    def remember(self, page: int, key: bytes) -> None:
        """Note that a held page is now full of the tokens that `key` stands for."""
        if self.reuse and key not in self._page_of and page not in self._hash_of:
            self._hash_of[page] = key
            self._page_of[key] = page

    def disown(self, pages: Iterable[int]) -> None:
        """What these held pages contain is not to be read again by anybody new."""
        for page in pages:
            self._forget(page)

    def _forget(self, page: int) -> bool:
        """Whether there was anything to forget."""
        key = self._hash_of.pop(page, None)
        if key is not None:
            del self._page_of[key]
        return key is not None

    def check_integrity(self, tables: Sequence[Sequence[int]]) -> None:
        """Recount from the block tables of all live sequences. Raises AssertionError on any difference."""
        counted = [0] * self.num_pages
        for table in tables:
            assert len(set(table)) == len(table), "a page stands twice in one block table"
            for page in table:
                counted[page] += 1
        assert counted == self._references, "reference counts differ from the block tables"
        assert set(self._free) == {p for p, n in enumerate(counted) if n == 0}, "free list is wrong"
        assert self.num_cached == sum(p in self._hash_of for p in self._free), "cached pages miscounted"
        assert {k: p for p, k in self._hash_of.items()} == self._page_of, "hash maps differ"


def next_hash(parent: bytes, content: Sequence[bytes]) -> bytes:
    """Hash of one full page after `parent`. Items carry their length, so no two contents join to the same."""
    digest = hashlib.blake2b(parent, digest_size=16)
    for item in content:
        digest.update(len(item).to_bytes(2, "little"))
        digest.update(item)
    return digest.digest()
