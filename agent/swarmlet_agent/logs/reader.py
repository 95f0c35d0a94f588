"""Reading and following a container's log: blocks of bytes ready for the client, at the client's pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from swarmlet.model.times import NS
from swarmlet_agent.logs.files import LogFiles
from swarmlet_agent.logs.k8s_file import LogQuery, Renderer
from swarmlet_agent.logs.watch import FolderWatch

#: How long a follower relies on notices before it looks by itself.
LOOK_AGAIN_S = 1.0
#: Shown at most this often while following: a chatty container then costs one read, not one per line.
GATHER_S = 0.005


class LogReader:
    """Reads logs; all followers share one inotify descriptor and need no thread while they wait."""

    def __init__(self) -> None:
        self._watch = FolderWatch()

    def close(self) -> None:
        self._watch.close()

    async def read(self, path: Path, query: LogQuery, ended: Awaitable[object] | None = None) -> AsyncIterator[bytes]:
        """What the query wants of the log, in order; blocks of at most about BLOCK_BYTES.

        Follows until `ended` completes (the container has stopped) and all it had written has been given, or
        until `query.until` has passed. Without `ended`, what is there now. At most a block is read ahead of the client.
        """
        files = LogFiles(path)
        renderer = Renderer(query)
        stop = None if ended is None else asyncio.ensure_future(_as_object(ended))
        try:
            await asyncio.to_thread(files.open, query.tail)
            async for data in self._all(files, renderer):
                yield data
            if stop is not None and not renderer.done:
                async for data in self._follow(path, files, renderer, stop, query.until):
                    yield data
            if rest := renderer.finish():
                yield rest
        finally:
            if stop is not None:
                stop.cancel()
                await asyncio.wait([stop])
            files.close()

    async def _all(self, files: LogFiles, renderer: Renderer) -> AsyncIterator[bytes]:
        # One block is read ahead, while the client takes the one before.
        ahead = asyncio.ensure_future(asyncio.to_thread(_next, files, renderer))
        try:
            while (data := await ahead) is not None:
                ahead = asyncio.ensure_future(asyncio.to_thread(_next, files, renderer))
                if data:
                    yield data
        finally:
            await asyncio.wait([ahead])

    async def _follow(
        self, path: Path, files: LogFiles, renderer: Renderer, stop: asyncio.Future[object], until: int
    ) -> AsyncIterator[bytes]:
        async with self._watch.changes(path.parent) as changed:
            while not renderer.done:
                # Asked before looking: what was written before the end is then surely seen.
                over = stop.done() or (until and time.time_ns() > until)
                changed.clear()
                # A look costs a stat or two; only reading goes to a thread.
                while files.advance():
                    async for data in self._all(files, renderer):
                        yield data
                    if renderer.done:
                        return
                if over:
                    return
                await _any(changed, stop, _wait_s(until))
                if not stop.done():
                    await asyncio.sleep(GATHER_S)


def _wait_s(until: int) -> float:
    return LOOK_AGAIN_S if not until else max(0.0, min(LOOK_AGAIN_S, (until - time.time_ns()) / NS + 0.001))


async def _any(changed: asyncio.Event, stop: asyncio.Future[object], timeout_s: float) -> None:
    """Until the folder changed, the container stopped, or the time is up."""
    waiter: asyncio.Future[object] = asyncio.ensure_future(_as_object(changed.wait()))
    try:
        await asyncio.wait({waiter, stop}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        await asyncio.wait([waiter])


async def _as_object(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _next(files: LogFiles, renderer: Renderer) -> bytes | None:
    """The next rendered block; None at the end, b"" for a block that has nothing for this client."""
    block = b"" if renderer.done else files.read()
    return renderer.render(block) if block else None
