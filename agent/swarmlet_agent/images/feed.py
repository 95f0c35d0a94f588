"""The stream an unpacking reads: decompressed and hashed, ahead of who writes the files if there is a core for it."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.compression import decompressed

#: Pieces decompressed ahead (about 1 MiB each).
_QUEUE = 8
_REPORT_EVERY = 4 << 20


class BadLayer(InvalidArgument):
    """The layer cannot be part of an image; the message says why."""


class Feed:
    """`with feed: for piece in feed.pieces(…)`; `diff_id` and `size` are right once all pieces were taken."""

    def __init__(self, source: BinaryIO, length: int, limit: int, *, ahead: bool = True) -> None:
        """ahead: in a thread. Without a core of its own that is slower: two threads wait for each other's turns."""
        self._source, self._left, self._limit = source, length, limit
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUE)
        self._stopping = threading.Event()
        self._hash = hashlib.sha256()
        self._consumed = 0
        self.size = 0
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True) if ahead else None

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def __enter__(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def pieces(self, report: Callable[[int], None] | None) -> Iterator[bytes]:
        reported = 0
        for piece in self._made() if self._thread is None else self._queued():
            if report is not None and self._consumed - reported >= _REPORT_EVERY:
                reported = self._consumed
                report(reported)
            yield piece

    def _queued(self) -> Iterator[bytes]:
        while (piece := self._queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def _made(self) -> Iterator[bytes]:
        for piece in decompressed(self._read):
            self.size += len(piece)
            if self.size > self._limit:
                raise BadLayer(f"the layer unpacks to more than {self._limit} bytes")
            self._hash.update(piece)
            yield piece

    def _run(self) -> None:
        try:
            for piece in self._made():
                self._put(piece)
                if self._stopping.is_set():
                    return
            self._put(None)
        except BaseException as err:  # handed to the thread that unpacks, which raises it
            self._put(err)

    def _read(self, size: int) -> bytes:
        data = self._source.read(min(size, self._left))
        self._left -= len(data)
        self._consumed += len(data)
        if not data and self._left:
            raise InvalidArgument("unexpected end of the blob")
        return data

    def _put(self, item: bytes | BaseException | None) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
