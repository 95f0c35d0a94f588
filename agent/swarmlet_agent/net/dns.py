"""The embedded DNS server: 127.0.0.11 in every container on a user-defined network.

The socket a query arrives on tells who asks, so answers are scoped to the asker's networks. Names of ours are
answered at once from memory; everything else goes to the host's resolvers (from the host's namespace) or to the
container's own --dns servers (from the container's namespace, so that they see what the container sees).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.log import get_logger
from swarmlet_agent.net import dns_codec
from swarmlet_agent.net.dns_answers import Answers, Asker
from swarmlet_agent.net.dns_sockets import DnsSockets
from swarmlet_agent.net.names import NameTable
from swarmlet_agent.net.plan_files import ResolvConf, parse_resolv_conf

log = get_logger(__name__)

#: Queries answered per wake-up before other work of the loop gets its turn.
_BURST = 32
#: Forwarded queries under way; more are answered SERVFAIL, so a container cannot pile up sockets here.
MAX_FORWARDS_PER_CONTAINER = 64
MAX_FORWARDS = 512
MAX_TCP_PER_CONTAINER = 8
UPSTREAM_TIMEOUT_S = 2.0
UPSTREAM_ROUNDS = 2
TCP_IDLE_S = 10.0
DNS_PORT = 53

#: (container id, address family, socket type).
OpenSocket = Callable[[str, int, int], Awaitable[socket.socket]]


@dataclass(slots=True)
class _Client:
    asker: Asker
    answers: Answers
    sockets: DnsSockets
    forwards: int = 0
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class HostResolvers:
    """The host's resolver addresses; the file is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._conf = ResolvConf()

    def conf(self) -> ResolvConf:
        """One stat, and one small read after a change. No file: no resolvers."""
        try:
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_ino) != self._seen:
                self._conf = parse_resolv_conf(self._path.read_text(encoding="utf-8", errors="replace"))
                self._seen = (stat.st_mtime_ns, stat.st_ino)
        except OSError as err:
            if self._seen is not None:
                log.warning("the host's resolver file cannot be read", path=str(self._path), reason=str(err))
            self._seen, self._conf = None, ResolvConf()
        return self._conf


