"""The agent's line to the cluster: dials a manager, keeps the session alive, dials again when it breaks.

What the manager orders goes to the task worker; what the worker sees goes back, again and again until it is
acknowledged. While no manager answers, everything that runs goes on running.

Orders carry (term, seq). The highest term ever seen is on disk: a deposed leader that still believes in itself is
refused, also after a restart. A gap in seq ends the session, since the next one starts with a full set.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import aiohttp
import msgspec

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.loops import Backoff, Pulse
from swarmlet.model.network import Lease
from swarmlet.model.node import NodeDescription
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet.model.ways import NodeWays
from swarmlet.pki import renew_at
from swarmlet.tls import client_context
from swarmlet.wire import messages
from swarmlet.wire.contents import Content, Contents
from swarmlet.wire.joining import SESSION_PATH
from swarmlet.wire.leasing import LeaseAnswer, LeasesLost
from swarmlet.wire.messages import (
    Applied,
    Assignments,
    ContainerRef,
    DescriptionUpdate,
    Heartbeat,
    Hello,
    Inventory,
    StatusAck,
    WaysUpdate,
    Welcome,
)
from swarmlet.wire.networking import Networking
from swarmlet_agent.journal import Journal
from swarmlet_agent.session.buffer import StatusBuffer
from swarmlet_agent.session.identity import MANAGER_NAME, NodeIdentity, renew
from swarmlet_agent.session.leasing import LeaseLine
from swarmlet_agent.session.managers import ManagerList

log = get_logger(__name__)

CONNECT_S = 5.0
SEND_S = 10.0
WELCOME_S = 10.0
#: Reports and inventory changes of a burst go out together, at most once in this time; the first goes at once.
SPACING_S = 0.03
#: Pings go out this often; a manager that does not answer within half of it is gone.
PING_S = 4.0
#: Pauses between attempts: full jitter up to 2 s, never less than 0.1 s.
RETRY_FLOOR_S, RETRY_BASE_S, RETRY_LIMIT_S = 0.1, 0.2, 2.0
RENEW_CHECK_S = 60.0
#: All leases are stated again so often: whatever went wrong with one is right again by then.
RESTATE_S = 60.0
_TERM = "term"


class NodeRemoved(SwarmletError):
    """The cluster does not know this node any more. Its tasks have been told to go."""


class _SessionEnded(Exception):
    """This session is over; dial again. `code` is the manager's close code, 0 = none."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class TaskOrders(Protocol):
    """Who carries out what the manager orders (the task worker)."""

    def supplied(self, items: Sequence[Content]) -> None:
        """Secrets and configs that the next orders need."""
        ...

    async def assign(
        self, *, full: bool, tasks: Sequence[Task], removed: Sequence[str], registry_auth: Mapping[str, str],
        unneeded: Sequence[str] = (),
    ) -> None:
        """Returns once the orders are on disk; carrying them out goes on by itself."""
        ...


