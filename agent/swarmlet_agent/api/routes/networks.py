"""The Engine API's network calls on one node: its own networks, and on a manager's host those of the cluster too.

What is asked of the manager says scope=swarm, so that it does not ask the nodes back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument, NotAManager, NotFound, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.base import to_api
from swarmlet_agent.api.backends import EventPublisher
from swarmlet_agent.net.records import NetworkRecord
from swarmlet_agent.net.requests import NetworkConnect, NetworkCreate, NetworkDisconnect, NetworkView

log = get_logger(__name__)


class NetworkBackend(Protocol):
    """What these routes use of the networks."""

    def list(self, filters: Filters) -> Sequence[NetworkView]: ...

    def inspect(self, ref: str) -> NetworkView: ...

    def get(self, ref: str) -> NetworkRecord: ...

    async def create(self, request: NetworkCreate) -> NetworkRecord: ...

    async def remove(self, ref: str) -> None: ...

    async def prune(self, filters: Filters, kept: Collection[str] = ()) -> Sequence[str]: ...

    async def connect(self, ref: str, request: NetworkConnect) -> None: ...

    async def disconnect(self, ref: str, request: NetworkDisconnect) -> None: ...


class ClusterView(Protocol):
    """This host's manager, as these routes ask it (`routes.swarm.SwarmRoutes`)."""

    @property
    def is_manager(self) -> bool:
        """Whether this host runs one."""
        ...

    async def ask(self, method: str, path_qs: str, body: bytes | None = None) -> tuple[int, Any]:
        """(status, decoded JSON). Unavailable if it does not answer."""
        ...


class NetworkRoutes:
    """`routes()` for the node's server."""

    def __init__(
        self, networks: NetworkBackend, events: EventPublisher, cluster: ClusterView | None = None
    ) -> None:
        self._networks = networks
        self._events = events
        self._cluster = cluster

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/networks", self.list_all),
            Route("GET", "/networks/", self.list_all),  # dockerd has both
            Route("POST", "/networks/create", self.create),
            Route("POST", "/networks/prune", self.prune),
            Route("GET", "/networks/{id}", self.inspect),
            Route("DELETE", "/networks/{id}", self.remove),
            Route("POST", "/networks/{id}/connect", self.connect),
            Route("POST", "/networks/{id}/disconnect", self.disconnect),
        ]

    async def list_all(self, call: Call) -> web.StreamResponse:
        """NetworkList: 200; 400 unknown filter. Containers are in the list before API 1.28 only."""
        filters = call.filters()
        views = [*self._networks.list(filters)]
        if call.version < (1, 28):
            views = [self._networks.inspect(view.id) for view in views]
        wide = await self._wide(filters) if filters.matches("scope", "swarm", "global") else []
        known = {network["Id"] for network in wide}
        return json_answer([*wide, *(to_api(view) for view in views if view.id not in known)])

    async def inspect(self, call: Call) -> web.StreamResponse:
        """NetworkInspect: 200; 404. Of a network of the cluster, the containers are this node's."""
        ref, scope = call.params["id"], call.text("scope")
        try:
            view = self._networks.inspect(ref)
        except NotFound:
            if scope == "local" or not self._is_manager:
                raise
            return await self._pass_on(call, "GET", f"/networks/{quote(ref, safe='')}")
        if scope not in ("", view.scope):
            if scope == "local" or not self._is_manager:
                raise NotFound("network", ref, f"network {ref} not found")
            return await self._pass_on(call, "GET", f"/networks/{quote(ref, safe='')}")
        answer = to_api(view)
        if view.scope == "swarm" and call.flag("verbose") and self._cluster is not None and self._is_manager:
            _, told = await self._cluster.ask("GET", f"/networks/{view.id}?verbose=true&scope=swarm")
            answer |= {key: told[key] for key in ("Services", "Peers") if key in told}
        return json_answer(answer)

    async def create(self, call: Call) -> web.StreamResponse:
        """NetworkCreate: 201; 400, 403 predefined name or overlapping pool, 404 unknown driver, 409 name taken."""
        request = await call.json(NetworkCreate)
        if request.driver == "overlay" or request.scope in ("swarm", "global"):
            return await self._pass_on(call, "POST", "/networks/create", msgspec.json.encode(request))
        network = await self._networks.create(request)
        return json_answer({"Id": network.id, "Warning": ""}, 201)

    async def remove(self, call: Call) -> web.StreamResponse:
        """NetworkDelete: 204; 403 predefined or in use, 404."""
        ref = call.params["id"]
        try:
            wide = self._networks.get(ref).scope == "swarm"
        except NotFound:
            if not self._is_manager:
                raise
            wide = True
        if wide:
            return await self._pass_on(call, "DELETE", f"/networks/{quote(ref, safe='')}")
        await self._networks.remove(ref)
        return web.Response(status=204)

    async def prune(self, call: Call) -> web.StreamResponse:
        """NetworkPrune: 200; 400 unknown filter. keep: names that stay (the manager's: in use on other nodes)."""
        removed = [*await self._networks.prune(call.filters(), call.texts("keep"))]
        if self._cluster is not None and self._is_manager and call.text("scope") != "local":
            query = urlencode({"scope": "swarm", "filters": call.text("filters")})
            _, told = await self._cluster.ask("POST", f"/networks/prune?{query}")
            removed = [*(told.get("NetworksDeleted") or ()), *removed]
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return json_answer({"NetworksDeleted": removed or None})

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


    # The cluster's networks

    @property
    def _is_manager(self) -> bool:
        return self._cluster is not None and self._cluster.is_manager

    async def _wide(self, filters: Filters) -> list[dict[str, Any]]:
        """Those that the manager knows; none if it does not answer, since this node's own are worth showing."""
        if self._cluster is None or not self._is_manager:
            return []
        asked = filters.having("scope", "swarm").encoded()
        try:
            status, told = await self._cluster.ask("GET", f"/networks?{urlencode({'filters': asked})}")
        except Unavailable as err:
            log.warning("the cluster's networks are left out of a list", reason=str(err))
            return []
        return told if status < 400 else []

    async def _pass_on(self, call: Call, method: str, path: str, body: bytes | None = None) -> web.Response:
        """The manager's answer. NotAManager on a host without one."""
        if self._cluster is None or not self._is_manager:
            raise NotAManager
        query = {"scope": "swarm"} | ({"verbose": "true"} if call.flag("verbose") else {})
        status, told = await self._cluster.ask(method, f"{path}?{urlencode(query)}", body)
        return web.Response(status=status) if told is None else json_answer(told, status)


def _need_container(ref: str) -> None:
    if not ref:
        raise InvalidArgument("invalid container name or ID: value is empty")
