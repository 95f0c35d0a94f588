"""Progress of a pull that several callers may watch, and single flight: equal pulls at one time are one pull."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Message = dict[str, Any]
Listener = Callable[[Message], Awaitable[None]]

#: A layer's byte counts are passed on at most this often.
MIN_INTERVAL_S = 0.1


class Hub:
    """Passes messages to listeners of any speed.

    A later message with the id and status of one not yet delivered replaces it, so what waits for a slow listener
    is bounded by layers times states. Who comes later first hears the last word on everything.
    """

    def __init__(self) -> None:
        self._history: dict[Hashable, Message] = {}
        self._queues: list[_Queue] = []
        self._finished = False

    def emit(self, message: Message) -> None:
        ident = message.get("id")
        status = message.get("status")
        layer = ident is not None and status is not None and "progressDetail" in message
        self._history[ident if layer else len(self._history)] = message
        for waiting in self._queues:
            waiting.put((ident, status) if layer else None, message)

    def finish(self) -> None:
        self._finished = True
        for waiting in self._queues:
            waiting.ready.set()

    async def follow(self, listener: Listener) -> None:
        """Deliver until finished. What the listener raises comes out here and harms no one else."""
        mine = _Queue()
        for earlier in self._history.values():
            mine.put(None, earlier)
        self._queues.append(mine)
        try:
            while True:
                while (message := mine.take()) is not None:
                    await listener(message)
                if self._finished:
                    return
                await mine.ready.wait()
        finally:
            self._queues.remove(mine)


class _Queue:
    def __init__(self) -> None:
        self._waiting: dict[Hashable, Message] = {}
        self._next = 0
        self.ready = asyncio.Event()

    def put(self, key: Hashable | None, message: Message) -> None:
        if key is None:
            key, self._next = self._next, self._next + 1
        self._waiting[key] = message
        self.ready.set()

    def take(self) -> Message | None:
        self.ready.clear()
        if not self._waiting:
            return None
        return self._waiting.pop(next(iter(self._waiting)))


class _Flight(Generic[T]):
    def __init__(self, hub: Hub, task: asyncio.Task[T]) -> None:
        self.hub, self.task, self.users = hub, task, 0


class SingleFlight(Generic[T]):
    """`run` joins a flight of the same key or starts one; when its last passenger leaves, it is cancelled."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def run(
        self, key: Hashable, start: Callable[[Hub], Coroutine[Any, Any, T]], listener: Listener | None
    ) -> T:
        flight = self._flights.get(key)
        if flight is None:
            hub = Hub()
            task = asyncio.create_task(_fly(start, hub), name=f"image transfer {key!r}")
            flight = self._flights[key] = _Flight(hub, task)
        flight.users += 1
        try:
            if listener is not None:
                await flight.hub.follow(listener)
            return await asyncio.shield(flight.task)
        finally:
            flight.users -= 1
            if not flight.users:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                await _end(flight.task)

    async def close(self) -> None:
        flights, self._flights = list(self._flights.values()), {}
        for flight in flights:
            await _end(flight.task)


async def _fly(start: Callable[[Hub], Coroutine[Any, Any, T]], hub: Hub) -> T:
    try:
        return await start(hub)
    finally:
        hub.finish()


async def _end(task: asyncio.Task[T]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # whoever waited has heard it; with nobody waiting it is nobody's


class Throttle:
    """Lets a layer's byte counts through now and then, and always the last one."""

    def __init__(self) -> None:
        self._next = 0.0

    def passes(self, now: float, *, last: bool) -> bool:
        if last or now >= self._next:
            self._next = now + MIN_INTERVAL_S
            return True
        return False
