"""A layer on its way out: its tar made again from the unpacked files, as gzip, piece by piece.

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
from pathlib import Path

from swarmlet_agent.images.deflating import LEVEL, deflate
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.save import layer_tar

#: The size of a block is part of what makes the bytes the same: changing it changes digests.
_BLOCK = 512 << 10
_WINDOW = 32 << 10
_HEAD = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # no name, no time, of unknown system
_LAST_BLOCK = b"\x03\x00"
_MAX_WORKERS = 4


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
                crc, size = zlib.crc32(block, crc), size + len(block)
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


class PackedLayer:
    """A layer as gzip. digest and size are known once all pieces were taken."""

    def __init__(self, packer: Packer, layer: Layer, folder: Path) -> None:
        self._packer, self.layer, self._folder = packer, layer, folder
        self.taken = 0  # of the tar, for progress
        self.size = 0
        self.digest = ""

    def pieces(self, skip: int = 0) -> Iterator[bytes]:
        """From the start, without the first `skip` bytes. Blocking. Internal if the layer on disk is damaged."""
        hashed = hashlib.sha256()
        self.size = self.taken = 0
        self.digest = ""
        for piece in self._packer.gzipped(self._tar()):
            hashed.update(piece)
            self.size += len(piece)
            fresh = min(len(piece), self.size - skip)
            if fresh > 0:
                yield piece[len(piece) - fresh :]
        self.digest = f"sha256:{hashed.hexdigest()}"

    def _tar(self) -> Iterator[bytes]:
        for piece in layer_tar(self.layer, self._folder):
            self.taken += len(piece)
            yield piece


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
