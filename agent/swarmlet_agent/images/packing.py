"""A layer on its way out: the compressed form that was kept, or its tar made again from the unpacked files, as gzip,
piece by piece.

The same layer gives the same bytes each time, so that a registry that has it is recognised, and an upload that
broke off can go on in the middle. Blocks are compressed side by side (each with the 32 KiB before it as dictionary),
which costs nothing in size; the result is one ordinary gzip stream (RFC 1951, RFC 1952).
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from swarmlet.errors import Internal
from swarmlet.log import get_logger
from swarmlet_agent.images.deflating import LEVEL, deflate
from swarmlet_agent.images.kept import KeptBlob
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import DOCKER_LAYER
from swarmlet_agent.images.save import layer_tar

log = get_logger(__name__)

#: The size of a block is part of what makes the bytes the same: changing it changes digests.
_BLOCK = 512 << 10
_WINDOW = 32 << 10
_HEAD = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # no name, no time, of unknown system
_LAST_BLOCK = b"\x03\x00"
_MAX_WORKERS = 4
_PIECE = 1 << 20


class Packer:
    """Threads that compress (they let go of the interpreter's lock), shared by all uploads. Use `close` at the end."""

    def __init__(self) -> None:
        self._workers = min(_MAX_WORKERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="gzip")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def gzipped(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """One gzip stream of these pieces, whatever their sizes. Blocking; a few blocks are in memory at a time."""
        yield _HEAD
        crc = size = 0
        before = b""
        waiting: deque[Future[bytes]] = deque()
        try:
            for block in _blocks(pieces):
                crc, size = deflate.crc32(block, crc), size + len(block)
                waiting.append(self._pool.submit(_deflate, block, before))
                before = block[-_WINDOW:]
                if len(waiting) > self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
        yield _LAST_BLOCK + struct.pack("<II", crc, size & 0xFFFFFFFF)


class Parcel(Protocol):
    """A layer's compressed form, to be sent. digest and size are right once all pieces were taken.

    taken of total: how far it is, in bytes of whatever has to be read for it. length: the size, if it is known before.
    """

    layer: Layer
    media_type: str
    digest: str
    size: int
    length: int | None
    taken: int
    total: int

    def pieces(self, skip: int = 0) -> Iterator[bytes]:
        """From the start, without the first `skip` bytes. Blocking. Internal if what is on disk is damaged."""
        ...


class KeptLayer:
    """A form that was kept (see kept.py). Whether its bytes are right is for the registry to say."""

    def __init__(self, layer: Layer, blob: KeptBlob, file: Path) -> None:
        self.layer, self._file = layer, file
        self.media_type, self.digest, self.size = blob.media_type, blob.digest, blob.size
        self.length: int | None = blob.size
        self.taken, self.total = 0, blob.size

    def pieces(self, skip: int = 0) -> Iterator[bytes]:
        self.taken = skip
        try:
            with self._file.open("rb", buffering=0) as file:
                file.seek(skip)
                while piece := file.read(_PIECE):
                    self.taken += len(piece)
                    yield piece
        except OSError as err:
            raise Internal(f"kept blob {self.digest} cannot be read: {err.strerror}") from err
        if self.taken != self.size:
            raise Internal(f"kept blob {self.digest} is damaged: it has {self.taken} bytes instead of {self.size}")


class PackedLayer:
    """A layer being compressed. spool: a file that gets what is sent, too; it is whole when the digest is known."""

    def __init__(self, packer: Packer, layer: Layer, folder: Path, spool: Path | None = None) -> None:
        self._packer, self.layer, self._folder, self._spool = packer, layer, folder, spool
        self.media_type = f"{DOCKER_LAYER}.gzip"
        self.length: int | None = None
        self.taken, self.total = 0, layer.tar_bytes
        self.size = 0
        self.digest = ""

    def pieces(self, skip: int = 0) -> Iterator[bytes]:
        hashed = hashlib.sha256()
        self.size = self.taken = 0
        self.digest = ""
        with _Spool(self._spool) as spool:
            for piece in self._packer.gzipped(self._tar()):
                hashed.update(piece)
                spool.write(piece)
                self.size += len(piece)
                fresh = min(len(piece), self.size - skip)
                if fresh > 0:
                    yield piece[len(piece) - fresh :]
        self.digest = f"sha256:{hashed.hexdigest()}"

    def _tar(self) -> Iterator[bytes]:
        for piece in layer_tar(self.layer, self._folder):
            self.taken += len(piece)
            yield piece


class _Spool:
    """A file that may fail: what is sent does not depend on it. Gone if it did."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> _Spool:
        if self._path is not None:
            with self._troubles():
                self._file = self._path.open("wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, piece: bytes) -> None:
        if self._file is not None:
            with self._troubles():
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            log.warning("a compressed layer is not kept", error=str(err))
            if self._file is not None and self._path is not None:
                self._file.close()
                self._file = None
                self._path.unlink(missing_ok=True)


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """All of one size but the last: where they end must not depend on how the pieces came."""
    waiting, size = [], 0
    for piece in pieces:
        at = 0
        while at < len(piece):
            part = piece[at : at + _BLOCK - size]
            waiting.append(part)
            at, size = at + len(part), size + len(part)
            if size == _BLOCK:
                yield b"".join(waiting)
                waiting, size = [], 0
    if size:
        yield b"".join(waiting)


def _deflate(block: bytes, before: bytes) -> bytes:
    """Ends on a byte boundary and is not the last block, so that the next one can follow."""
    if before:
        deflater = deflate.compressobj(LEVEL, zlib.DEFLATED, -15, zdict=before)
    else:
        deflater = deflate.compressobj(LEVEL, zlib.DEFLATED, -15)
    packed: bytes = deflater.compress(block) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return packed
