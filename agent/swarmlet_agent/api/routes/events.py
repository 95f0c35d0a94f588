"""Engine API route for the stream of events: this node's, and on a manager's host those of the cluster's objects too.

What is asked of the manager says scope=swarm, so that it does not ask the nodes back; what it asks of them says
scope=local.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol
from urllib.parse import urlencode

from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import InvalidArgument, Unavailable
from swarmlet.log import get_logger
from swarmlet_agent.api.backends import EventSource, EventStream
from swarmlet_agent.api.shapes.events import event_message

log = get_logger(__name__)

#: How long after a manager has gone it is asked again.
LOOK_AGAIN_S = 1.0


class ClusterEvents(Protocol):
    """This host's manager, as this route asks it (`routes.swarm.SwarmRoutes`)."""

    @property
    def is_manager(self) -> bool: ...

    def follow(self, path_qs: str) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream. Unavailable if the manager does not answer, or has gone."""
        ...


class EventRoutes:
    def __init__(self, events: EventSource, cluster: ClusterEvents | None = None) -> None:
        self._events = events
        self._cluster = cluster

    def routes(self) -> list[Route]:
        return [Route("GET", "/events", self.events)]

    async def events(self, call: Call) -> web.StreamResponse:
        """SystemEvents: what is kept since `since`, then what happens, until `until` or the client goes."""
        since, until = call.moment("since"), call.moment("until")
        if since and until and until < since:
            times = f"`since` time (`{call.text('since')}`) cannot be after `until` time (`{call.text('until')}`)"
            raise InvalidArgument(times)
        subscription = self._events.subscribe(since, until, call.filters())
        stream = JsonStream(call)
        try:
            async with WhileConnected(call.request):
                await stream.start()
                try:
                    await self._tell(call, stream, subscription, until)
                except Unavailable as err:  # read too slowly
                    await stream.fail(str(err))
                return await stream.end()
        finally:
            subscription.close()

    async def _tell(self, call: Call, stream: JsonStream, own: EventStream, until: int) -> None:
        if not self._asks_manager(call):
            async for event in own:
                await stream.send(event_message(event))
        elif until and until <= time.time_ns():
            # All of it has happened: in the order of time.
            told = [event_message(event) async for event in own]
            told += [event async for event in self._of_cluster(call, for_ever=False)]
            for each in sorted(told, key=lambda each: each["timeNano"]):
                await stream.send(each)
        else:
            await self._tell_both(call, stream, own, for_ever=not until)

    async def _tell_both(self, call: Call, stream: JsonStream, own: EventStream, *, for_ever: bool) -> None:
        async def cluster() -> None:
            async for event in self._of_cluster(call, for_ever=for_ever):
                await stream.send(event)

        listening = asyncio.create_task(cluster(), name="cluster-events")
        try:
            async for event in own:
                await stream.send(event_message(event))
            await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def _asks_manager(self, call: Call) -> bool:
        if self._cluster is None or not self._cluster.is_manager or call.text("scope") == "local":
            return False
        return call.filters().matches("scope", "swarm")

    async def _of_cluster(self, call: Call, *, for_ever: bool) -> AsyncIterator[dict[str, Any]]:
        """A manager that goes (or is started just now) is asked again if this goes on for ever."""
        assert self._cluster is not None
        query = {name: call.text(name) for name in ("since", "until", "filters") if call.text(name)}
        while True:
            try:
                async for event in self._cluster.follow(f"/events?{urlencode(query | {'scope': 'swarm'})}"):
                    yield event
            except Unavailable as err:
                log.warning("the cluster's events are left out of a stream", reason=str(err))
            if not for_ever:
                return
            query.pop("since", None)
            await asyncio.sleep(LOOK_AGAIN_S)
