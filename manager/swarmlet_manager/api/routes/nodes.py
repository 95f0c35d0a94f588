"""/nodes: list, inspect, update, remove."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route, convert
from swarmlet.errors import InvalidArgument
from swarmlet.model.node import Node, NodeSpec
from swarmlet.model.states import Availability, Role
from swarmlet_manager.api import encode
from swarmlet_manager.api.backend import Commands, Place


class NodeRoutes:
    def __init__(self, commands: Commands, place: Place) -> None:
        self._commands = commands
        self._place = place

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/nodes", self.index),
            Route("GET", "/nodes/{id}", self.inspect),
            Route("POST", "/nodes/{id}/update", self.update),
            Route("DELETE", "/nodes/{id}", self.remove),
        ]

    async def index(self, call: Call) -> web.Response:
        """NodeList: filters id, label, node.label, engine.label, membership, name, role."""
        filters = call.filters()
        filters.check("id", "label", "node.label", "engine.label", "membership", "name", "role")
        for key, known in (("role", ("worker", "manager")), ("membership", ("accepted", "pending"))):
            for value in filters.get(key):
                if value not in known:
                    raise InvalidArgument(f"Invalid {key} filter: '{value}'")
        self._commands.cluster()

        def wanted(node: Node) -> bool:
            return (
                filters.matches_prefix("id", node.id)
                and filters.matches_part("name", node.description.hostname)
                and filters.matches("role", str(node.spec.role))
                and filters.matches("membership", "accepted")
                and filters.matches_labels(node.description.engine.labels, "label")
                and filters.matches_labels(node.description.engine.labels, "engine.label")
                and filters.matches_labels(node.spec.labels, "node.label")
            )

        nodes = sorted(filter(wanted, self._commands.nodes()), key=lambda node: (node.description.hostname, node.id))
        return json_answer([encode.node(node, leader_id=self._place.leader_node_id) for node in nodes])

    async def inspect(self, call: Call) -> web.Response:
        node = self._commands.node(call.params["id"])
        return json_answer(encode.node(node, leader_id=self._place.leader_node_id))

    async def update(self, call: Call) -> web.Response:
        """NodeUpdate: the whole spec, at the version it was read."""
        version, body = version_of(call, "node"), await call.raw_json()
        await self._commands.update_node(call.params["id"], version, _spec_of(body))
        return web.Response()

    async def remove(self, call: Call) -> web.Response:
        await self._commands.remove_node(call.params["id"], force=call.flag("force"))
        return web.Response()


def _spec_of(body: Any) -> NodeSpec:
    """InvalidArgument, in dockerd's words for a role or an availability that is none, or is not said."""
    said = {key.casefold(): value for key, value in body.items()} if isinstance(body, dict) else {}
    for name, known in (("Role", Role), ("Availability", Availability)):
        value = said.get(name.casefold(), "")
        if value not in [str(one) for one in known]:
            raise InvalidArgument(f'invalid {name}: "{value}"')
    spec: NodeSpec = convert(body, NodeSpec)
    return spec


def version_of(call: Call, kind: str) -> int:
    """The `version` parameter of an update. InvalidArgument if it is missing or no number.

    kind: of what, as dockerd says it.
    """
    text = call.text("version")
    if not text.isdigit():
        raise InvalidArgument(f"invalid {kind} version '{text}': it must be the object's Version.Index")
    return int(text)
