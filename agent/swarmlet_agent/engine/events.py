"""Events: what happened to this node's objects, in Docker's words, kept a while and sent to whoever listens.

The bus never waits for a listener: each has a bounded queue, and one that lets it run full is cut off
with an error in its stream, so that a stuck client costs a few kilobytes and nobody else's time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from swarmlet.engine_api.filters import EVENT_FILTERS, Filters
from swarmlet.errors import Unavailable

#: Events kept for `--since`, and how far one listener may lag behind.
RING_SIZE = 1000
QUEUE_SIZE = 1000
#: Kinds of objects whose events only a cluster has.
CLUSTER_KINDS = ("service", "node", "secret", "config", "plugin")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. at: ns. attributes: name, image, labels of the actor, and what the action adds (exitCode)."""

    type: str  # container, image, network, volume, daemon
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    scope: str = "local"
    at: int = 0


def matches(event: Event, filters: Filters) -> bool:
    """Docker's event filters. Objects are matched by id, id prefix or name; `event` also by its part before ":"."""
    names = {event.actor_id, event.attributes.get("name", "")}
    action = event.action.split(":")[0]
    if not (
        filters.matches("type", event.type)
        and filters.matches("scope", event.scope)
        and filters.matches("event", event.action, action)
        and filters.matches_labels(event.attributes)
    ):
        return False
    for kind in ("container", "network", "volume", "daemon"):
        wanted = filters.get(kind)
        if wanted and not (event.type == kind and _names_one(wanted, event.actor_id, names)):
            # A network's or volume's event tells of a container too.
            if kind == "container" and event.attributes.get("container") in wanted:
                continue
            return False
    wanted = filters.get("image")
    if wanted:
        image = event.attributes.get("image", "") if event.type == "container" else event.attributes.get("name", "")
        candidates = {image, image.partition("@")[0].rpartition(":")[0] or image, event.actor_id}
        return any(value in candidates for value in wanted)
    return not any(filters.get(kind) and event.type != kind for kind in CLUSTER_KINDS)


def _names_one(wanted: tuple[str, ...], ident: str, names: set[str]) -> bool:
    return any(value.removeprefix("/") in names or (value and ident.startswith(value)) for value in wanted)


class EventBus:
    """Publishing is synchronous and cheap; listening is `async for event in bus.subscribe(…)`."""

    def __init__(self, ring_size: int = RING_SIZE, queue_size: int = QUEUE_SIZE) -> None:
        self._ring: deque[Event] = deque(maxlen=ring_size)
        self._queue_size = queue_size
        self._listeners: set[Subscription] = set()
        self._closed = False
        #: Times never repeat, so that `--since` the last one seen misses nothing and repeats nothing.
        self._last = 0

    def publish(
        self, type: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None, *, at: int = 0
    ) -> Event:
        """Record an event (now, unless `at` says when) and hand it to everyone whose filters it meets."""
        self._last = at = max(at or time.time_ns(), self._last + 1)
        event = Event(type, action, actor_id, dict(attributes or {}), at=at)
        self._ring.append(event)
        for listener in tuple(self._listeners):
            listener.offer(event)
        return event

    def subscribe(self, since: int = 0, until: int = 0, filters: Filters | None = None) -> Subscription:
        """Events from `since` on (0: from now), up to `until` (0: for ever; in the past: what is kept, then the end).

        InvalidArgument for a filter Docker does not know. Close it, or leave its `with` block, when done.
        """
        filters = filters or Filters()
        filters.check(*EVENT_FILTERS)
        past = [event for event in self._ring if since and event.at >= since]
        subscription = Subscription(self, past, until, filters, self._queue_size)
        if not self._closed and (not until or until > time.time_ns()):
            self._listeners.add(subscription)
        else:
            subscription.end()
        return subscription

    def forget(self, subscription: Subscription) -> None:
        self._listeners.discard(subscription)

    @property
    def listeners(self) -> int:
        """How many listen now (Engine API SystemInfo NEventsListener)."""
        return len(self._listeners)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for listener in tuple(self._listeners):
            listener.end()
        self._listeners.clear()


class Subscription:
    """One listener's stream: iterate it. After what it missed by being slow it raises Unavailable."""

    def __init__(self, bus: EventBus, past: list[Event], until: int, filters: Filters, size: int) -> None:
        self._bus = bus
        self._until = until
        self._filters = filters
        self._size = size
        self._queue = deque(event for event in past if self._wants(event))
        self._wake = asyncio.Event()
        self._ended = False
        self._overrun = False

    def offer(self, event: Event) -> None:
        """Called by the bus."""
        if self._ended or not self._wants(event):
            return
        if len(self._queue) >= self._size:
            self._overrun = True
            self.end()
            self._bus.forget(self)
            return
        self._queue.append(event)
        self._wake.set()

    def end(self) -> None:
        """No further events; what is queued can still be read."""
        self._ended = True
        self._wake.set()

    def close(self) -> None:
        self._bus.forget(self)
        self._queue.clear()
        self.end()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._overrun:
                raise Unavailable("events were lost because they were read too slowly: subscribe again")
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._sleep()
        return self._queue.popleft()

    async def _sleep(self) -> None:
        """Until something happens or `until` has come."""
        if not self._until:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, (self._until - time.time_ns()) / 1e9)):
                await self._wake.wait()
        except TimeoutError:
            self._bus.forget(self)
            self.end()

    def _wants(self, event: Event) -> bool:
        return (not self._until or event.at <= self._until) and matches(event, self._filters)
