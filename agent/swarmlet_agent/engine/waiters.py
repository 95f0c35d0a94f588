"""Clients that wait for a container's end (Engine API ContainerWait)."""

from __future__ import annotations

import asyncio

from swarmlet.errors import InvalidArgument
from swarmlet_agent.engine.container import WAIT_CONDITIONS, WaitResult


class Waiter:
    """A registered wait: nothing that happens after its making is missed. Await `result()`, close when done."""

    __slots__ = ("_future", "_group", "condition")

    def __init__(self, group: Waiters, condition: str) -> None:
        self._group = group
        self.condition = condition
        self._future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()

    def resolve(self, result: WaitResult) -> None:
        if not self._future.done():
            self._future.set_result(result)

    async def result(self) -> WaitResult:
        """When the condition holds. May be awaited again, and cancelled without harm."""
        return await asyncio.shield(self._future)

    def close(self) -> None:
        self._group.discard(self)
        self._future.cancel()


class Waiters:
    """Those of one container."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []

    def register(self, condition: str) -> Waiter:
        """InvalidArgument for a condition that Docker does not know; "" means not-running."""
        if (condition or WAIT_CONDITIONS[0]) not in WAIT_CONDITIONS:
            raise InvalidArgument(f'invalid condition: "{condition}"')
        waiter = Waiter(self, condition or WAIT_CONDITIONS[0])
        self._waiters.append(waiter)
        return waiter

    def discard(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def stopped(self, result: WaitResult) -> None:
        """A run has ended."""
        self._release(("not-running", "next-exit"), result)

    def removed(self, result: WaitResult) -> None:
        """The container is gone: nothing else can happen to it."""
        self._release(WAIT_CONDITIONS, result)

    def _release(self, conditions: tuple[str, ...], result: WaitResult) -> None:
        for waiter in self._waiters:
            if waiter.condition in conditions:
                waiter.resolve(result)
        self._waiters = [waiter for waiter in self._waiters if waiter.condition not in conditions]
