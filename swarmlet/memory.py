"""How a daemon's memory goes back to the system after a busy moment. Linux with glibc; elsewhere nothing is done."""

from __future__ import annotations

import ctypes

#: mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Threads share these heaps: by default each of up to 8 per processor would keep what it once needed.
ARENAS = 2
#: Larger pieces are mapped, and unmapped when freed. Set at all, glibc no longer raises it (up to 32 MiB) after
#: the first large piece is freed.
MMAP_BYTES = 512 << 10


def return_early() -> bool:
    """Once per process, before threads are started. False where the C library has no such settings."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MMAP_BYTES), (_M_TRIM_THRESHOLD, MMAP_BYTES))
    return {mallopt(name, value) for name, value in wishes} == {1}
