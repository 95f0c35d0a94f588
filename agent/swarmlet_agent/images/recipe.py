"""How to make a layer's tar again, byte for byte, from its unpacked files.

A layer's name is the digest of its tar, and tar writers differ: only the original bytes will do when the image
is saved. Keeping the tar would double the disk's use, so what is kept is everything but the files' contents
(headers, padding, odd entries), compressed: some 30 bytes per file.

Stream of operations, zstd-compressed: ">BI" kind and length; LITERAL: that many bytes follow; FILE: a path
of that length follows, then ">QI" size and number. A file that a later entry of the same layer replaced is kept
as `kept/<number>` beside the layer.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from swarmlet.errors import Internal

_HEAD = struct.Struct(">BI")
_FILE = struct.Struct(">QI")
_LITERAL, _REFERENCE = 0, 1
_GATHER = 256 << 10
_PIECE = 1 << 20


class RecipeWriter:
    """Collects operations; adjoining literals become one."""

    def __init__(self, target: BinaryIO) -> None:
        self._stream = zstandard.ZstdCompressor(level=1).stream_writer(target, closefd=False)
        self._waiting: list[bytes] = []
        self._size = 0

    def literal(self, data: bytes | memoryview) -> None:
        if data:
            self._waiting.append(bytes(data))
            self._size += len(data)
            if self._size >= _GATHER:
                self._flush()

    def file(self, path: bytes, size: int, number: int) -> None:
        """The content of a file of the layer: `size` bytes, whose serial number is `number`."""
        self._flush()
        self._stream.write(_HEAD.pack(_REFERENCE, len(path)) + path + _FILE.pack(size, number))

    def close(self) -> None:
        self._flush()
        self._stream.flush(zstandard.FLUSH_FRAME)

    def _flush(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._stream.write(_HEAD.pack(_LITERAL, len(data)) + data)
            self._waiting, self._size = [], 0


def replay(folder: Path) -> Iterator[bytes]:
    """The layer's tar in pieces, from its folder (`recipe`, `diff`, `kept`). Internal if a file is not what it was."""
    with (folder / "recipe").open("rb") as source:
        reader = zstandard.ZstdDecompressor().stream_reader(source)
        while head := _exactly(reader, _HEAD.size, folder, end_is_fine=True):
            kind, length = _HEAD.unpack(head)
            data = _exactly(reader, length, folder)
            if kind == _LITERAL:
                yield data
                continue
            size, number = _FILE.unpack(_exactly(reader, _FILE.size, folder))
            yield from _content(folder, data, size, number)


def _exactly(reader: BinaryIO, size: int, folder: Path, *, end_is_fine: bool = False) -> bytes:
    data = b""
    while len(data) < size and (more := reader.read(size - len(data))):
        data += more
    if len(data) != size and not (end_is_fine and not data):
        raise Internal(f"layer {folder.name} is damaged: its recipe ends early")
    return data


def _content(folder: Path, path: bytes, size: int, number: int) -> Iterator[bytes]:
    kept = folder / "kept" / str(number)
    source = os.fsencode(kept) if kept.exists() else os.fsencode(folder / "diff") + b"/" + path
    try:
        file = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME)
    except OSError as err:
        raise Internal(f"layer {folder.name} is damaged: {err.strerror}: {os.fsdecode(path)}") from err
    try:
        left = size
        while left and (piece := os.read(file, min(left, _PIECE))):
            left -= len(piece)
            yield piece
        if left:
            raise Internal(f"layer {folder.name} is damaged: {os.fsdecode(path)} has become shorter")
    finally:
        os.close(file)
