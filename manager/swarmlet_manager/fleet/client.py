"""The nodes' engines, as a manager reaches them: HTTP over mTLS on each node's port, and tunnels for streams."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from swarmlet.errors import NotFound, SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.node import Node
from swarmlet.model.states import Availability, NodeState
from swarmlet.wire import tunnel
from swarmlet_manager.state import State

log = get_logger(__name__)

#: A node that does not accept a connection in this time is unreachable.
CONNECT_S = 3.0
#: A connection on which nothing came for SILENT_S is asked whether the node is there, again after ASK_AGAIN_S, and
#: given up after so many times.
SILENT_S, ASK_AGAIN_S, TIMES = 10, 5, 3
#: A list from every node waits this long for the slowest; those that are later are left out.
LIST_S = 10.0
#: At most so many nodes are asked at once.
PARALLEL = 64


class NodeError(SwarmletError):
    """A node's engine answered with an error: its status and message go to the client as they are."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """One node's answer to a question asked of many."""

    node: Node
    status: int
    body: Any


class Fleet:
    """Connections to every node. Made once; `close()` at the end."""

    def __init__(self, state: State, tls: ssl.SSLContext | None) -> None:
        self._state = state
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def ready(self) -> list[Node]:
        """Nodes that answer, by hostname."""
        nodes = (node for node in self._state.nodes.values() if node.state is NodeState.READY and node.port)
        return sorted(nodes, key=lambda node: (node.description.hostname, node.id))

    def schedulable(self) -> list[Node]:
        """Ready nodes that take new work."""
        return [node for node in self.ready() if node.spec.availability is Availability.ACTIVE]

    def node(self, node_id: str) -> Node:
        """Unavailable for a node that is gone or down."""
        node = self._state.nodes.get(node_id)
        if node is None or node.state is not NodeState.READY:
            name = node_id if node is None else node.description.hostname
            raise Unavailable(f"node {name} is not reachable: it is {node.state if node else 'not in the cluster'}")
        return node

    @asynccontextmanager
    async def request(
        self,
        node: Node,
        method: str,
        path_qs: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; the response is open inside the block. Unavailable if the node cannot be reached."""
        try:
            response = await self._client().request(
                method, self._url(node, path_qs), headers=headers, data=data, server_hostname=self._name(node),
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as err:
            raise unreachable(node, err) from err
        try:
            yield response
        finally:
            response.close()

    async def call(self, node: Node, method: str, path_qs: str, *, json: Any = None, timeout_s: float = LIST_S) -> Any:
        """One small question; its JSON answer. NodeError for a status of 400 or more, Unavailable."""
        data = None if json is None else msgspec.json.encode(json)
        headers = {"Content-Type": "application/json"} if data is not None else None
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.request(node, method, path_qs, headers=headers, data=data) as response,
            ):
                return decoded(response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError) as err:
            raise unreachable(node, err) from err

    async def ask_all(
        self, nodes: Iterable[Node], method: str, path_qs: str, *, json: Any = None, timeout_s: float = LIST_S
    ) -> list[Answer]:
        """The same question to many: what each answered, errors included; nodes that cannot be reached are left out."""
        gate = asyncio.Semaphore(PARALLEL)

        async def ask(node: Node) -> Answer | None:
            async with gate:
                try:
                    return Answer(node, 200, await self.call(node, method, path_qs, json=json, timeout_s=timeout_s))
                except NodeError as err:
                    return Answer(node, err.status, str(err))
                except Unavailable as err:
                    log.warning("node left out of an answer", node_id=node.id, reason=str(err))
                    return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(node), name=f"ask-{node.id}") for node in nodes]
        return [answer for answer in (task.result() for task in tasks) if answer is not None]

    @asynccontextmanager
    async def tunnel(self, node: Node) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A byte stream to the node's Engine API socket."""
        try:
            socket = await self._client().ws_connect(
                self._url(node, tunnel.PATH), max_msg_size=0, compress=0, server_hostname=self._name(node)
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as err:
            raise unreachable(node, err) from err
        try:
            yield socket
        finally:
            await socket.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._tls or False, limit=0, keepalive_timeout=30, socket_factory=_watched
            )
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _url(self, node: Node, path_qs: str) -> Any:
        from yarl import URL

        host = f"[{node.addr}]" if ":" in node.addr else node.addr
        return URL(f"{'https' if self._tls else 'http'}://{host}:{node.port}{path_qs}", encoded=True)

    def _name(self, node: Node) -> str | None:
        """The name the node's certificate must have: its id."""
        return node.id if self._tls else None


def _watched(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket whose other end is asked for a sign of life when it is silent: streams of a node that was lost break off
    rather than wait for ever for it."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASK_AGAIN_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TIMES)
    return made


def decoded(status: int, body: bytes) -> Any:
    """A node's answer as builtins; NodeError with its message for a status of 400 or more."""
    try:
        value = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        value = body.decode(errors="replace")
    if status >= 400:
        raise NodeError(status, value.get("message", str(value)) if isinstance(value, dict) else str(value))
    return value


def unreachable(node: Node, err: BaseException) -> Unavailable:
    reason = "no answer in time" if isinstance(err, TimeoutError) else str(err) or type(err).__name__
    return Unavailable(f"node {node.description.hostname} ({node.addr}) is not reachable: {reason}")


def agreed(answers: Iterable[Answer]) -> list[Answer]:
    """Those that are no refusals. NodeError if the question itself is refused (400), or if every node refuses."""
    given = list(answers)
    good = [answer for answer in given if answer.status < 400]
    for answer in given:
        if answer.status == 400 or (answer.status > 400 and not good):
            raise NodeError(answer.status, answer.body)
    return good


def first_found(answers: Iterable[Answer], kind: str, ref: str) -> Answer:
    """The first good answer; else the refusal that says most: of a node that has it and refuses for another reason,
    then of one that lacks something else, then that none has it (NotFound)."""
    refusals = []
    for answer in answers:
        if answer.status < 400:
            return answer
        refusals.append(answer)
    for answer in refusals:
        if answer.status != 404:
            raise NodeError(answer.status, answer.body)
    texts = [str(answer.body) for answer in refusals]
    telling = [text for text in texts if f"no such {kind}" not in text.lower()]
    raise NotFound(kind, ref, next(iter(telling or texts), None))
