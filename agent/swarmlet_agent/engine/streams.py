"""Streams that are promised before they exist, and streams whose end means more than their last byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from swarmlet_agent.engine.ports import Streams


class PendingStreams:
    """A client attached to a container that does not run yet (`docker run` attaches before it starts).

    Reading and writing wait for the container's next start, which hands in the real streams before the
    program runs, so nothing is lost. If there is no start (removed, engine closed), the stream just ends.
    """

    def __init__(self, on_close: Callable[[PendingStreams], None]) -> None:
        self._on_close = on_close
        self._ready: asyncio.Future[Streams | None] = asyncio.get_running_loop().create_future()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def connect(self, streams: Streams) -> None:
        """The container is about to start."""
        self._ready.set_result(streams)

    def end(self) -> None:
        """There will be nothing to read."""
        if not self._ready.done():
            self._ready.set_result(None)

    async def _streams(self) -> Streams | None:
        return await asyncio.shield(self._ready)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        streams = await self._streams()
        if streams is not None:
            async for piece in streams:
                yield piece

    async def write(self, data: bytes) -> None:
        if (streams := await self._streams()) is not None:
            await streams.write(data)

    async def close_stdin(self) -> None:
        if (streams := await self._streams()) is not None:
            await streams.close_stdin()

    async def close(self) -> None:
        self._closed = True
        self._on_close(self)
        self.end()
        if (streams := await self._streams()) is not None:
            await streams.close()


class EndedStreams:
    """Streams that, once read to their end, wait for `ended` (at most `patience_s`) before they say so.

    A client asks for an exec's exit code as soon as its stream ends: by then the code has to be known.
    """

    def __init__(self, streams: Streams, ended: Callable[[], Awaitable[object]], patience_s: float) -> None:
        self._streams = streams
        self._ended = ended
        self._patience_s = patience_s

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        async for piece in self._streams:
            yield piece
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._ended()

    async def write(self, data: bytes) -> None:
        await self._streams.write(data)

    async def close_stdin(self) -> None:
        await self._streams.close_stdin()

    async def close(self) -> None:
        await self._streams.close()
