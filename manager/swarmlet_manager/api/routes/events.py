"""/events of the whole cluster: what every node's engine tells, and what happens to the cluster's objects.

A manager's own host passes on the latter alone (scope=swarm); nodes are asked for the former alone (scope=local).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.filters import EVENT_FILTERS, Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import InvalidArgument
from swarmlet.model.defaults import replicas
from swarmlet.model.dependency import Config, Secret
from swarmlet.model.network import Network
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.times import NS
from swarmlet_manager.fleet.client import Fleet
from swarmlet_manager.fleet.eventfeed import LATE_S, EventFeed, Json
from swarmlet_manager.state import Change

#: Cluster events remembered for `--since`.
HISTORY = 1000
#: Events waiting for a slow client; when it is full the stream ends rather than grow or lie.
QUEUE = 4096


class Subscribable(Protocol):
    def subscribe(self, callback: Callable[[Sequence[Change]], None]) -> Callable[[], None]: ...


class ClusterEvents:
    """Events of the cluster's objects, made from changes of the state; the last `HISTORY` are kept."""

    def __init__(self, store: Subscribable) -> None:
        self._recent: deque[Json] = deque(maxlen=HISTORY)
        self._listeners: set[Callable[[Json], None]] = set()
        store.subscribe(self._on_changes)

    def since(self, at: int) -> list[Json]:
        return [event for event in self._recent if event["timeNano"] >= at]

    def listen(self, callback: Callable[[Json], None]) -> Callable[[], None]:
        self._listeners.add(callback)
        return lambda: self._listeners.discard(callback)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if (event := event_of(change, time.time_ns())) is not None:
                self._recent.append(event)
                for listener in list(self._listeners):
                    listener(event)


def event_of(change: Change, now: int) -> Json | None:
    """The event a change stands for, if it stands for one (swarm scope: service, node, network, secret, config).

    Names and attributes are dockerd's (daemon/events.go)."""
    before, after = change.before, change.after
    match change.record:
        case Service() as record:
            if after is None:
                return None
            if isinstance(after, Service) and after.pending_delete:
                already = isinstance(before, Service) and before.pending_delete
                return None if already else _event("service", "remove", record.id, {"name": record.spec.name}, now)
            if before is None:
                return _event("service", "create", record.id, {"name": record.spec.name}, now)
            attributes = {"name": record.spec.name} | _update_attributes(before, after)
            changed = isinstance(before, Service) and before.spec != record.spec
            return _event("service", "update", record.id, attributes, now) if changed or len(attributes) > 1 else None
        case Node() as record:
            name = {"name": record.description.hostname}
            if before is None:
                return _event("node", "create", record.id, name, now)
            if after is None:
                return _event("node", "remove", record.id, name, now)
            attributes = name | _node_attributes(before, after)
            changed = isinstance(before, Node) and before.spec != record.spec
            return _event("node", "update", record.id, attributes, now) if changed or len(attributes) > 1 else None
        case Network() as record:
            if before is None:
                return _event("network", "create", record.id, {"name": record.name}, now)
            going = after is None or (isinstance(after, Network) and after.pending_delete)
            already = isinstance(before, Network) and before.pending_delete
            return _event("network", "remove", record.id, {"name": record.name}, now) if going and not already else None
        case Secret() | Config() as record:
            action = "create" if before is None else "remove" if after is None else "update"
            return _event(type(record).__name__.lower(), action, record.id, {"name": record.name}, now)
        case _:
            return None


def _update_attributes(before: object, after: object) -> dict[str, str]:
    if not isinstance(before, Service) or not isinstance(after, Service):
        return {}
    pairs = (
        ("image", _image(before), _image(after)),
        ("replicas", _replicas(before), _replicas(after)),
        ("updatestate", before.update_status.state if before.update_status else "",
         after.update_status.state if after.update_status else ""),
    )
    changed = [(key, old, new) for key, old, new in pairs if new and old != new]
    return {f"{key}.old": old for key, old, _ in changed if old} | {f"{key}.new": new for key, _, new in changed}


def _image(service: Service) -> str:
    container = service.spec.task_template.container_spec
    return "" if container is None else container.image


def _replicas(service: Service) -> str:
    return "" if service.spec.mode.global_ is not None else str(replicas(service))


