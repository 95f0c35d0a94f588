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
    """The layer's tar in pieces of some size, from its folder (`recipe`, `diff`, `kept`).

    Internal if a file is not what it was.
    """
    replaced = _names(folder / "kept")
    diff = os.fsencode(folder / "diff") + b"/"
    waiting: list[bytes] = []
    gathered = 0
    with (folder / "recipe").open("rb") as source:
        recipe = _Recipe(zstandard.ZstdDecompressor().stream_reader(source), folder)
        while (head := recipe.take(_HEAD.size, end_is_fine=True)):
            kind, length = _HEAD.unpack(head)
            data = recipe.take(length)
            if kind == _LITERAL:
                waiting.append(data)
                gathered += length
            else:
                size, number = _FILE.unpack(recipe.take(_FILE.size))
                file = os.fsencode(folder / "kept" / str(number)) if number in replaced else diff + data
                for piece in _content(folder, file, data, size):
                    waiting.append(piece)
                    gathered += len(piece)
                    if gathered >= _PIECE:
                        yield b"".join(waiting)
                        waiting, gathered = [], 0
            if gathered >= _PIECE:
                yield b"".join(waiting)
                waiting, gathered = [], 0
    if waiting:
        yield b"".join(waiting)


class _Recipe:
    """Reads ahead: there are several small things to take for each file."""

    def __init__(self, reader: BinaryIO, folder: Path) -> None:
        self._reader, self._folder = reader, folder
        self._data, self._at = b"", 0

    def take(self, size: int, *, end_is_fine: bool = False) -> bytes:
        """Exactly so many bytes; b"" at the end if that is fine."""
        end = self._at + size
        while end > len(self._data) and (more := self._reader.read(max(_GATHER, size))):
            self._data, self._at, end = self._data[self._at :] + more, 0, size
        data = self._data[self._at : end]
        self._at = end
        if len(data) != size and not (end_is_fine and not data):
            raise Internal(f"layer {self._folder.name} is damaged: its recipe ends early")
        return data


def _names(kept: Path) -> frozenset[int]:
    """Numbers of the contents that were replaced."""
    try:
        return frozenset(int(name) for name in os.listdir(kept))
    except FileNotFoundError:
        return frozenset()


def _content(folder: Path, path: bytes, shown: bytes, size: int) -> Iterator[bytes]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME)
    except OSError as err:
        raise Internal(f"layer {folder.name} is damaged: {err.strerror}: {os.fsdecode(shown)}") from err
    try:
        left = size
        while left and (piece := os.read(file, min(left, _PIECE))):
            left -= len(piece)
            yield piece
        if left:
            raise Internal(f"layer {folder.name} is damaged: {os.fsdecode(shown)} has become shorter")
    finally:
        os.close(file)
