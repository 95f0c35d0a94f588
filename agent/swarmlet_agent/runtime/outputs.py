"""What lies between a process's output and one client: a short queue that stops the source when it is full."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

#: Bytes held for a client before its source is no longer read, and below which reading goes on.
HIGH_BYTES = 256 << 10
LOW_BYTES = 64 << 10
#: Small pieces are handed over together up to this size.
_JOIN_BYTES = 64 << 10


class OutputQueue:
    """(stream, data) pieces in order. One reader, one writer, both on the loop.

    `stop` is called when the queue is full, `go` once it has drained.
    """

    def __init__(self, stop: Callable[[], None], go: Callable[[], None]) -> None:
        self._stop, self._go = stop, go
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._stopped = False
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def stopped(self) -> bool:
        """True from `stop` to `go`."""
        return self._stopped

    def put(self, stream: int, data: bytes) -> None:
        if self._ended:
            return
        self._pieces.append((stream, data))
        self._size += len(data)
        self._wake()
        if self._size > HIGH_BYTES and not self._stopped:
            self._stopped = True
            self._stop()

    def finish(self) -> None:
        """Nothing more comes; what is queued can still be read."""
        self._ended = True
        self._wake()

    def drop(self) -> None:
        """The client has gone: forget what is queued."""
        self._pieces.clear()
        self._size = 0
        self._stopped = False
        self.finish()

    def __aiter__(self) -> OutputQueue:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        stream, data = self._take()
        if self._stopped and self._size <= LOW_BYTES:
            self._stopped = False
            self._go()
        return stream, data

    def _take(self) -> tuple[int, bytes]:
        stream, data = self._pieces.popleft()
        joined, size = [data], len(data)
        while self._pieces and self._pieces[0][0] == stream and size < _JOIN_BYTES:
            data = self._pieces.popleft()[1]
            joined.append(data)
            size += len(data)
        self._size -= size
        return stream, b"".join(joined) if len(joined) > 1 else joined[0]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InputWriter:
    """Writes to a non-blocking descriptor; the caller waits while it is full. One writer at a time."""

    def __init__(self, descriptor: int, *, piece: int = 64 << 10) -> None:
        self._descriptor = descriptor
        self._piece = piece
        self._waiter: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self.closed = False

    async def write(self, data: bytes) -> None:
        """Nothing happens once it is closed or the other side has gone."""
        view = memoryview(data)
        async with self._turn:
            while view and not self.closed:
                try:
                    view = view[os.write(self._descriptor, view[: self._piece]) :]
                except BlockingIOError:
                    await self._writable()
                except OSError:  # nobody reads it any more
                    self.closed = True

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_writer(self._descriptor, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._descriptor >= 0:
                loop.remove_writer(self._descriptor)

    def stop(self) -> None:
        """Release a waiting writer; the descriptor is about to be closed by its owner."""
        self.closed = True
        if self._waiter is not None:
            asyncio.get_running_loop().remove_writer(self._descriptor)
        self._descriptor = -1
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
