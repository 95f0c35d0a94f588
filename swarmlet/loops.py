"""Tools for loops that bring the world to a wanted state: queues that merge, back-off, pulses, periods.

All of it lives on one event loop and none of it is thread-safe. Durations are seconds of that loop's clock.
A key says *look again*, never *what happened*, so any number of adds may become one look.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from swarmlet.log import get_logger, log_context

log = get_logger(__name__)

K = TypeVar("K", bound=Hashable)


class Backoff(Generic[K]):
    """Growing pauses per key: full jitter below base * 2^failures, at most `limit`.

    Full jitter (anything between `floor` and the bound) spreads many that failed together.
    """

    def __init__(
        self, base: float = 0.05, limit: float = 10.0, *, floor: float = 0.0, rng: random.Random | None = None
    ) -> None:
        self.base, self.limit, self.floor = base, limit, floor
        self._rng = rng or random.Random()
        self._failures: dict[K, int] = {}

    def next(self, key: K) -> float:
        """Count a failure and return the pause before the next try."""
        failures = self._failures.get(key, 0)
        self._failures[key] = min(failures + 1, 62)
        bound = min(self.limit, self.base * 2**failures)
        return max(self.floor, self._rng.uniform(0, bound))

    def failures(self, key: K) -> int:
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """It worked: the next pause is short again."""
        self._failures.pop(key, None)


class WorkQueue(Generic[K]):
    """Keys to look at. A key waits at most once, and is held by at most one worker: one that is added while it
    is being worked on comes again afterwards. Its size is bounded by the number of distinct keys."""

    def __init__(self) -> None:
        self._waiting: deque[K] = deque()
        self._queued: set[K] = set()
        self._held: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Look at this key as soon as a worker is free."""
        if key in self._held:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._waiting.append(key)
            self._wake.set()

    def add_after(self, key: K, delay: float) -> None:
        """Look at this key in `delay` seconds, or earlier if that was asked for before."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + delay:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(max(0.0, delay), self._due, key)

    async def get(self) -> K:
        """The next key; it is the caller's until `done`."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        key = self._waiting.popleft()
        self._queued.discard(key)
        self._held.add(key)
        return key

    def done(self, key: K) -> None:
        self._held.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancel timers; what waits is forgotten."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()
        self._queued.clear()
        self._again.clear()

    def _due(self, key: K) -> None:
        del self._timers[key]
        self.add(key)


async def work(
    queue: WorkQueue[K],
    handle: Callable[[K], Awaitable[None]],
    backoff: Backoff[K],
    *,
    name: str,
    deadline: float,
    expected: tuple[type[Exception], ...] = (),
) -> None:
    """Take keys for ever. One key's trouble delays that key, never its neighbours.

    expected: errors that only mean "look again" (a stale view), logged at debug.
    """
    while True:
        key = await queue.get()
        with log_context(loop=name, key=key):
            try:
                async with asyncio.timeout(deadline):
                    await handle(key)
            except expected as err:
                log.debug("reconcile again", reason=err)
                queue.add_after(key, backoff.next(key))
            except Exception:
                log.exception("reconcile failed")
                queue.add_after(key, backoff.next(key))
            else:
                backoff.forget(key)
            finally:
                queue.done(key)


class Pulse:
    """Signals merged in time: the first after a quiet while passes at once, later ones at most every `spacing`.

    So a single event is answered without delay, and a burst costs one round per spacing.
    """

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing
        self._set = asyncio.Event()
        self._last = float("-inf")

    def beat(self) -> None:
        self._set.set()

    async def wait(self) -> None:
        """Until there was a beat since the last return, and the spacing has passed."""
        await self._set.wait()
        loop = asyncio.get_running_loop()
        if (left := self._last + self.spacing - loop.time()) > 0:
            await asyncio.sleep(left)
        self._last = loop.time()
        self._set.clear()


async def every(period: float, step: Callable[[], Awaitable[None]], *, name: str, deadline: float = 60.0) -> None:
    """Run `step` every period, for ever, the first time at once; a failure is logged and the next comes on time.

    Rounds that fell due during a long step are left out.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        with log_context(loop=name):
            try:
                async with asyncio.timeout(deadline):
                    await step()
            except Exception:
                log.exception("periodic step failed")
        due = max(due + period, loop.time())
        await asyncio.sleep(due - loop.time())


class Runner(Generic[K]):
    """Handles keys as soon as they are poked, each key by at most one task at a time, different ones side by side.

    For handlers that mostly wait (a pull, a stop's grace period): their number is that of the keys in work, and
    whatever must be limited takes a semaphore inside. A handler's failure is logged and tried again after a pause.
    """

    def __init__(
        self, handle: Callable[[K], Awaitable[None]], *, name: str, backoff: Backoff[K] | None = None
    ) -> None:
        self._handle = handle
        self._name = name
        self._backoff = backoff or Backoff(base=0.5, limit=30.0, floor=0.05)
        self._active: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._closed = False

    def poke(self, key: K) -> None:
        if self._closed:
            return
        if key in self._active:
            self._again.add(key)
        else:
            self._active[key] = asyncio.get_running_loop().create_task(self._run(key), name=f"{self._name} {key}")

    def poke_after(self, key: K, delay: float) -> None:
        """Replaces an earlier wish for the same key."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(delay, self._due, key)

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in (tasks := list(self._active.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._active.clear()  # one that was cancelled before its first step has not taken itself out

    def _due(self, key: K) -> None:
        del self._timers[key]
        self.poke(key)

    async def _run(self, key: K) -> None:
        try:
            while True:
                self._again.discard(key)
                await self._once(key)
                if key not in self._again:
                    return
        finally:
            self._again.discard(key)
            del self._active[key]

    async def _once(self, key: K) -> None:
        with log_context(loop=self._name, key=key):
            try:
                await self._handle(key)
            except Exception:
                log.exception("handling failed")
                self.poke_after(key, self._backoff.next(key))
            else:
                self._backoff.forget(key)


class KeyedLocks(Generic[K]):
    """One lock per key, made when needed and forgotten when nobody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: dict[K, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


class Group:
    """Named tasks with one owner who can end them: a TaskGroup that outlives the block it was made in.

    `wait()` raises the first failure (an owner that awaits it dies with its task, STYLE "asyncio").
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def wait(self) -> None:
        """Until a task fails; raises what it raised. Never returns otherwise."""
        if self._failure is not None:
            raise self._failure
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Cancel all and wait for their ends."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("task ended with an error", task=task.get_name(), error=repr(error))
        if self._failure is None:
            self._failure = error
            if self._failed is not None and not self._failed.done():
                self._failed.set_exception(error)
