"""/containers and /exec of the whole cluster: placed by the manager, then passed on to the node that has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any, Protocol
from urllib.parse import quote

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import NO_BODY, Call, Route, convert
from swarmlet.engine_api.spelling import spelled
from swarmlet.errors import InvalidArgument, NameTaken, NotFound
from swarmlet.model.container import ContainerCreate
from swarmlet.model.node import Node
from swarmlet.model.times import parse_rfc3339
from swarmlet_manager.fleet.client import Fleet, NodeError, agreed, first_found
from swarmlet_manager.fleet.forward import forward, forward_stream
from swarmlet_manager.fleet.memory import Recent
from swarmlet_manager.fleet.moments import with_moments
from swarmlet_manager.fleet.place import candidates, needs_of, split_constraints, where_companions_are, with_most


class Inventory(Protocol):
    """What agents say of their containers (kept in the leader's memory)."""

    def locate_container(self, ref: str) -> str:
        """The node id of a name, id or id prefix. NotFound, Conflict."""
        ...

    def name_holder(self, name: str) -> tuple[str, str] | None:
        """(node id, container id) of the container of exactly this name."""
        ...

    def container_count(self, node_id: str) -> int: ...


class ContainerRoutes:
    def __init__(self, fleet: Fleet, inventory: Inventory) -> None:
        self._fleet = fleet
        self._inventory = inventory
        self._recent = Recent()
        self._execs = Recent()

    def routes(self) -> list[Route]:
        one = "/containers/{id:path}"  # "parent/alias", too
        streams = [Route("POST", f"{one}/attach", self.stream), Route("GET", f"{one}/attach/ws", self.stream)]
        plain = [
            Route(method, one + path, self.pass_on)
            for method, path in (
                ("GET", "/json"), ("GET", "/logs"), ("GET", "/stats"), ("GET", "/top"), ("GET", "/changes"),
                ("GET", "/export"), ("GET", "/archive"), ("PUT", "/archive"), ("HEAD", "/archive"),
                ("POST", "/start"), ("POST", "/stop"), ("POST", "/restart"), ("POST", "/pause"),
                ("POST", "/unpause"), ("POST", "/wait"), ("POST", "/resize"), ("POST", "/update"), ("DELETE", ""),
            )
        ]
        return [
            Route("GET", "/containers/json", self.index),
            Route("POST", "/containers/create", self.create),
            Route("POST", "/containers/prune", self.prune),
            Route("POST", f"{one}/rename", self.rename),
            Route("POST", f"{one}/kill", self.kill),
            Route("POST", f"{one}/exec", self.exec_create),
            *streams,
            *plain,
            Route("POST", "/commit", self.commit),
            Route("POST", "/exec/{id}/start", self.exec_start),
            Route("POST", "/exec/{id}/resize", self.exec_pass_on),
            Route("GET", "/exec/{id}/json", self.exec_pass_on),
        ]

    async def index(self, call: Call) -> web.Response:
        """Containers of every ready node, newest first, each with its Node."""
        limit = call.number("limit") or 0
        path = await with_moments(call, self._created_at)
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", path)
        found: list[dict[str, Any]] = [
            container | {"Node": node_of(answer.node)} for answer in agreed(answers) for container in answer.body
        ]
        found.sort(key=lambda container: container.get("Created", 0), reverse=True)
        return json_answer(found[:limit] if limit > 0 else found)

    async def create(self, call: Call) -> web.Response:
        """Placed on the best fitting node that has the image; 404 if no node has it (the client then pulls)."""
        # Nulls go on to the node: in PortBindings and EndpointsConfig they mean something.
        given = await call.raw_json(keep_nulls=True)
        if given is None:
            raise InvalidArgument(NO_BODY)
        given = convert(given, dict[str, Any])
        expressions, body = split_constraints(spelled(given, ContainerCreate))
        name = call.text("name")
        self._check_free(name)
        nodes = await self._nodes_for(body, expressions)
        node, answer = await self._create_on(nodes, call, body)
        self._recent.note(answer["Id"], node.id)
        if name:
            self._recent.note(name.removeprefix("/"), node.id)
        return json_answer(answer, status=201)

    async def _nodes_for(self, body: dict[str, Any], expressions: list[str]) -> list[Node]:
        """The nodes a container may be created on, best first."""
        needs = needs_of(body)
        holders: dict[str, Node] = {}
        for ref in needs.companions:
            # One that no node has is the engine's to refuse, in the words for what was to be shared.
            with contextlib.suppress(NotFound):
                holders[ref] = await self._locate(ref)
        companion = where_companions_are(holders)
        # Where a container is, one that belongs to it may go, although the node takes no other new work.
        open_nodes = self._fleet.schedulable() if companion is None else [companion]
        nodes = candidates(open_nodes, expressions, self._inventory.container_count)
        held: Counter[str] = Counter()
        paths = [f"/volumes/{quote(name, safe='')}" for name in needs.volumes] if len(nodes) > 1 else []
        for answers in await asyncio.gather(*(self._fleet.ask_all(nodes, "GET", path) for path in paths)):
            held.update(answer.node.id for answer in answers if answer.status < 400)
        return with_most(nodes, held)

    async def _create_on(self, nodes: list[Node], call: Call, body: dict[str, Any]) -> tuple[Node, dict[str, Any]]:
        path = call.request.rel_url.raw_path_qs
        try:
            return nodes[0], await self._fleet.call(nodes[0], "POST", path, json=body)
        except NodeError as err:
            if err.status != 404 or len(nodes) == 1:
                raise
            missing = err
        # The first choice lacks the image (or a network): a node that has the image is better than a pull.
        image = quote(str(body.get("Image", "")), safe="/:@")
        answers = await self._fleet.ask_all(nodes[1:], "GET", f"/images/{image}/json")
        having = {answer.node.id for answer in answers if answer.status < 400}
        for node in nodes[1:]:
            if node.id in having:
                return node, await self._fleet.call(node, "POST", path, json=body)
        raise missing

    async def pass_on(self, call: Call) -> web.StreamResponse:
        node = await self._locate(call.params["id"])
        answer = await forward(call, self._fleet, node)
        if call.request.method == "DELETE" and answer.status < 300:
            self._recent.forget(call.params["id"].removeprefix("/"))
        return answer

    async def kill(self, call: Call) -> web.StreamResponse:
        """As an engine says it: only of a kill does the answer to an unknown name begin with what was tried."""
        ref = call.params["id"]
        try:
            node = await self._locate(ref)
        except NotFound as err:
            raise NotFound("container", ref, f"cannot kill container: {ref}: {err}") from err
        return await forward(call, self._fleet, node)

    async def stream(self, call: Call) -> web.StreamResponse:
        return await forward_stream(call, self._fleet, await self._locate(call.params["id"]))

    async def rename(self, call: Call) -> web.StreamResponse:
        name = call.text("name")
        node = await self._locate(call.params["id"])
        self._check_free(name, but_on=node.id, doing="Error when allocating new name")
        answer = await forward(call, self._fleet, node)
        if answer.status < 300:
            self._recent.forget(call.params["id"].removeprefix("/"))
            self._recent.note(name.removeprefix("/"), node.id)
        return answer

    async def commit(self, call: Call) -> web.StreamResponse:
        return await forward(call, self._fleet, await self._locate(call.text("container")))

    async def prune(self, call: Call) -> web.Response:
        path = call.request.rel_url.raw_path_qs
        answers = agreed(await self._fleet.ask_all(self._fleet.ready(), "POST", path, timeout_s=120))
        deleted = [ident for answer in answers for ident in answer.body["ContainersDeleted"] or []]
        return json_answer(
            {"ContainersDeleted": deleted or None, "SpaceReclaimed": sum(a.body["SpaceReclaimed"] for a in answers)}
        )

    async def exec_create(self, call: Call) -> web.Response:
        node = await self._locate(call.params["id"])
        path = call.request.rel_url.raw_path_qs
        answer = await self._fleet.call(node, "POST", path, json=await call.raw_json() or {})
        self._execs.note(answer["Id"], node.id)
        return json_answer(answer, status=201)

    async def exec_start(self, call: Call) -> web.StreamResponse:
        return await forward_stream(call, self._fleet, await self._locate_exec(call.params["id"]))

    async def exec_pass_on(self, call: Call) -> web.StreamResponse:
        return await forward(call, self._fleet, await self._locate_exec(call.params["id"]))

    async def _locate_exec(self, ident: str) -> Node:
        if (node_id := self._execs.find(ident)) is not None:
            return self._fleet.node(node_id)
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/exec/{quote(ident, safe='')}/json")
        node = first_found(answers, "exec instance", ident).node
        self._execs.note(ident, node.id)
        return node

    async def _locate(self, ref: str) -> Node:
        """The node that has a container: by what was seen here, by the agents' inventories, by asking every node."""
        ref = ref.removeprefix("/")
        for find in (self._inventory.locate_container, self._recent_node):
            try:
                return self._fleet.node(find(ref.partition("/")[0]))  # "parent/alias" of a link: where the parent is
            except NotFound:
                continue
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/containers/{quote(ref, safe='')}/json")
        return first_found(answers, "container", ref).node

    async def _created_at(self, ref: str) -> int:
        """When a container was created, in ns."""
        node = await self._locate(ref)
        found = await self._fleet.call(node, "GET", f"/containers/{quote(ref.removeprefix('/'), safe='')}/json")
        return parse_rfc3339(found["Created"])

    def _check_free(self, name: str, *, but_on: str = "", doing: str = "") -> None:
        """NameTaken if a container has that name, other than on a node that will say so itself, or is away."""
        name = name.removeprefix("/")
        holder = self._inventory.name_holder(name) if name else None
        if holder is not None and holder[0] != but_on and self._is_there(holder[0]):
            raise NameTaken(name, holder[1], doing)

    def _is_there(self, node_id: str) -> bool:
        return any(node.id == node_id for node in self._fleet.ready())

    def _recent_node(self, ref: str) -> str:
        found = self._recent.find(ref)
        if found is None:
            raise NotFound("container", ref)
        return found


def node_of(node: Node) -> dict[str, Any]:
    """Where a container lives, as classic Swarm showed it."""
    return {"ID": node.id, "Name": node.description.hostname, "IP": node.addr, "Addr": f"{node.addr}:{node.port}"}


