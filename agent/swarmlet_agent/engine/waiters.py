"""Clients that wait for a container's end (Engine API ContainerWait)."""

from __future__ import annotations

import asyncio

from swarmlet.errors import InvalidArgument
from swarmlet_agent.engine.container import WAIT_CONDITIONS, WaitResult

#: How long, in ns, and of how many containers that have removed themselves the exit code is still told.
LATE_NS, LATE_RESULTS = 5 * 10**9, 256


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


class LateResults:
    """How containers ended that removed themselves, for those who ask too late by a little.

    Some clients (dockerode) ask for the exit code only after the start has been answered. dockerd takes so long to
    remove a container that it still finds it; here a short run may be over and gone by then.
    """

    __slots__ = ("_results",)

    def __init__(self) -> None:
        self._results: dict[str, tuple[WaitResult, int]] = {}

    def note(self, ident: str, result: WaitResult, now: int) -> None:
        """now: ns. Those that are too old are forgotten, and the oldest of too many."""
        self._results.pop(ident, None)  # the order is that of their ends
        self._results[ident] = (result, now)
        for old in tuple(self._results):
            if len(self._results) <= LATE_RESULTS and now - self._results[old][1] <= LATE_NS:
                break
            del self._results[old]

    def find(self, ident: str, now: int) -> WaitResult | None:
        """By the full id: a name may be another container's by now."""
        result, at = self._results.get(ident, (None, 0))
        return result if now - at <= LATE_NS else None
