"""The leader's end of all agents' sessions: who is there, what each must know, what they report.

Only the leader serves sessions; another manager sends agents on to it. An agent may only speak for the node its
certificate names, and only while that node exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from aiohttp import web
from msgspec.structs import replace

from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.loops import Group
from swarmlet.model.cluster import Cluster
from swarmlet.model.defaults import ingress_ports
from swarmlet.model.network import Lease
from swarmlet.model.node import Node, unpublished
from swarmlet.model.service import Service
from swarmlet.model.states import NodeState, Role, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.tls import require_role
from swarmlet.wire import messages
from swarmlet.wire.contents import Content
from swarmlet.wire.joining import SESSION_PATH
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk, LeasesHeld, LeasesLost
from swarmlet.wire.messages import DescriptionUpdate, Hello, Inventory, WaysUpdate, Welcome
from swarmlet_manager.ca.seal import unseal
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.dispatch.contentfeed import Wanted, contents_of
from swarmlet_manager.dispatch.heartbeats import Heartbeats, period_of
from swarmlet_manager.dispatch.inventory import Inventories
from swarmlet_manager.dispatch.leaving import Leaving
from swarmlet_manager.dispatch.netfacts import Facts
from swarmlet_manager.dispatch.noderecords import NodeRecords
from swarmlet_manager.dispatch.session import Ended, Session, read_hello
from swarmlet_manager.dispatch.status import StatusCollector
from swarmlet_manager.state import Change, State

log = get_logger(__name__)

#: The largest frame an agent may send (10,000 reports are about 2 MB).
MAX_AGENT_FRAME = 16 << 20
#: How long a task waits, at most, for the nodes to send clients elsewhere before it is told to stop (SwarmKit always
#: waits that long, for its gossip to converge).
LEAVE_GRACE_S = 2.0
#: How long the answer to a command that publishes a port waits, at most, for nodes to say whether they can.
PUBLISH_GRACE_S = 1.0


class LeaseOffice(Protocol):
    """Who gives addresses to plain containers (`control.allocation.Allocation`)."""

    def submit(
        self, node_id: str, said: LeaseAsk | LeasesHeld
    ) -> asyncio.Future[LeaseAnswer | LeasesLost | None]: ...


class Vault(Protocol):
    """Who unseals secrets and configs (`ca.vault`)."""

    def open(self, sealed: bytes, about: str) -> bytes:
        """Unavailable; Internal for what was sealed with another key."""
        ...


class Dispatcher:
    """One per manager process; serving sessions is a duty of the leader.

    leader_addr: the leader's "host:port" as far as this manager knows, for agents that dial a follower.
    """

    def __init__(
        self,
        store: StorePort,
        leases: LeaseOffice,
        vault: Vault,
        *,
        leader_addr: Callable[[], str],
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._records = NodeRecords(store, now)
        self._heartbeats = Heartbeats(self._records, self._end_silent)
        self._leases = leases
        self._vault = vault
        self._leader_addr = leader_addr
        self._now = now
        self._sessions: dict[str, Session] = {}
        self._inventories = Inventories()
        self._leaving = Leaving()
        #: What waits, by its name among the tasks that leave, until every node has done what it can to publish it.
        self._publishing: dict[str, asyncio.Event] = {}
        self._facts = Facts()
        self._collector = StatusCollector(store, now)
        self._serving = False

    # A duty of the leader

    def begin(self, loops: Group) -> None:
        self._collector = StatusCollector(self._store, self._now)
        self._leaving = Leaving()
        self._facts = Facts()
        self._heartbeats.begin()
        loops.start(self._collector.run(), name="status reports")
        loops.start(self._heartbeats.sweep_for_ever(), name="heartbeats")
        self._serving = True

    def end(self) -> None:
        """Agents look for the new leader."""
        self._serving = False
        for session in list(self._sessions.values()):
            session.end(messages.CLOSE_NOT_LEADER, self._leader_addr())

    # For the API

    @property
    def facts(self) -> Facts:
        return self._facts

    @property
    def state(self) -> State:
        return self._store.state

    @property
    def connected(self) -> set[str]:
        """Ids of the nodes with a session now."""
        return set(self._sessions)

    def locate_container(self, ref: str) -> str:
        """The id of the node that has this container. NotFound, Conflict."""
        return self._inventories.locate(ref)

    def name_holder(self, name: str) -> tuple[str, str] | None:
        """(node id, container id) of the container of this name."""
        return self._inventories.holder(name)

    def container_count(self, node_id: str) -> int:
        return len(self._inventories.of_node(node_id))

    def routes(self) -> list[Route]:
        return [Route("GET", SESSION_PATH, self.session)]

    async def session(self, call: Call) -> web.StreamResponse:
        """The WebSocket of one agent. 401, 403 before the upgrade; afterwards a close code says why."""
        identity = require_role(call.request.transport, (Role.WORKER, Role.MANAGER))
        # An agent that does not answer to a close is not waited for: it may be gone.
        socket = web.WebSocketResponse(max_msg_size=MAX_AGENT_FRAME, compress=False, timeout=1.0)
        await socket.prepare(call.request)
        try:
            session = await self._admit(identity.node_id, socket)
        except Ended as err:
            await socket.close(code=err.code, message=err.reason.encode()[:120])
            return socket
        except SwarmletError as err:  # the upgrade is done: a status cannot be sent any more
            log.warning("node could not be registered", node_id=identity.node_id, reason=err)
            await socket.close(code=messages.CLOSE_TRY_LATER, message=str(err).encode()[:120])
            return socket
        try:
            await session.run()
        finally:
            self._collector.forget(session)
            if self._sessions.get(identity.node_id) is session:
                del self._sessions[identity.node_id]
        return socket

    async def _admit(self, node_id: str, socket: web.WebSocketResponse) -> Session:
        """Hello, checked and written to the node's record. Ended says why not."""
        if not self._serving or not self._store.leader:
            raise Ended(messages.CLOSE_NOT_LEADER, self._leader_addr())
        hello = await read_hello(socket)
        if hello.node_id != node_id:
            raise Ended(messages.CLOSE_BAD_MESSAGE, f"the certificate is of node {node_id}")
        await self._register(node_id, hello)
        if not self._serving:
            raise Ended(messages.CLOSE_NOT_LEADER, self._leader_addr())
        if (old := self._sessions.get(node_id)) is not None:
            old.end(messages.CLOSE_REPLACED, "the node has opened another session")
        session = Session(self, socket, node_id, self._term(), mesh_news=hello.mesh_news)
        self._sessions[node_id] = session
        self.heard(session)
        return session

    async def _register(self, node_id: str, hello: Hello) -> None:
        """The node is READY and described as it says; nothing is written if nothing is new."""
        await self._records.update(
            node_id,
            lambda node: replace(
                self._records.in_state(node, NodeState.READY, ""),
                description=hello.description, addr=hello.addr or node.addr, port=hello.port,
                data_addr=hello.data_addr, data_mtu=hello.data_mtu, manager_addr=hello.manager_addr,
                others=hello.others, ways=hello.ways,
            ),
        )

    # What sessions tell

    def welcome(self) -> Welcome:
        cluster = self.state.cluster
        assert cluster is not None, "a node cannot be a member of no cluster"
        return Welcome(
            cluster_id=cluster.id,
            term=self._term(),
            heartbeat_period_ns=cluster.spec.dispatcher.heartbeat_period,
            managers=self._managers(),
        )

    def _term(self) -> int:
        """The leader's, as agents know it: it grows over restores, too."""
        cluster = self.state.cluster
        return self._store.term + (0 if cluster is None else cluster.terms_after)

    def heard(self, session: Session) -> None:
        self._heartbeats.heard(session.node_id, session.period_ns)

    def back_soon(self, session: Session) -> None:
        self._heartbeats.back_soon(session.node_id)

    def reported(self, session: Session, seq: int, reports: list[tuple[str, TaskStatus]]) -> None:
        self._collector.add(session, seq, reports)

    def listed(self, session: Session, inventory: Inventory) -> None:
        self._inventories.apply(session.node_id, inventory)

    def leases(self, session: Session, said: LeaseAsk | LeasesHeld) -> asyncio.Future[LeaseAnswer | LeasesLost | None]:
        return self._leases.submit(session.node_id, said)

    async def described(self, session: Session, update: DescriptionUpdate) -> None:
        await self._records.update(session.node_id, lambda node: replace(node, description=update.description))

    async def ways_changed(self, session: Session, update: WaysUpdate) -> None:
        await self._records.update(session.node_id, lambda node: replace(node, ways=update.ways))

    def auth_for(self, tasks: list[Task]) -> dict[str, str]:
        """Registry credentials of the services of these tasks, opened for their agent."""
        cluster = self.state.cluster
        found: dict[str, str] = {}
        for service_id in {task.service_id for task in tasks}:
            service = self.state.services.get(service_id)
            if cluster is not None and service is not None and service.sealed_auth:
                found[service_id] = unseal(cluster.seal_key, service.sealed_auth, service_id)
        return found

    def contents(self, wanted: Iterable[Wanted]) -> Iterator[Content]:
        """Secrets and configs, opened for the agent that has tasks with them."""
        return contents_of(self.state, wanted, self._vault.open)

    # Tasks leave before they stop

    def is_leaving(self, task_id: str) -> bool:
        """Whether its agent may not hear yet that it is to stop."""
        return self._leaving.holds(task_id)

    def awaited(self, session: Session) -> tuple[int, ...]:
        return self._leaving.awaiting(session.node_id)

    def left(self, session: Session, groups: tuple[int, ...]) -> None:
        self._may_stop(self._leaving.left(session.node_id, groups))

    def _let_leave(self, changes: Sequence[Change]) -> None:
        """Before anyone hears of these changes: who must send clients elsewhere before a task may stop."""
        going = [
            change.before for change in changes
            if isinstance(change.before, Task) and isinstance(change.after, Task) and change.before.networks
            and change.before.desired_state <= TaskState.RUNNING < change.after.desired_state
            and change.after.status.state is TaskState.RUNNING
        ]
        leading = [
            session.node_id for session in self._sessions.values() if any(session.leads_to(task) for task in going)
        ]
        if group := self._leaving.begin((task.id for task in going), leading):
            asyncio.get_running_loop().call_later(LEAVE_GRACE_S, self._leave_at_last, self._leaving, group)

    def _leave_at_last(self, leaving: Leaving, group: int) -> None:
        if late := leaving.end(group):
            log.warning("tasks stop before every node sends clients elsewhere", tasks=len(late), waited_s=LEAVE_GRACE_S)
            self._may_stop(late)

    def _may_stop(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            if (answered := self._publishing.pop(task_id, None)) is not None:
                answered.set()
            task = self.state.tasks.get(task_id)
            if task is not None and (session := self._sessions.get(task.node_id)) is not None:
                session.note(task_id)

    # Ports that nodes cannot publish

    def _let_publish(self, changes: Sequence[Change]) -> None:
        """As with tasks that leave: every node says when it has done what it can."""
        for change in changes:
            if isinstance(change.after, Service) and change.after.ports:
                before = change.before.ports if isinstance(change.before, Service) else ()
                if set(ingress_ports(change.after.ports)) - set(before):
                    self._await_publishing(_ports_of(change.after.id))

    def _await_publishing(self, key: str) -> None:
        leaving = self._leaving
        if group := leaving.begin([key], self._sessions):
            self._publishing.setdefault(key, asyncio.Event())
            asyncio.get_running_loop().call_later(LEAVE_GRACE_S, lambda: self._may_stop(leaving.end(group)))

    async def port_troubles(self, service: Service) -> list[str]:
        """Which nodes do not publish which ports of it and why, as far as they have said so within a moment."""
        if (answered := self._publishing.get(_ports_of(service.id))) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_GRACE_S):
                    await answered.wait()
        starts = tuple(
            unpublished(port.published_port, port.protocol, service.spec.name) for port in ingress_ports(service.ports)
        )
        found = []
        for node in sorted(self.state.nodes.values(), key=lambda node: node.description.hostname):
            session = self._sessions.get(node.id)
            said = session.problems if session is not None else None
            said = node.description.problems if said is None else said
            name = node.description.hostname
            found += [f"node {name}: {text}" for text in said if starts and text.startswith(starts)]
        return found

    # What changes

    def _end_silent(self, node_id: str) -> None:
        """Even if it was heard of while that was written: it registers again, and is READY."""
        if (session := self._sessions.get(node_id)) is not None:
            session.end(messages.CLOSE_REPLACED, "no heartbeat")

    def _managers(self) -> tuple[str, ...]:
        addresses = {node.manager_addr for node in self.state.nodes.values() if node.manager_addr}
        own = self._leader_addr()
        return tuple(sorted(addresses | ({own} if own else set())))

    def changed(self, changes: Sequence[Change]) -> None:
        """Marks what sessions must look at."""
        self._let_leave(changes)
        self._let_publish(changes)
        networks = [change for change in changes if _concerns_networks(change)]
        mesh = self._facts.mesh.note(changes)
        for each in self._sessions.values() if networks or mesh else ():
            each.note_networks(networks, mesh=mesh)
        for change in changes:
            before, after = change.before, change.after
            if isinstance(change.record, Task):
                for task in (before, after):
                    if isinstance(task, Task) and (session := self._sessions.get(task.node_id)) is not None:
                        session.note(task.id)
                if after is None:
                    self._facts.forget(change.record)
            elif isinstance(change.record, Node):
                self._node_changed(before, after)
            elif isinstance(before, Cluster) and isinstance(after, Cluster):
                if period_of(before) != period_of(after):
                    self._heartbeats.period_changed()
                    self._welcome_all()
                if before.ways != after.ways:
                    for session in self._sessions.values():
                        session.note_ways()

    def _node_changed(self, before: object, after: object) -> None:
        if isinstance(before, Node) and after is None:
            self._heartbeats.forget(before.id)
            self._inventories.forget(before.id)
            if (session := self._sessions.get(before.id)) is not None:
                session.end(messages.CLOSE_REMOVED, "the node was removed from the cluster")
            for other in self._sessions.values():
                other.note_node(before.id)
        elif isinstance(after, Node):
            if after.state is NodeState.READY and not (isinstance(before, Node) and before.state is after.state):
                # Its session begins once that is known to be written: its silence until now is over already.
                self._heartbeats.heard(after.id)
            if not isinstance(before, Node) or _as_peer(before) != _as_peer(after):
                for other in self._sessions.values():
                    other.note_node(after.id)
            known = before.manager_addr if isinstance(before, Node) else ""
            if known != after.manager_addr:
                self._welcome_all()

    def _welcome_all(self) -> None:
        for session in self._sessions.values():
            session.welcome_again()


def _as_peer(node: Node) -> tuple[object, ...]:
    """What other nodes need to know of one."""
    return node.data_path, node.others, node.state, node.number, node.ways.keys


def _ports_of(service_id: str) -> str:
    """What waits for its ports is called so among tasks that leave."""
    return f"ports of {service_id}"


def _concerns_networks(change: Change) -> bool:
    match change.record:
        case Task() as task:
            return bool(task.networks)
        case Service() | Lease():
            return True
        case _:
            return False