def _node_attributes(before: object, after: object) -> dict[str, str]:
    if not isinstance(before, Node) or not isinstance(after, Node):
        return {}
    pairs = (
        ("state", str(before.state), str(after.state)),
        ("availability", str(before.spec.availability), str(after.spec.availability)),
        ("role", str(before.spec.role), str(after.spec.role)),
    )
    changed = [(key, old, new) for key, old, new in pairs if old != new]
    return {f"{key}.old": old for key, old, _ in changed} | {f"{key}.new": new for key, _, new in changed}


def _event(kind: str, action: str, ident: str, attributes: dict[str, str], now: int) -> Json:
    return {
        "Type": kind, "Action": action, "Actor": {"ID": ident, "Attributes": attributes},
        "scope": "swarm", "time": now // NS, "timeNano": now,
    }


class EventRoutes:
    def __init__(self, fleet: Fleet, events: ClusterEvents) -> None:
        self._fleet = fleet
        self._events = events

    def routes(self) -> list[Route]:
        return [Route("GET", "/events", self.stream)]

    async def stream(self, call: Call) -> web.StreamResponse:
        """Until `until`, or for ever; nodes that come later are listened to from then on."""
        filters = call.filters()
        filters.check(*EVENT_FILTERS)
        since, until = call.moment("since"), call.moment("until")
        if since and until and until < since:
            times = f"`since` time (`{call.text('since')}`) cannot be after `until` time (`{call.text('until')}`)"
            raise InvalidArgument(times)
        queue: asyncio.Queue[Json | None] = asyncio.Queue(QUEUE)
        overflow = asyncio.Event()

        def offer(event: Json) -> None:
            if queue.full():
                overflow.set()
            else:
                queue.put_nowait(event)

        def offer_own(event: Json) -> None:
            if matches(filters, event):
                offer(event)

        feed = EventFeed(
            self._fleet, since, until, call.text("filters"), asks_nodes=call.text("scope") != "swarm"
        )
        stream = JsonStream(call)
        async with WhileConnected(call.request):
            await stream.start()
            own = [event for event in self._events.since(since) if matches(filters, event)] if since else []
            stop = self._events.listen(offer_own)
            try:
                # Of several tellers: what is past comes in the order of time, as one engine would tell it.
                for event in sorted([*own, *await feed.past()], key=lambda event: int(event.get("timeNano", 0))):
                    if not until or event["timeNano"] <= until:
                        await stream.send(event)
                await self._live(feed, offer, Outlet(stream, queue, overflow, until))
            finally:
                stop()
            return await stream.end()

    async def _live(self, feed: EventFeed, offer: Callable[[Json], None], outlet: Outlet) -> None:
        async def listen() -> None:
            await feed.follow(offer)
            await outlet.queue.put(None)

        listener = asyncio.create_task(listen(), name="cluster-events")
        try:
            await outlet.send()
        finally:
            listener.cancel()
            await asyncio.wait([listener])


@dataclass(frozen=True, slots=True)
class Outlet:
    """From the queue of what happens to one client."""

    stream: JsonStream
    queue: asyncio.Queue[Json | None]
    overflow: asyncio.Event
    until: int

    async def send(self) -> None:
        """Until the queue tells its end (None), or has been full."""
        while not self.overflow.is_set():
            left = (self.until - time.time_ns()) / NS if self.until else None
            try:
                async with asyncio.timeout(None if left is None else max(left, 0) + LATE_S):
                    event = await self.queue.get()
            except TimeoutError:
                return
            if event is None:
                return
            if not self.until or event["timeNano"] <= self.until:
                await self.stream.send(event)


def matches(filters: Filters, event: Json) -> bool:
    """Filters of /events as they apply to objects of the cluster."""
    actor = event["Actor"]
    names = (actor["ID"], actor["Attributes"].get("name", ""))
    return (
        filters.matches("type", event["Type"])
        and filters.matches("event", event["Action"])
        and filters.matches("scope", event["scope"])
        and all(key not in filters for key in ("container", "image", "volume", "daemon", "label", "plugin"))
        and all(
            event["Type"] == kind and filters.matches(kind, *names)
            for kind in ("service", "node", "network", "secret", "config") if kind in filters
        )
    )