class EmbeddedDns:
    """Serves the sockets it is given, on the running event loop. `open_socket` opens one inside a container."""

    def __init__(self, names: NameTable, resolvers: HostResolvers, open_socket: OpenSocket) -> None:
        self._names = names
        self._resolvers = resolvers
        self._open_inside = open_socket
        self._clients: dict[str, _Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._forwards = 0

    def serve(self, asker: Asker, sockets: DnsSockets) -> None:
        """Begin, or go on with new sockets; the sockets are ours to close from here on."""
        self.stop(asker.container_id)
        client = _Client(asker, Answers(self._names, asker), sockets)
        self._clients[asker.container_id] = client
        loop = asyncio.get_running_loop()
        loop.add_reader(sockets.udp.fileno(), self._on_udp, client)
        loop.add_reader(sockets.tcp.fileno(), self._on_tcp, client)

    def update(self, asker: Asker) -> None:
        """The container's networks have changed. Not served is fine."""
        if (client := self._clients.get(asker.container_id)) is not None:
            client.asker, client.answers = asker, Answers(self._names, asker)

    def stop(self, container_id: str) -> None:
        """Close a container's sockets (they hold its namespace). Not served is fine."""
        client = self._clients.pop(container_id, None)
        if client is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(client.sockets.udp.fileno())
            loop.remove_reader(client.sockets.tcp.fileno())
            client.sockets.close()
            for task in client.tasks:  # connections and sockets inside the namespace would keep it alive
                task.cancel()

    async def close(self) -> None:
        for container_id in list(self._clients):
            self.stop(container_id)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Answers

    def _on_udp(self, client: _Client) -> None:
        channel, answers = client.sockets.udp, client.answers
        for _ in range(_BURST):
            try:
                data, source = channel.recvfrom(4096)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as err:  # an ICMP error of an earlier answer; the socket works on
                log.debug("DNS socket error", container_id=client.asker.container_id, reason=str(err))
                return
            answer = answers.ready(data) or answers.answer(data, udp=True)
            if answer is not None:
                _send(client, answer, source)
            elif self._may_forward(client):
                self._spawn(client, self._forward_udp(client, data, source))
            else:
                _send(client, _refuse(data), source)

    # Forwarding

    def _may_forward(self, client: _Client) -> bool:
        return client.forwards < MAX_FORWARDS_PER_CONTAINER and self._forwards < MAX_FORWARDS

    async def _forward_udp(self, client: _Client, data: bytes, source: tuple[str, int]) -> None:
        _send(client, await self._forward(client, data, socket.SOCK_DGRAM), source)

    async def _forward(self, client: _Client, data: bytes, kind: int) -> bytes:
        """Ask each server in turn, twice round; SERVFAIL if none answers."""
        servers = client.asker.servers or self._resolvers.conf().servers
        client.forwards += 1
        self._forwards += 1
        try:
            for server in list(servers) * UPSTREAM_ROUNDS:
                try:
                    async with asyncio.timeout(UPSTREAM_TIMEOUT_S):
                        return await self._ask(client, server, data, kind)
                except (OSError, TimeoutError) as err:
                    log.debug("DNS server did not answer", server=server, reason=str(err))
            return _refuse(data)
        finally:
            client.forwards -= 1
            self._forwards -= 1

    async def _ask(self, client: _Client, server: str, data: bytes, kind: int) -> bytes:
        """One query to one server, from a fresh port and with a fresh id, which are hard to guess from outside."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        if client.asker.servers:
            channel = await self._open_inside(client.asker.container_id, family, kind)
        else:
            channel = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        with channel:
            await loop.sock_connect(channel, (server, DNS_PORT))
            ident = secrets.token_bytes(2)
            asked = ident + data[2:]
            if kind == socket.SOCK_STREAM:
                await loop.sock_sendall(channel, len(asked).to_bytes(2, "big") + asked)
                size = int.from_bytes(await _exactly(loop, channel, 2), "big")
                return data[:2] + (await _exactly(loop, channel, size))[2:]
            await loop.sock_sendall(channel, asked)
            while True:  # bounded by the caller's timeout: what does not fit is someone else's or a forgery
                reply = await loop.sock_recv(channel, 65535)
                if reply[:2] == ident and len(reply) >= 12 and reply[2] & 0x80:
                    return data[:2] + reply[2:]

    # TCP

    def _on_tcp(self, client: _Client) -> None:
        try:
            connection, _ = client.sockets.tcp.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as err:
            log.warning("DNS connection not accepted", container_id=client.asker.container_id, reason=str(err))
            return
        if client.connections >= MAX_TCP_PER_CONTAINER:
            connection.close()
            return
        connection.setblocking(False)
        client.connections += 1
        self._spawn(client, self._serve_tcp(client, connection))

    async def _serve_tcp(self, client: _Client, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            with connection, contextlib.suppress(OSError, TimeoutError):
                while True:
                    async with asyncio.timeout(TCP_IDLE_S):
                        size = int.from_bytes(await _exactly(loop, connection, 2), "big")
                        data = await _exactly(loop, connection, size)
                    answer = client.answers.answer(data, udp=False)
                    if answer is None:
                        may = self._may_forward(client)
                        answer = await self._forward(client, data, socket.SOCK_STREAM) if may else _refuse(data)
                    async with asyncio.timeout(TCP_IDLE_S):
                        await loop.sock_sendall(connection, len(answer).to_bytes(2, "big") + answer)
        finally:
            client.connections -= 1

    def _spawn(self, client: _Client, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:  # one query's trouble is that query's alone
                log.exception("DNS query failed", container_id=client.asker.container_id)

        task = asyncio.get_running_loop().create_task(run(), name="dns-query")
        for group in (self._tasks, client.tasks):
            group.add(task)
            task.add_done_callback(group.discard)


def _send(client: _Client, answer: bytes, source: tuple[str, int]) -> None:
    try:
        client.sockets.udp.sendto(answer, source)
    except OSError:  # a full or closed socket: the asker repeats its question, as with any lost datagram
        return


def _refuse(data: bytes) -> bytes:
    try:
        return dns_codec.answer(dns_codec.parse(data), (), code=dns_codec.SERVFAIL)
    except dns_codec.Malformed:
        return dns_codec.failure(data, dns_codec.SERVFAIL)


async def _exactly(loop: asyncio.AbstractEventLoop, channel: socket.socket, size: int) -> bytes:
    """ConnectionResetError if the other side ends before `size` bytes."""
    parts: Sequence[bytes] = ()
    while (missing := size - sum(map(len, parts))) > 0:
        part = await loop.sock_recv(channel, missing)
        if not part:
            raise ConnectionResetError("connection ended")
        parts = (*parts, part)
    return b"".join(parts)
