"""What a build says: lines in the classic builder's words, stage after stage, though stages run side by side."""

from __future__ import annotations

import asyncio
from typing import Any

from swarmlet.errors import SwarmletError
from swarmlet_agent.images.progress import Listener

#: Messages that a stage may be ahead of what is read; then it waits for its turn.
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

    def __init__(self) -> None:
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_AHEAD)

    async def say(self, text: str) -> None:
        await self._queue.put({"stream": text})

    async def program(self, stream: int, text: str) -> None:
        """What a step's program has written."""
        await self.say(f"{_RED}{text}{_PLAIN}" if stream == 2 else text)

    async def put(self, message: dict[str, Any]) -> None:
        await self._queue.put(message)

    async def end(self) -> None:
        await self._queue.put(None)

    async def drain(self, listener: Listener) -> None:
        """Deliver until its end."""
        while (message := await self._queue.get()) is not None:
            await listener(message)

    async def flush(self, listener: Listener) -> None:
        """Deliver what is there: nothing more will come."""
        while not self._queue.empty():
            if (message := self._queue.get_nowait()) is not None:
                await listener(message)
