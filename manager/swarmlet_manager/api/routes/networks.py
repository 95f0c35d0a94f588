"""/networks of the whole cluster: those that span nodes, from the state, together with those local to each node.

A node's engine passes what concerns networks of the cluster on to here with scope=swarm, and is asked from here with
scope=local: so neither ever asks the other back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.filters import Filters, until_of
from swarmlet.engine_api.router import Call, Handler, Route, convert
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.model.network import Network, NetworkCreate
from swarmlet_manager.api import encode_network
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.decide.networks import INGRESS, users_of

LIST_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
#: Of those that each node has of its own: services may be on these.
PREDEFINED = ("bridge", "host")
PRUNE_FILTERS = ("until", "label", "label!")


class LocalNetworks(Protocol):
    """Networks of single nodes (`NodeNetworks`), as this asks for them."""

    async def local_networks(self, call: Call) -> list[dict[str, Any]]: ...

    async def create_network(self, call: Call, body: Any) -> web.Response: ...

    async def network(self, call: Call) -> web.Response: ...

    async def remove_network(self, call: Call) -> web.Response: ...

    async def connect(self, call: Call) -> web.Response: ...

    async def connect_to(self, name: str, call: Call) -> web.Response: ...

    async def prune_local(self, call: Call) -> list[str]: ...


class NetworkRoutes:
    def __init__(self, commands: Commands, local: LocalNetworks, *, now: Callable[[], int] = time.time_ns) -> None:
        self._commands = commands
        self._local = local
        self._now = now

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/networks", self.index),
            Route("GET", "/networks/", self.index),  # dockerd has both
            Route("POST", "/networks/create", self.create),
            Route("POST", "/networks/prune", self.prune),
            Route("GET", "/networks/{id}", self._either(self.inspect, self._local.network)),
            Route("POST", "/networks/{id}/connect", self._either(self.connect, self._local.connect)),
            Route("POST", "/networks/{id}/disconnect", self._either(self.connect, self._local.connect)),
            Route("DELETE", "/networks/{id}", self.remove_any),
        ]

    async def index(self, call: Call) -> web.StreamResponse:
        """NetworkList: 200; 400 unknown filter."""
        filters = call.filters()
        filters.check(*LIST_FILTERS)
        own = [
            encode_network.network(network)
            for network in sorted(self._networks(), key=lambda network: -network.created_at)
            if selects(filters, network, in_use=bool(users_of(self._commands.state, network)))
        ]
        local = await self._local.local_networks(call) if filters.matches("scope", "local") else []
        return json_answer([*own, *local])

    async def create(self, call: Call) -> web.StreamResponse:
        """NetworkCreate: 201; 400, 403 overlapping pool, 409 name taken."""
        body = await call.raw_json()
        if not isinstance(body, dict) or not (body.get("Driver") == "overlay" or body.get("Scope") == "swarm"):
            return await self._local.create_network(call, body)
        network = await self._commands.create_network(convert(body, NetworkCreate))
        return json_answer({"Id": network.id, "Warning": ""}, status=201)

    async def inspect(self, call: Call) -> web.StreamResponse:
        """NetworkInspect: 200; 404. verbose adds services with their tasks, and the nodes that take part."""
        network = self._commands.network(call.params["id"])
        state = self._commands.state
        answer = encode_network.network(network) | {"Containers": encode_network.containers(state, network)}
        if call.flag("verbose"):
            answer |= {
                "Services": encode_network.services(state, network), "Peers": encode_network.peers(state, network),
            }
        return json_answer(answer)

    async def remove_any(self, call: Call) -> web.StreamResponse:
        """The network of the routing mesh can be removed for good before it is there."""
        if call.params["id"] == INGRESS and call.text("scope") != "local" and self._commands.ingress_is_due:
            return await self.remove(call)
        return await self._either(self.remove, self._local.remove_network)(call)

    async def remove(self, call: Call) -> web.StreamResponse:
        """NetworkDelete: 204; 400 in use, 404."""
        await self._commands.remove_network(call.params["id"])
        return web.Response(status=204)

    async def connect(self, call: Call) -> web.StreamResponse:
        """NetworkConnect, NetworkDisconnect: on the node that has the container, whose agent asks for the address."""
        return await self._local.connect_to(self._commands.network(call.params["id"]).id, call)

    async def prune(self, call: Call) -> web.StreamResponse:
        """NetworkPrune: unused networks of the cluster and of every node."""
        filters = call.filters()
        filters.check(*PRUNE_FILTERS)
        removed = []
        for network in [network for network in self._networks() if self._prunes(filters, network)]:
            try:
                await self._commands.remove_network(network.id)
            except (InvalidArgument, NotFound):  # used, or gone, by now
                continue
            removed.append(network.name)
        local = [] if call.text("scope") == "swarm" else await self._local.prune_local(call)
        return json_answer({"NetworksDeleted": [*removed, *local]})

    def _either(self, cluster: Handler, local: Handler) -> Handler:
        """One handler for networks of the cluster, the other for all the rest; `scope` leaves out one of them."""

        async def handle(call: Call) -> web.StreamResponse:
            scope, ref = call.text("scope"), call.params["id"]
            if scope != "local":
                try:
                    self._commands.network(ref)
                except NotFound:
                    if scope == "swarm" and ref in PREDEFINED and call.request.method == "GET":
                        return json_answer(encode_network.predefined(ref, self._commands.cluster().created_at))
                    if scope in ("swarm", "global"):
                        raise
                else:
                    return await cluster(call)
            return await local(call)

        return handle

    def _networks(self) -> list[Network]:
        return [network for network in self._commands.state.networks.values() if not network.pending_delete]

    def _prunes(self, filters: Filters, network: Network) -> bool:
        until = until_of(filters, self._now())
        if until is not None and network.created_at > until:
            return False
        labels = network.spec.labels
        unwanted = any(
            name in labels and (not equals or labels[name] == value)
            for name, equals, value in (text.partition("=") for text in filters.get("label!"))
        )
        in_use = bool(users_of(self._commands.state, network))
        return filters.matches_labels(labels) and not unwanted and not in_use and not network.spec.ingress


def selects(filters: Filters, network: Network, *, in_use: bool) -> bool:
    """True if a list with these filters shows the network. InvalidArgument for a bad value."""
    for kind in filters.get("type"):
        if kind not in ("custom", "builtin"):
            raise InvalidArgument(f"invalid filter 'type={kind}'")
    dangling = filters.flag("dangling")
    return (
        filters.matches("driver", network.spec.driver)
        and filters.matches("scope", "swarm", "global")
        and filters.matches_pattern("id", network.id)
        and filters.matches_pattern("name", network.name)
        and filters.matches("type", "custom")
        and filters.matches_labels(network.spec.labels)
        and (dangling is None or dangling is not in_use)
    )
