"""Blobs on their way in: `partial/<digest hex>`, there while a pull needs them, and after an agent that was killed.

They are what a pull that died half-way goes on from. None is trusted for being there: who takes one up hashes it first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

#: What a killed agent left is of no more use to anyone after this long.
KEEP_S = 24 * 3600.0


class PartialBlobs:
    """All calls on the loop; files are touched in threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    async def recover(self, now: float) -> None:
        """At start: what is left is kept for a while, for a pull that is tried again. now: seconds since the epoch."""
        await asyncio.to_thread(self._recover, now)

    def _recover(self, now: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in self._folder.iterdir():
            if file.stat().st_mtime < now - KEEP_S:
                file.unlink()

    @asynccontextmanager
    async def wanted(self, digests: Collection[str]) -> AsyncIterator[None]:
        """A pull of these blobs: they stay while the block runs, and go with the last one that wants them."""
        self._users.update(set(digests))
        try:
            yield
        finally:
            self._users.subtract(set(digests))
            self._users += Counter()
            await self._remove(digest for digest in set(digests) if digest not in self._users)

    @asynccontextmanager
    async def alone(self, digest: str) -> AsyncIterator[Path]:
        """The file of a blob that is `wanted`, which may have some of it already. One at a time fetches it."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            yield self._path(digest)

    def is_shared(self, digest: str) -> bool:
        """Whether more than one pull wants the blob."""
        return self._users[digest] > 1

    async def prune(self) -> int:
        """Remove what no pull wants. Returns the bytes that freed."""
        return await asyncio.to_thread(self._prune, frozenset(self._users))

    def _prune(self, used: frozenset[str]) -> int:
        freed = 0
        for file in self._folder.iterdir():
            if f"sha256:{file.name}" not in used:
                with contextlib.suppress(FileNotFoundError):
                    freed += file.stat().st_size
                    file.unlink()
        return freed

    async def _remove(self, digests: Iterable[str]) -> None:
        paths = []
        for digest in digests:
            self._locks.pop(digest, None)
            paths.append(self._path(digest))
        await asyncio.to_thread(_unlink, paths)

    def _path(self, digest: str) -> Path:
        """Digests are checked for their form where manifests are read."""
        return self._folder / digest.removeprefix("sha256:")


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
