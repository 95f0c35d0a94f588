"""What the nodes' engines tell of their events: the past in the order of time, then each as it happens.

An event is what an engine told (EventMessage, as builtins), with the attribute `node.name`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import aiohttp

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.node import Node
from swarmlet.model.times import NS
from swarmlet_manager.fleet.client import Fleet

log = get_logger(__name__)

LOOK_AGAIN_S = 0.5
#: How long nodes may take to tell what they keep.
LATE_S = 10.0

Json = dict[str, Any]


class EventFeed:
    """One client's question to all nodes. since, until: ns since the epoch, 0 for none; filters: as the client has
    spelled them. asks_nodes False: nothing but the passing of time, for a client that asks for the cluster's alone."""

    def __init__(self, fleet: Fleet, since: int, until: int, filters: str, *, asks_nodes: bool = True) -> None:
        self._fleet = fleet
        self._asks_nodes = asks_nodes
        self._since = since
        self._until = until
        self._filters = filters
        #: By node: the time of the last event it told. An engine's times never repeat, so what follows begins there.
        self._heard: dict[str, int] = {}

    async def past(self) -> list[Json]:
        """What every ready node keeps from `since` until now, or `until`; what comes too late is told as it comes."""
        if not self._since:
            return []
        now = time.time_ns()
        until = min(self._until or now, now)
        told: list[Json] = []
        async with asyncio.TaskGroup() as group:
            for node in self._nodes():
                group.create_task(self._told(node, until, told), name=f"past-events-{node.id}")
        return told

    async def follow(self, offer: Callable[[Json], None]) -> None:
        """What happens from then on, until `until`; nodes that come later are listened to from then on."""
        running: dict[str, asyncio.Task[None]] = {}
        first = True
        async with asyncio.TaskGroup() as group:
            while True:
                left_s = (self._until - time.time_ns()) / NS if self._until else LOOK_AGAIN_S
                if left_s <= 0:
                    return
                running = {ident: task for ident, task in running.items() if not task.done()}
                for node in self._nodes():
                    if node.id not in running:
                        since = self._since if first else 0
                        running[node.id] = group.create_task(
                            self._tell(node, since, offer), name=f"events-{node.id}"
                        )
                first = False
                await asyncio.sleep(min(left_s, LOOK_AGAIN_S))

    def _nodes(self) -> Sequence[Node]:
        return self._fleet.ready() if self._asks_nodes else ()

    async def _told(self, node: Node, until: int, told: list[Json]) -> None:
        try:
            async with asyncio.timeout(LATE_S):
                async for event in self._events(node, self._since, until):
                    told.append(event)
        except TimeoutError:
            log.warning("a node is late to tell its events", node_id=node.id)

    async def _tell(self, node: Node, since: int, offer: Callable[[Json], None]) -> None:
        async for event in self._events(node, since, self._until):
            offer(event)

    async def _events(self, node: Node, since: int, until: int) -> AsyncIterator[Json]:
        """From behind what was heard; ends with the stream, or without a word where a node cannot be reached."""
        if node.id in self._heard:
            since = self._heard[node.id] + 1
        times = {"since": since, "until": until}
        query = {name: f"{at // NS}.{at % NS:09d}" for name, at in times.items() if at}
        query["scope"] = "local"  # a manager's host would tell the cluster's, too
        if self._filters:
            query["filters"] = self._filters
        try:
            async with self._fleet.request(node, "GET", f"/events?{urlencode(query)}") as answer:
                if answer.status >= 400:
                    return
                async for line in answer.content:
                    if line.strip():
                        event = json.loads(line)
                        event.setdefault("Actor", {}).setdefault("Attributes", {})["node.name"] = (
                            node.description.hostname
                        )
                        self._heard[node.id] = event.get("timeNano", 0)
                        yield event
        except (SwarmletError, aiohttp.ClientError, ValueError) as err:
            log.debug("events of a node ended", node_id=node.id, reason=str(err))
