"""Streams between the loop and threads that block: bounded, and ended in order when either side gives up."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
#: What is gathered before a thread is woken.
_GATHER = 1 << 20


async def from_thread(pieces: Iterator[T]) -> AsyncGenerator[T, None]:
    """The iterator's items, each made in a thread. Whoever is cancelled waits for the one being made."""
    while (piece := await finished(asyncio.to_thread(next, pieces, None))) is not None:
        yield piece


async def finished(work: Coroutine[Any, Any, T], undo: Callable[[T], None] | None = None) -> T:
    """What runs in a thread cannot be cancelled: being cancelled waits for its end. undo: what then becomes of it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None and undo is not None:
            undo(task.result())
        raise


class Upload:
    """An incoming body for a thread: `read` there, `stop` on the loop if the thread is to end early."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._reading: concurrent.futures.Future[bytes] | None = None
        self._left = memoryview(b"")  # what is read in small pieces is not copied again for each
        self._stopped = False

    def read(self, size: int) -> bytes:
        """In the thread: up to `size` bytes, b"" at the end. ConnectionError if the client has gone."""
        if not self._left:
            if self._stopped:
                raise ConnectionResetError("the upload was broken off")
            self._reading = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
            try:
                self._left = memoryview(self._reading.result())
            except concurrent.futures.CancelledError as err:
                raise ConnectionResetError("the upload was broken off") from err
        piece, self._left = self._left[:size], self._left[size:]
        return bytes(piece)

    def stop(self) -> None:
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()

    async def _gather(self) -> bytes:
        """What comes, a good deal at a time."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self._chunks:
            parts.append(chunk)
            size += len(chunk)
            if size >= _GATHER:
                break
        return b"".join(parts)
