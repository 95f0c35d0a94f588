"""When memory goes back to the system: a daemon's after a busy moment, a worker's when it ends. Linux with glibc;
elsewhere nothing is done."""

from __future__ import annotations

import ctypes

#: mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Threads share these heaps: by default each of up to 8 per processor would keep what it once needed.
ARENAS = 2
#: Larger pieces are mapped, and unmapped when freed. Set at all, glibc no longer raises it (up to 32 MiB) after
#: the first large piece is freed.
MMAP_BYTES = 512 << 10
#: Of a process that moves one large piece after another (glibc's own upper bound for the first).
_KEPT_MMAP_BYTES, _KEPT_FREE_BYTES = 32 << 20, 256 << 20


def return_early() -> bool:
    """Once per process, before threads are started. False where the C library has no such settings."""
    return _set((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MMAP_BYTES), (_M_TRIM_THRESHOLD, MMAP_BYTES))


def keep_for_reuse() -> bool:
    """Once per process that soon ends, before threads are started: what is freed serves the next piece. Otherwise the
    kernel clears each page anew for each, which is a fifth of what unpacking a layer costs it."""
    return _set((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _KEPT_MMAP_BYTES), (_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES))


def _set(*wishes: tuple[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return {mallopt(name, value) for name, value in wishes} == {1}
