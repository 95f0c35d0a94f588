"""The Engine API's network calls on one node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.model.base import to_api
from swarmlet_agent.api.backends import EventPublisher
from swarmlet_agent.net.records import NetworkRecord
from swarmlet_agent.net.requests import NetworkConnect, NetworkCreate, NetworkDisconnect, NetworkView


class NetworkBackend(Protocol):
    """What these routes use of the networks."""

    def list(self, filters: Filters) -> Sequence[NetworkView]: ...

    def inspect(self, ref: str) -> NetworkView: ...

    async def create(self, request: NetworkCreate) -> NetworkRecord: ...

    async def remove(self, ref: str) -> None: ...

    async def prune(self, filters: Filters, kept: Collection[str] = ()) -> Sequence[str]: ...

    async def connect(self, ref: str, request: NetworkConnect) -> None: ...

    async def disconnect(self, ref: str, request: NetworkDisconnect) -> None: ...


class NetworkRoutes:
    """`routes()` for the node's server."""

    def __init__(self, networks: NetworkBackend, events: EventPublisher) -> None:
        self._networks = networks
        self._events = events

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/networks", self.list_all),
            Route("POST", "/networks/create", self.create),
            Route("POST", "/networks/prune", self.prune),
            Route("GET", "/networks/{id}", self.inspect),
            Route("DELETE", "/networks/{id}", self.remove),
            Route("POST", "/networks/{id}/connect", self.connect),
            Route("POST", "/networks/{id}/disconnect", self.disconnect),
        ]

    async def list_all(self, call: Call) -> web.StreamResponse:
        """NetworkList: 200; 400 unknown filter. Containers are in the list before API 1.28 only."""
        views = [*self._networks.list(call.filters())]
        if call.version < (1, 28):
            views = [self._networks.inspect(view.id) for view in views]
        return json_answer([to_api(view) for view in views])

    async def inspect(self, call: Call) -> web.StreamResponse:
        """NetworkInspect: 200; 404. Local networks have no other scope."""
        ref = call.params["id"]
        if call.text("scope") not in ("", "local"):
            raise NotFound("network", ref, f"network {ref} not found")
        return json_answer(to_api(self._networks.inspect(ref)))

    async def create(self, call: Call) -> web.StreamResponse:
        """NetworkCreate: 201; 400, 403 predefined name or overlapping pool, 404 unknown driver, 409 name taken."""
        network = await self._networks.create(await call.json(NetworkCreate))
        return json_answer({"Id": network.id, "Warning": ""}, 201)

    async def remove(self, call: Call) -> web.StreamResponse:
        """NetworkDelete: 204; 403 predefined or in use, 404."""
        await self._networks.remove(call.params["id"])
        return web.Response(status=204)

    async def prune(self, call: Call) -> web.StreamResponse:
        """NetworkPrune: 200; 400 unknown filter. keep: names that stay (the manager's: in use on other nodes)."""
        removed = await self._networks.prune(call.filters(), call.texts("keep"))
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return json_answer({"NetworksDeleted": [*removed] or None})

    async def connect(self, call: Call) -> web.StreamResponse:
        """NetworkConnect: 200; 400, 403 connected already, 404."""
        request = await call.json(NetworkConnect)
        _need_container(request.container)
        await self._networks.connect(call.params["id"], request)
        return web.Response(status=200)

    async def disconnect(self, call: Call) -> web.StreamResponse:
        """NetworkDisconnect: 200; 404; 409 not connected."""
        request = await call.json(NetworkDisconnect)
        _need_container(request.container)
        await self._networks.disconnect(call.params["id"], request)
        return web.Response(status=200)


def _need_container(ref: str) -> None:
    if not ref:
        raise InvalidArgument("invalid container name or ID: value is empty")
