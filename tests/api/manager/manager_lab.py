"""The cluster view on a unix socket: real routes and commands over an in-memory etcd, on engines that are scripts.

No scheduler runs: tasks and nodes are what a test puts there. Each fake node is a real HTTP server on loopback, with
the agent's own tunnel to a unix socket whose answers a test writes byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from fakes.control_world import service_spec, until

from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet.errors import NotFound
from swarmlet.model.common import Platform
from swarmlet.model.node import EngineDescription, Node, NodeDescription, NodeResources, NodeSpec
from swarmlet.model.service import Service
from swarmlet.model.states import Availability, NodeState, Role, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_agent.api.tunnel import TunnelRoutes
from swarmlet_manager.api.app import cluster_routes
from swarmlet_manager.api.passing import Passing
from swarmlet_manager.ca.authority import Authority
from swarmlet_manager.ca.vault import Vault
from swarmlet_manager.control.commands import Control
from swarmlet_manager.fleet.client import Fleet
from swarmlet_manager.fleet.leader import LeaderLine
from swarmlet_manager.state import Put
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.memory import MemoryClient, MemoryEtcd
from swarmlet_manager.store.store import Store

API = "http://manager/v1.50"
Reply = Callable[[Call], Awaitable[web.StreamResponse]]
Dialogue = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeNode:
    """A node's engine: answers by method and path template, all of them given by the test."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.engine_socket = folder / f"{name}.sock"
        self._replies: dict[tuple[str, str], Reply] = {}
        self._dialogue: Dialogue | None = None
        self._server: Server | None = None
        self._raw: asyncio.Server | None = None
        self.port = 0

    def on(self, method: str, template: str, reply: Reply) -> None:
        self._replies[method, template] = reply

    def says(self, method: str, template: str, body: Any, status: int = 200) -> None:
        """A fixed JSON answer; the request's body is kept."""

        async def reply(call: Call) -> web.StreamResponse:
            self.bodies.append(await call.request.read())
            return web.json_response(body, status=status)

        self.on(method, template, reply)

    def streams(self, method: str, template: str, *pieces: bytes, status: int = 200, kind: str = "") -> None:
        """A chunked answer."""

        async def reply(call: Call) -> web.StreamResponse:
            response = web.StreamResponse(status=status, headers={"Content-Type": kind or "application/json"})
            response.enable_chunked_encoding()
            await response.prepare(call.request)
            for piece in pieces:
                await response.write(piece)
            await response.write_eof()
            return response

        self.on(method, template, reply)

    def talks(self, dialogue: Dialogue) -> None:
        """What happens on a connection through the tunnel."""
        self._dialogue = dialogue

    async def start(self) -> None:
        async def noted(call: Call, reply: Reply) -> web.StreamResponse:
            self.asked.append(f"{call.request.method} {call.request.rel_url.raw_path_qs}")
            return await reply(call)

        def route(method: str, template: str, reply: Reply) -> Route:
            return Route(method, template, lambda call: noted(call, reply))

        routes = [route(method, template, reply) for (method, template), reply in self._replies.items()]
        self._server = Server([*routes, *TunnelRoutes(self.engine_socket).routes()])
        self.port = await self._server.listen_tcp("127.0.0.1", self.port, None)
        if self._dialogue is not None:
            self._raw = await asyncio.start_unix_server(self._talk, str(self.engine_socket))

    async def stop(self) -> None:
        if self._raw is not None:
            self._raw.close()
            await self._raw.wait_closed()
        if self._server is not None:
            await self._server.close()
        self._server = self._raw = None

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._dialogue is not None
        try:
            await self._dialogue(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Inventory:
    """What agents would have told of their containers."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        #: What nodes cannot publish of any service that publishes something.
        self.troubles: list[str] = []

    def locate_container(self, ref: str) -> str:
        if ref not in self.nodes:
            raise NotFound("container", ref)
        return self.nodes[ref]

    def name_holder(self, name: str) -> tuple[str, str] | None:
        return (self.nodes[name], f"{name}-id") if name in self.nodes else None

    async def port_troubles(self, service: Service) -> list[str]:
        return self.troubles

    def container_count(self, node_id: str) -> int:
        return self.counts.get(node_id, 0)


@dataclass
class Here:
    node_id: str = "node-1-id"
    leader_node_id: str = "node-1-id"


@dataclass
class Lab:
    """A manager under test."""

    folder: Path
    store: Store
    control: Control
    inventory: Inventory
    socket: Path
    client: aiohttp.ClientSession
    nodes: list[FakeNode] = field(default_factory=list)

    async def join(self, node: FakeNode, **changes: Any) -> Node:
        """Start a node and make it a ready member; `changes` of its record or spec."""
        await node.start()
        self.nodes.append(node)
        return await self.member(node.name, port=node.port, **changes)

    async def member(
        self, name: str, *, port: int = 1, state: NodeState = NodeState.READY, role: Role = Role.WORKER,
        availability: Availability = Availability.ACTIVE, labels: dict[str, str] | None = None,
        engine_labels: dict[str, str] | None = None, manager_addr: str = "",
    ) -> Node:  # fmt: skip
        record = Node(
            id=f"{name}-id", spec=NodeSpec(role=role, availability=availability, labels=labels or {}), state=state,
            description=NodeDescription(
                hostname=name, platform=Platform(os="linux", architecture="x86_64"),
                resources=NodeResources(nano_cpus=2_000_000_000, memory_bytes=4 << 30),
                engine=EngineDescription(engine_version="1", labels=engine_labels or {}),
            ),
            addr="127.0.0.1", port=port, manager_addr=manager_addr, created_at=1,
        )  # fmt: skip
        [stored] = await self.store.commit([Put(record)])
        assert isinstance(stored, Node)
        return stored

    async def service(self, name: str = "web", replicas: int = 1, **more: Any) -> str:
        """A service's id."""
        return (await self.control.create_service(service_spec(name, replicas, **more))).id

    async def task(
        self, ident: str, service: str, *, slot: int = 1, node: str = "node-1-id", container: str = "",
        state: TaskState = TaskState.RUNNING, desired: TaskState = TaskState.RUNNING,
    ) -> Task:  # fmt: skip
        record = self.control.service(service)
        task = Task(
            id=ident, service_id=record.id, service_name=record.spec.name, slot=slot, node_id=node,
            spec=record.spec.task_template, spec_version=record.spec_version, desired_state=desired,
            status=TaskStatus(state=state, container_id=container, at=1), created_at=slot,
        )  # fmt: skip
        [stored] = await self.store.commit([Put(task)])
        assert isinstance(stored, Task)
        return stored

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON of a good answer. Filters may be given as a dict."""
        if isinstance(query.get("filters"), dict):
            query["filters"] = json.dumps(query["filters"])
        async with self.client.get(API + path, params=query) as answer:
            assert answer.status == 200, (answer.status, await answer.text())
            return await answer.json(content_type=None)

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """(status, decoded body)."""
        if body is not None:
            more["json"] = body
        async with self.client.request(method, API + path, **more) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if text.startswith((b"{", b"[")) else text

    async def hijack(self, path: str, body: bytes = b"", *, upgrade: bool = True) -> Hijacked:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        head = f"POST /v1.50{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
        writer.write(head.encode() + b"\r\n" + body)
        return Hijacked(reader, writer)


@dataclass
class Hijacked:
    """A client that attaches."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> str:
        async with asyncio.timeout(30):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def read(self, count: int) -> bytes:
        async with asyncio.timeout(30):
            return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        async with asyncio.timeout(30):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def manager_lab(folder: Path) -> AsyncIterator[Lab]:
    etcd = MemoryEtcd()
    store = Store(MemoryClient(etcd), Candidate(id="m1", addr="127.0.0.1:1"))
    await store.start()
    authority = Authority(store)
    await store.wait_for_leadership()
    await authority.ensure_cluster()
    await until(lambda: store.state.cluster is not None)
    vault = Vault(store, folder)
    await vault.ensure()
    inventory = Inventory()
    control = Control(store, inventory, vault)
    fleet = Fleet(store.state, None)
    placed = Passing(store, LeaderLine(None, store.leadership_moved)).routes
    server = Server(placed(cluster_routes(control, fleet, inventory, Here(), store, inventory)))
    socket = folder / "manager.sock"
    await server.listen_unix(socket)
    client = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), auto_decompress=False)
    lab = Lab(folder, store, control, inventory, socket, client)
    try:
        yield lab
    finally:
        await client.close()
        await server.close()
        await fleet.close()
        for node in lab.nodes:
            await node.stop()
        await store.stop()
        etcd.close()


def fake_node(lab: Lab, number: int) -> FakeNode:
    """node-1, node-2 …, yet to join."""
    return FakeNode(f"node-{number}", lab.folder)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """(stream, text) of a multiplexed answer; the whole of it must be frames."""
    found = []
    while data:
        stream, size = struct.unpack(">BxxxL", data[:8])
        found.append((stream, data[8 : 8 + size]))
        assert len(found[-1][1]) == size
        data = data[8 + size :]
    return found
