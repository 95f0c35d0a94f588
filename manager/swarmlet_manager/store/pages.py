"""In what portions everything in etcd is read: by what the values of each kind weigh.

etcd bounds an answer by its number of keys only, and values differ by three orders of magnitude: a config may have a
megabyte, a lease has a hundred bytes. So each section of the keys (see `keys.Keys.sections`) is begun with a few keys,
and what came says how many the next page may have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from swarmlet_manager.store.kv import RangeResult

#: The most keys of a page: some ten thousand tasks, decoded in one step of the loop.
PAGE_KEYS = 250
#: How much a page should weigh at most. It is in memory three times for a moment, and must arrive in time.
PAGE_BYTES = 4 << 20
#: Of a section of which nothing is known yet.
FIRST_KEYS = 8


class Wanted(NamedTuple):
    """A range of keys, and how many of them at most."""

    start: bytes
    end: bytes
    limit: int


class Pages:
    """Sections are read one after the other: `wanted` says what to read, `arrived` what came of it."""

    def __init__(self, sections: Iterable[tuple[bytes, bytes]]) -> None:
        self._left = iter(sections)
        self._next = self._begin()

    def wanted(self) -> Wanted | None:
        """None once all is read."""
        return self._next

    def arrived(self, page: RangeResult) -> None:
        assert self._next is not None
        if not page.more:
            self._next = self._begin()
            return
        fit = PAGE_BYTES * len(page.kvs) // max(1, sum(len(kv.value) for kv in page.kvs))
        limit = max(1, min(fit, 2 * self._next.limit, PAGE_KEYS))  # at most doubled: the next ones may be larger
        self._next = Wanted(page.kvs[-1].key + b"\0", self._next.end, limit)

    def _begin(self) -> Wanted | None:
        section = next(self._left, None)
        return None if section is None else Wanted(*section, FIRST_KEYS)
