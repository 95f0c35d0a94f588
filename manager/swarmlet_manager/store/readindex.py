"""How far a reader's state must be, asked once for many readers.

The answer to a question counts for everyone who came before it was asked, and for no one who came later: what was
acknowledged in between may be missing from it. So at most one question is on its way, and one more waits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


class ReadIndex:
    """ask: the revision of the last write that is acknowledged by the time it is called."""

    def __init__(self, ask: Callable[[], Awaitable[int]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    async def read(self) -> int:
        """A revision that holds every write acknowledged before the call. Raises what `ask` raises."""
        if self._asking is None:
            self._asking = self._begin(self._ask_now())
            return await asyncio.shield(self._asking)
        if self._next is None:
            self._next = self._begin(self._ask_after(self._asking))
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """Nobody is answered any more."""
        tasks = [task for task in (self._next, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, asking: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
        task = asyncio.create_task(asking, name="read index")
        # Whoever asked may have gone: its failure is no news then.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _ask_after(self, before: asyncio.Task[int]) -> int:
        await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await self._ask_now()

    async def _ask_now(self) -> int:
        own = asyncio.current_task()
        try:
            return await self._ask()
        finally:
            if self._asking is own:
                self._asking = None
