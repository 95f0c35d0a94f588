"""Decompressing streams of unknown make: gzip, zstd, bzip2, xz or none, told by their first bytes.

Pure but for reading. What is decompressed is not trusted: output comes in bounded pieces however much a
few input bytes expand to, and an end that is missing is an error rather than a short stream.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.deflating import ERRORS, deflate

#: Largest piece handed on (soft for zstd: see _ZSTD_STEP).
PIECE = 1 << 20
#: zstd has no limit on output per call, and 4 bytes may say "128 KiB of zeros": small steps bound it to 128 MiB.
_ZSTD_STEP = 4 << 10
_ZSTD_WINDOW = 1 << 27
_XZ_MEMORY = 1 << 28
_READ = 256 << 10

_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))
_LONGEST_MAGIC = 6
_ERRORS: tuple[type[Exception], ...] = (*ERRORS, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError)


def kind_of(start: bytes) -> str:
    """"gzip", "zstd", "bzip2", "xz", or "" for anything else (a plain tar)."""
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), "")


def decompressed(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The content in pieces, from a function that reads up to n bytes and returns b"" at the end.

    InvalidArgument if the stream is broken or ends early. Several members in a row count as one stream.
    """
    source = _Source(read)
    kind = kind_of(source.start())
    if not kind:
        while piece := source.take(PIECE):
            yield piece
        return
    try:
        yield from _gather(_members(kind, source))
    except _ERRORS as err:
        if isinstance(err, OSError) and err.errno is not None:
            raise  # the disk's trouble, not the stream's (bz2 raises a bare OSError for bad data)
        raise InvalidArgument(f"invalid {kind} stream: {err}") from err


class _Source:
    """Reads ahead by one block, so that bytes can be looked at and given back."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._block = b""
        self._at = 0

    def start(self) -> bytes:
        """The first bytes, without taking them."""
        while len(self._block) < _LONGEST_MAGIC and (more := self._read(_READ)):
            self._block += more
        return self._block[:_LONGEST_MAGIC]

    def take(self, limit: int) -> bytes:
        """Some bytes, at most `limit`; b"" at the end."""
        if self._at >= len(self._block):
            self._block, self._at = self._read(_READ), 0
        piece = self._block[self._at : self._at + limit]
        self._at += len(piece)
        return piece

    def give_back(self, unused: bytes) -> None:
        self._block, self._at = unused + self._block[self._at :], 0

    def skip_zeros(self) -> bool:
        """Zeros behind a member are padding. False if nothing else follows."""
        while piece := self.take(_READ):
            if rest := piece.lstrip(b"\0"):
                self.give_back(rest)
                return True
        return False


def _members(kind: str, source: _Source) -> Iterator[bytes]:
    step = _ZSTD_STEP if kind == "zstd" else _READ
    while True:
        decoder = _new(kind)
        while not decoder.eof:
            data = source.take(step)
            if not data:
                raise InvalidArgument(f"invalid {kind} stream: unexpected end")
            yield from _feed(kind, decoder, data)
        source.give_back(decoder.unused_data)
        if not source.skip_zeros():
            return


def _new(kind: str) -> Any:
    match kind:
        case "gzip":
            return deflate.decompressobj(wbits=31)
        case "bzip2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        case _:
            return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


def _feed(kind: str, decoder: Any, data: bytes) -> Iterator[bytes]:
    """Everything one input block gives, in pieces."""
    if kind == "gzip":
        while data and not decoder.eof:
            yield decoder.decompress(data, PIECE)
            data = decoder.unconsumed_tail
    elif kind == "zstd":
        yield decoder.decompress(data)
    else:
        yield decoder.decompress(data, PIECE)
        while not decoder.eof and not decoder.needs_input:
            yield decoder.decompress(b"", PIECE)


def _gather(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces together: the reader of the stream pays per piece."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        if not piece:
            continue
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE // 4:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
