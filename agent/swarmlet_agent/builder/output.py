"""What a build says: lines in the classic builder's words, stage after stage, though stages run side by side.

A stage that is far ahead of what is told is told in between: it may hold what the others wait for, so it must not wait
for its turn, and what is kept in memory has a bound.
"""

from __future__ import annotations

import asyncio
from typing import Any

from swarmlet.errors import SwarmletError
from swarmlet_agent.images.progress import Listener

#: Messages that a stage may be ahead of its turn, or of a slow reader.
_AHEAD = 256
#: What a program writes to stderr is red, as dockerd sends it.
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"


class BuildFailed(SwarmletError):
    """A step failed; code is that of its program."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class BuildCancelled(SwarmletError):
    """POST /build/cancel has ended it."""

    def __init__(self) -> None:
        super().__init__("context canceled")


class Lane:
    """One stage's messages, in order."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_AHEAD)
        self._has_turn = False
        self._telling = asyncio.Lock()

    async def say(self, text: str) -> None:
        await self.put({"stream": text})

    async def program(self, stream: int, text: str) -> None:
        """What a step's program has written."""
        await self.say(f"{_RED}{text}{_PLAIN}" if stream == 2 else text)

    async def put(self, message: dict[str, Any] | None) -> None:
        if not self._has_turn and self._queue.full():
            await self.flush()
        await self._queue.put(message)

    async def end(self) -> None:
        await self.put(None)

    async def drain(self) -> None:
        """It is its turn: deliver until its end."""
        self._has_turn = True
        async with self._telling:
            while (message := await self._queue.get()) is not None:
                await self._listener(message)

    async def flush(self) -> None:
        """Deliver what is there."""
        async with self._telling:
            while not self._queue.empty():
                if (message := self._queue.get_nowait()) is not None:
                    await self._listener(message)
