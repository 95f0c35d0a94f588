"""Layers' compressed forms, kept beside the layers: `blobs/<digest hex>`, so that a push need not compress again.

A file there counts once the journal's table "kept" has it, which is written after the file is whole; what else lies
there at start goes. A form is kept for as long as some layer it unpacks to is here (derived, never counted), and while
the disk has room. It is a cache: nothing but a push reads it, whose registry checks the digest, and one that turns out
damaged is dropped and made anew (docs/adr/0014).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from swarmlet.log import get_logger
from swarmlet.model.base import Record
from swarmlet_agent.journal import Journal, Write

log = get_logger(__name__)

_TABLE = "kept"
#: So much of the disk is left to others: below it nothing is kept, and what was kept makes room.
SPARE_SHARE, SPARE_MOST_BYTES = 0.1, 16 << 30
_PIECE = 1 << 20


class KeptBlob(Record, frozen=True, kw_only=True):
    """A layer's compressed form, as registries have it. size in bytes."""

    digest: str
    diff_id: str
    size: int
    media_type: str


class KeptBlobs:
    """All calls on the loop; files are touched in threads."""

    def __init__(self, folder: Path, journal: Journal, *, wanted: bool) -> None:
        """wanted: whether anything is to be kept at all; if not, what was kept goes at the next start."""
        self._folder, self._journal, self._wanted = folder, journal, wanted
        #: The first kept first.
        self._known: dict[str, KeptBlob] = {}
        self._placing: Counter[str] = Counter()
        self._changing = asyncio.Lock()

    async def recover(self, diff_ids: Collection[str]) -> None:
        """At start: what the journal and the disk agree on stays, if its layer is one of these."""
        known = [msgspec.msgpack.decode(value, type=KeptBlob) for _, value in self._journal.items(_TABLE)]
        useful = [blob for blob in known if self._wanted and blob.diff_id in diff_ids]
        whole = await asyncio.to_thread(self._tidy, useful)
        self._known = {blob.digest: blob for blob in whole}
        gone = [Write(_TABLE, blob.digest, None) for blob in known if blob.digest not in self._known]
        if gone:
            await self._journal.write(*gone)

    # looking

    def of(self, diff_id: str) -> list[KeptBlob]:
        """The forms of a layer."""
        return [blob for blob in self._known.values() if blob.diff_id == diff_id]

    def all(self) -> list[KeptBlob]:
        return list(self._known.values())

    def path(self, digest: str) -> Path:
        """Digests are checked for their form where manifests are read."""
        return self._folder / digest.removeprefix("sha256:")

    # coming

    async def make_room(self, size: int) -> bool:
        """Whether so many more bytes leave enough of the disk free; if not, what is kept goes, the first kept first."""
        missing = await asyncio.to_thread(self._missing, size)
        doomed = []
        for blob in self._known.values():
            if missing <= 0:
                break
            doomed.append(blob.digest)
            missing -= blob.size
        if doomed:
            log.info("compressed layers make room on the disk", count=len(doomed))
            await self._forget(doomed)
        return self._wanted and missing <= 0

    @asynccontextmanager
    async def placing(self, digests: Collection[str]) -> AsyncIterator[None]:
        """While the block runs, these digests' files may be put in `place`; those not counted in by its end go."""
        names = frozenset(digests)
        self._placing.update(names)
        try:
            yield
        finally:
            self._placing.subtract(names)
            self._placing += Counter()
            await self._remove(names)

    async def place(self, digest: str, file: Path, *, copy: bool = False) -> None:
        """Put a file where the digest's belongs; it is moved, or copied if others still need it. OSError."""
        put = shutil.copyfile if copy else os.rename
        async with self._changing:
            await asyncio.to_thread(put, file, self.path(digest))

    def writes(self, blobs: Iterable[KeptBlob]) -> list[Write]:
        """What the journal is to be told of blobs that are in their places; `count_in` once it has been."""
        return [Write(_TABLE, blob.digest, msgspec.msgpack.encode(blob)) for blob in blobs]

    def count_in(self, blobs: Iterable[KeptBlob]) -> None:
        self._known |= {blob.digest: blob for blob in blobs}

    async def adopt(self, file: Path, blob: KeptBlob) -> None:
        """A file that is whole becomes the blob. Call with the layer pinned. Internal, OSError."""
        async with self.placing([blob.digest]):
            await self.place(blob.digest, file)
            await self._journal.write(*self.writes([blob]))
            self.count_in([blob])

    # going

    async def forget_layers(self, diff_ids: Collection[str]) -> None:
        """These layers are not here any more."""
        await self._forget([blob.digest for blob in self._known.values() if blob.diff_id in diff_ids])

    async def drop_if_damaged(self, blob: KeptBlob) -> bool:
        """Whether it was, and is gone now."""
        if await asyncio.to_thread(self._is_whole, blob):
            return False
        log.warning("a kept blob is damaged, and is dropped", digest=blob.digest)
        await self._forget([blob.digest])
        return True

    async def _forget(self, digests: Sequence[str]) -> None:
        gone = [digest for digest in digests if self._known.pop(digest, None) is not None]
        if gone:
            await self._journal.write(*(Write(_TABLE, digest, None) for digest in gone))
            await self._remove(gone)

    async def _remove(self, digests: Iterable[str]) -> None:
        """The files that do not count, and are not about to."""
        async with self._changing:
            stray = [digest for digest in digests if digest not in self._known and digest not in self._placing]
            if stray:
                await asyncio.to_thread(self._unlink, stray)

    # in threads

    def _tidy(self, useful: Iterable[KeptBlob]) -> list[KeptBlob]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sizes = {entry.name: entry.stat().st_size for entry in self._folder.iterdir()}
        whole = [blob for blob in useful if sizes.get(self.path(blob.digest).name) == blob.size]
        for name in sizes.keys() - {self.path(blob.digest).name for blob in whole}:
            (self._folder / name).unlink()
        return whole

    def _missing(self, size: int) -> int:
        """Bytes that would have to be freed for `size` more."""
        disk = os.statvfs(self._folder)
        spare = min(SPARE_MOST_BYTES, int(disk.f_blocks * disk.f_frsize * SPARE_SHARE))
        return spare + size - disk.f_bavail * disk.f_frsize

    def _unlink(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.path(digest).unlink(missing_ok=True)

    def _is_whole(self, blob: KeptBlob) -> bool:
        hashed = hashlib.sha256()
        with contextlib.suppress(FileNotFoundError), self.path(blob.digest).open("rb") as file:
            while piece := file.read(_PIECE):
                hashed.update(piece)
        return f"sha256:{hashed.hexdigest()}" == blob.digest
