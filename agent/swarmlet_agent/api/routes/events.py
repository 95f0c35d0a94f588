"""Engine API route for the stream of events."""

from __future__ import annotations

from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import InvalidArgument, Unavailable
from swarmlet_agent.api.backends import EventSource
from swarmlet_agent.api.routes.logs import moment
from swarmlet_agent.api.shapes.events import event_message


class EventRoutes:
    def __init__(self, events: EventSource) -> None:
        self._events = events

    def routes(self) -> list[Route]:
        return [Route("GET", "/events", self.events)]

    async def events(self, call: Call) -> web.StreamResponse:
        """SystemEvents: what is kept since `since`, then what happens, until `until` or the client goes."""
        since, until = moment(call, "since"), moment(call, "until")
        if since and until and until < since:
            times = f"`since` time (`{call.text('since')}`) cannot be after `until` time (`{call.text('until')}`)"
            raise InvalidArgument(times)
        subscription = self._events.subscribe(since, until, call.filters())
        stream = JsonStream(call)
        try:
            async with WhileConnected(call.request):
                await stream.start()
                try:
                    async for event in subscription:
                        await stream.send(event_message(event))
                except Unavailable as err:  # read too slowly
                    await stream.fail(str(err))
                return await stream.end()
        finally:
            subscription.close()