class NetworkOrders(Protocol):
    """Who makes the cluster's networks on this node."""

    async def update(self, news: Networking, *, node_id: str, underlay: str) -> None:
        """Returns once it is so. underlay: this node's address for the others."""
        ...

    @property
    def said_ways(self) -> NodeWays:
        """This node's part in encrypted networks."""
        ...

    def held(self) -> Sequence[Lease]:
        """What this node's own containers hold in them (node_id is left to the manager)."""
        ...

    def lost(self, idents: Sequence[str]) -> None:
        """These leases are not this node's any more: their containers are taken off their networks."""
        ...


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where this node is reached: its address, its Engine API port (mTLS), its manager if it runs one.

    data_addr: where packets of the cluster's networks for it go, "" = to addr. data_mtu: of the interface that has it.
    others: asks for more addresses of the host.
    """

    addr: str
    port: int
    manager_addr: str = ""
    data_addr: str = ""
    data_mtu: int = 0
    others: Callable[[], tuple[str, ...]] = tuple


class AgentSession:
    """One per agent. `run` it as long as the node is a member."""

    def __init__(
        self,
        identity: NodeIdentity,
        *,
        data_dir: Path,
        journal: Journal,
        managers: ManagerList,
        place: NodePlace,
        describe: Callable[[], NodeDescription],
        containers: Callable[[], Sequence[ContainerRef]],
        statuses: StatusBuffer,
        orders: TaskOrders,
        networks: NetworkOrders,
    ) -> None:
        self.identity = identity
        self.managers = managers
        self.welcome: Welcome | None = None
        self._data_dir = data_dir
        self._journal = journal
        self._place = place
        self._describe = describe
        self._containers = containers
        self._statuses = statuses
        self._orders = orders
        self._networks = networks
        self._pulse = Pulse(SPACING_S)
        self._inventory: dict[str, ContainerRef | None] = {}
        self._inventory_lost = False
        self._described: NodeDescription | None = None
        self._ways: NodeWays | None = None
        self._silent: set[str] = set()
        self._seq = 0
        self._applied = 0
        self._term = _stored_term(journal, identity.cluster_id)
        self._renew_share = random.random()
        self._farewell = aiohttp.WSCloseCode.OK
        self.connected = asyncio.Event()
        self.leases = LeaseLine(networks.held, self.wake, self.connected)

    # For the rest of the agent

    def wake(self) -> None:
        """There is something to send."""
        self._pulse.beat()

    def container_changed(self, ref: ContainerRef) -> None:
        """A container was created or renamed."""
        self._inventory[ref.id] = ref
        self._pulse.beat()

    def container_removed(self, ident: str) -> None:
        self._inventory[ident] = None
        self._pulse.beat()

    def inventory_lost(self) -> None:
        """Changes may have been missed: the whole list is to be told again."""
        self._inventory_lost = True
        self._pulse.beat()

    def description_changed(self) -> None:
        """Ask `describe` again and tell the manager if it says something new."""
        self._described = None
        self._pulse.beat()

    def back_soon(self) -> None:
        """This session is about to be ended; the host's next agent begins another: the manager is to wait for it."""
        self._farewell = aiohttp.WSCloseCode.SERVICE_RESTART

    # The line

    async def run(self) -> None:
        """Dial, serve, dial again, for ever. NodeRemoved once the cluster has removed this node."""
        backoff: Backoff[str] = Backoff(RETRY_BASE_S, RETRY_LIMIT_S, floor=RETRY_FLOOR_S)
        while True:
            for address in self.managers.in_order() or [""]:
                if address and await self._try(address):
                    backoff.forget("")
                    break
            await self._renew_if_due()
            await asyncio.sleep(backoff.next(""))

    async def _try(self, address: str) -> bool:
        """One session. True if it got as far as a Welcome."""
        self.welcome = None
        try:
            try:
                await self._serve(address)
            except _SessionEnded as err:
                log.info("session ended", manager=address, reason=err.reason, code=err.code)
                await self._after(address, err)
        except NodeRemoved:
            raise
        except SwarmletError as err:
            # Trouble of our own, such as a full disk: what could not be taken over now is said again next time.
            log.warning("session given up", manager=address, reason=err)
        except (aiohttp.ClientError, OSError, TimeoutError) as err:
            # Once per outage is news; a line for every attempt would fill the log.
            tell = log.debug if address in self._silent else log.info
            tell("manager does not answer", manager=address, reason=_reason(err))
            self._silent.add(address)
            self.managers.demote(address)
        finally:
            self.connected.clear()
            self._statuses.session_lost()
        return self.welcome is not None

    async def _after(self, address: str, ended: _SessionEnded) -> None:
        if ended.code == messages.CLOSE_REMOVED:
            await self._orders.assign(full=True, tasks=(), removed=(), registry_auth={})
            raise NodeRemoved(f"node {self.identity.node_id} was removed from the cluster")
        self.managers.demote(address)
        if ended.code == messages.CLOSE_NOT_LEADER and ended.reason and ended.reason != address:
            self.managers.prefer(ended.reason)

    async def _serve(self, address: str) -> None:
        tls = client_context(self.identity.tls)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, force_close=True)) as client:
            socket = await self._dial(client, address, tls)
            try:
                description = self._describe()
                self._described = description
                self._ways = self._networks.said_ways
                await self._send(
                    socket,
                    Hello(
                        node_id=self.identity.node_id, description=description, addr=self._place.addr,
                        port=self._place.port, data_addr=self._place.data_addr,
                        data_mtu=self._place.data_mtu, others=self._place.others(),
                        manager_addr=self._place.manager_addr, ways=self._ways, mesh_news=True,
                    ),
                )
                await self._converse(socket, address)
            finally:
                await socket.close(code=self._farewell)

    async def _dial(
        self, client: aiohttp.ClientSession, address: str, tls: ssl.SSLContext
    ) -> aiohttp.ClientWebSocketResponse:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await client.ws_connect(
                    f"https://{address}{SESSION_PATH}", ssl=tls, server_hostname=MANAGER_NAME, compress=0,
                    max_msg_size=messages.MAX_FRAME_BYTES, heartbeat=PING_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                )
        except aiohttp.WSServerHandshakeError as err:
            raise _SessionEnded(f"the manager answered with status {err.status}") from err

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse, address: str) -> None:
        """Welcome, then both directions side by side until one of them ends."""
        first = await self._receive(socket, WELCOME_S)
        if not isinstance(first, Welcome):
            raise _SessionEnded("expected a welcome")
        await self._welcomed(first, address)
        self._seq = self._applied = 0
        log.info("session established", manager=address, term=first.term)
        self.leases.begin()
        reading = asyncio.create_task(self._read(socket, address), name="session read")
        writing = asyncio.create_task(self._write(socket), name="session write")
        self.connected.set()
        try:
            done, _ = await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, address: str) -> None:
        while True:
            match await self._receive(socket, None):
                case Contents() as contents:
                    if contents.term >= self._term:
                        self._orders.supplied(contents.items)
                case Assignments() as orders:
                    await self._ordered(orders)
                case StatusAck() as ack:
                    self._statuses.acknowledge(ack.seq)
                case LeaseAnswer() as answer:
                    self.leases.answered(answer)
                case LeasesLost() as lost:
                    self._networks.lost(lost.ids)
                case Welcome() as welcome:
                    await self._welcomed(welcome, address)

    async def _ordered(self, orders: Assignments) -> None:
        if orders.term < self._term:
            raise _SessionEnded(f"orders of term {orders.term}, but a leader of term {self._term} was seen")
        if orders.seq != self._seq + 1 or orders.full is not (orders.seq == 1):
            raise _SessionEnded(f"orders {orders.seq} after {self._seq}")
        self._seq = orders.seq
        if orders.networking is not None:  # before the tasks, which need them
            await self._networks.update(
                orders.networking, node_id=self.identity.node_id, underlay=self._place.data_addr or self._place.addr
            )
        if orders.confirm:
            self._applied = orders.seq
            self._pulse.beat()
        await self._orders.assign(
            full=orders.full, tasks=orders.tasks, removed=orders.removed, registry_auth=orders.registry_auth,
            unneeded=orders.unneeded,
        )

    async def _welcomed(self, welcome: Welcome, address: str) -> None:
        if welcome.cluster_id != self.identity.cluster_id:
            raise _SessionEnded(f"this is cluster {welcome.cluster_id}, not {self.identity.cluster_id}")
        if welcome.protocol != messages.PROTOCOL_VERSION:
            raise _SessionEnded(f"the manager speaks protocol {welcome.protocol}, not {messages.PROTOCOL_VERSION}")
        if welcome.term < self._term:
            raise _SessionEnded(f"a leader of term {welcome.term}, but one of term {self._term} was seen")
        if welcome.term > self._term:
            await self._journal.put("meta", _TERM, f"{welcome.cluster_id} {welcome.term}".encode())
            self._term = welcome.term
        self.welcome = welcome
        self._pulse.beat()  # another heartbeat period holds at once
        self._silent.discard(address)
        self.managers.prefer(address)
        await self.managers.told(welcome.managers, address)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._inventory_lost = True
        self._pulse.beat()
        loop = asyncio.get_running_loop()
        period, beat_at = 0, loop.time()
        restate_at = beat_at + RESTATE_S
        while True:
            if restate_at <= loop.time():
                self.leases.restate()
                self._pulse.beat()
                restate_at = loop.time() + RESTATE_S
            # A beat that was planned by a longer period would come too late.
            if (left := beat_at - loop.time()) <= 0 or period != self._period_ns():
                period = self._period_ns()
                await self._send(socket, Heartbeat(period_ns=period))
                beat_at = loop.time() + period / NS * random.uniform(0.9, 1.0)
                continue
            try:
                async with asyncio.timeout(left):
                    await self._pulse.wait()
            except TimeoutError:
                continue
            await self._tell(socket)

    async def _tell(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        if self._described is None:  # before it says that something holds: it tells what does not
            self._described = self._describe()
            await self._send(socket, DescriptionUpdate(description=self._described))
        if self._applied:
            seq, self._applied = self._applied, 0
            await self._send(socket, Applied(seq=seq))
        while (said := self.leases.take()) is not None:
            await self._send(socket, said)
        while (update := self._statuses.take()) is not None:
            await self._send(socket, update)
        if self._inventory_lost:
            self._inventory_lost = False
            self._inventory.clear()
            await self._send(socket, Inventory(full=True, containers=tuple(self._containers())))
        elif self._inventory:
            changed, self._inventory = self._inventory, {}
            await self._send(
                socket,
                Inventory(
                    full=False,
                    containers=tuple(ref for ref in changed.values() if ref is not None),
                    removed=tuple(ident for ident, ref in changed.items() if ref is None),
                ),
            )
        if self._ways != self._networks.said_ways:
            self._ways = self._networks.said_ways
            await self._send(socket, WaysUpdate(ways=self._ways))

    def _period_ns(self) -> int:
        return NS if self.welcome is None else self.welcome.heartbeat_period_ns

    async def _receive(
        self, socket: aiohttp.ClientWebSocketResponse, timeout: float | None
    ) -> messages.ManagerMessage:
        frame = await socket.receive(timeout)
        if frame.type is aiohttp.WSMsgType.BINARY:
            try:
                return messages.decode_from_manager(frame.data)
            except msgspec.DecodeError as err:
                raise _SessionEnded(f"not a message: {err}") from err
        code = socket.close_code or 0
        reason = str(frame.extra or "") if frame.type is aiohttp.WSMsgType.CLOSE else ""
        raise _SessionEnded(reason, code)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, message: messages.AgentMessage) -> None:
        async with asyncio.timeout(SEND_S):
            await socket.send_bytes(messages.encode(message))

    # The certificate

    async def renew_for_ever(self) -> None:
        """Renew the certificate when its time has come; run beside `run`."""
        while True:
            await asyncio.sleep(RENEW_CHECK_S)
            await self._renew_if_due()

    async def _renew_if_due(self) -> None:
        """The next session uses the new certificate; the running one goes on with the old."""
        due = renew_at(self.identity.tls.pair.cert_pem, self._renew_share)
        if datetime.fromtimestamp(time.time(), UTC) < due:
            return
        try:
            self.identity = await renew(
                self._data_dir, self.identity, self.managers.in_order(), addr=self._place.addr
            )
        except SwarmletError as err:
            log.warning("certificate could not be renewed", reason=err)


def _reason(error: Exception) -> str:
    """Short: aiohttp's own text carries the whole TLS context."""
    cause = error.__cause__ if isinstance(error, aiohttp.ClientConnectorError) and error.__cause__ else error
    return str(cause) or type(error).__name__


def _stored_term(journal: Journal, cluster_id: str) -> int:
    """The highest term seen of this very cluster: another one counts its own."""
    cluster, _, term = dict(journal.items("meta")).get(_TERM, b"").decode().partition(" ")
    return int(term) if cluster == cluster_id else 0
