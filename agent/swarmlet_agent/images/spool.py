"""Uploads onto the disk, and archives inside them: the request streams, memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tarfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.images.compression import decompressed, kind_of
from swarmlet_agent.images.layers import Blob

_GATHER = 1 << 20
_MAX_MEMBERS = 200_000
_MAX_LINK_STEPS = 8
#: An archive that unpacks to more than this is refused; so is one that would fill the disk.
MAX_ARCHIVE_BYTES = 256 << 30
_RESERVE_BYTES = 256 << 20
_SPACE_EVERY = 64 << 20


@asynccontextmanager
async def spooled(chunks: AsyncIterator[bytes], folder: Path) -> AsyncIterator[Path]:
    """The stream as a file that is gone when the block ends. Internal for the disk's errors."""
    path = folder / f"upload-{secrets.token_hex(8)}"
    try:
        try:
            file = path.open("xb")
            try:
                waiting, size = [], 0
                async for chunk in chunks:
                    waiting.append(chunk)
                    size += len(chunk)
                    if size >= _GATHER:
                        await asyncio.to_thread(file.write, b"".join(waiting))
                        waiting, size = [], 0
                await asyncio.to_thread(file.write, b"".join(waiting))
            finally:
                await asyncio.to_thread(file.close)
        except OSError as err:
            if isinstance(err, ConnectionError):
                raise
            raise Internal(f"the archive cannot be stored: {err.strerror}") from err
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@dataclass(frozen=True, slots=True)
class Archive:
    """An uncompressed tar on disk and where its files are in it. Names are normalised; nothing is extracted."""

    path: Path
    files: dict[str, tuple[int, int]]
    links: dict[str, str]

    def blob(self, name: str) -> Blob:
        """A file of the archive. InvalidArgument if it is not there."""
        found = _normal(name)
        for _ in range(_MAX_LINK_STEPS):
            if (place := self.files.get(found)) is not None:
                return Blob(self.path, *place)
            if found not in self.links:
                break
            found = self.links[found]
        raise InvalidArgument(f"invalid archive: {name} is missing")

    def __contains__(self, name: str) -> bool:
        return _normal(name) in self.files or _normal(name) in self.links

    async def read(self, name: str, limit: int) -> bytes:
        """A small file's content. InvalidArgument if it is missing or larger than `limit`."""
        blob = self.blob(name)
        if blob.length > limit:
            raise InvalidArgument(f"invalid archive: {name} is too large")
        return await asyncio.to_thread(_read, blob)


@asynccontextmanager
async def open_archive(path: Path) -> AsyncIterator[Archive]:
    """An uploaded tar, decompressed beside itself if it must be. InvalidArgument if it is broken."""
    plain = path.with_name(path.name + ".tar")
    stopping = threading.Event()
    try:
        try:
            work = asyncio.ensure_future(asyncio.to_thread(_prepare, path, plain, stopping.is_set))
            try:
                archive = await asyncio.shield(work)
            except asyncio.CancelledError:
                stopping.set()
                with contextlib.suppress(Exception):  # it was told to stop; what it says then is of no interest
                    await work
                raise
        except OSError as err:
            raise Internal(f"the archive cannot be read: {err.strerror}") from err
        yield archive
    finally:
        with contextlib.suppress(FileNotFoundError):
            plain.unlink()


def _prepare(path: Path, plain: Path, stopped: Callable[[], bool]) -> Archive:
    with path.open("rb", buffering=0) as source:
        kind = kind_of(source.read(6))
        if kind:
            source.seek(0)
            _decompress(source.read, plain, stopped)
            path = plain
    return _index(path, stopped)


def _decompress(read: Callable[[int], bytes], plain: Path, stopped: Callable[[], bool]) -> None:
    size, since = 0, _SPACE_EVERY
    with plain.open("xb") as target:
        for piece in decompressed(read):
            target.write(piece)
            size += len(piece)
            since += len(piece)
            if size > MAX_ARCHIVE_BYTES:
                raise InvalidArgument(f"the archive unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
            if since >= _SPACE_EVERY:
                since = 0
                disk = os.statvfs(plain.parent)
                if disk.f_bavail * disk.f_frsize < _RESERVE_BYTES:
                    raise Internal("the archive cannot be unpacked: No space left on device")
            if stopped():
                return


def _index(path: Path, stopped: Callable[[], bool]) -> Archive:
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for count, member in enumerate(tar):
                if count >= _MAX_MEMBERS:
                    raise InvalidArgument("invalid archive: too many members")
                if stopped():
                    break
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                name = _normal(member.name)
                if member.isfile() and not member.issparse():
                    if member.offset_data + member.size > size:
                        raise InvalidArgument("invalid archive: unexpected end of file")
                    files[name] = (member.offset_data, member.size)
                    links.pop(name, None)
                elif member.issym():
                    links[name] = _normal(f"{name.rpartition('/')[0]}/{member.linkname}")
                elif member.islnk():
                    links[name] = _normal(member.linkname)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as err:
        raise InvalidArgument(f"invalid archive: {err}") from err
    return Archive(path, files, links)


def _normal(name: str) -> str:
    """Only ever a key: nothing on disk is reached by it."""
    return normpath("/" + name).lstrip("/")


def _read(blob: Blob) -> bytes:
    with blob.path.open("rb") as source:
        source.seek(blob.offset)
        return source.read(blob.length)
