"""One agent's connection, from Welcome to close: what it tells is handed on, what it must know is sent.

It is read, written to, and what is to be recorded is recorded, by a task each: the first that ends ends the session.
Everything the agent sends counts as a sign of life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec
from aiohttp import WSMessage, WSMsgType, web

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.loops import Pulse
from swarmlet.model.task import Task, TaskStatus
from swarmlet.wire import messages
from swarmlet.wire.contents import Content, Contents
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk, LeasesHeld, LeasesLost
from swarmlet.wire.messages import (
    PROTOCOL_VERSION,
    AgentMessage,
    Applied,
    Assignments,
    DescriptionUpdate,
    Heartbeat,
    Hello,
    Inventory,
    StatusAck,
    StatusUpdate,
    WaysUpdate,
    Welcome,
)
from swarmlet_manager.dispatch.contentfeed import ContentFeed, Wanted, in_messages
from swarmlet_manager.dispatch.feed import Feed
from swarmlet_manager.dispatch.netfacts import Facts
from swarmlet_manager.dispatch.netfeed import NetworkFeed
from swarmlet_manager.state import Change, State

log = get_logger(__name__)

#: How long an agent may take to say who it is.
HELLO_S = 10.0
#: Assignments changed in a burst go out together, at most once in this time; the first goes at once.
SPACING_S = 0.02
#: A session with more questions for addresses that wait for an answer is ended.
MAX_ASKED = 10_000
#: An agent that takes no bytes for so long is gone.
SEND_S = 10.0
CLOSE_S = 1.0
_ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)


class Ended(Exception):
    """The session is over: the close code and reason to send, if the connection still stands."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


async def read_hello(socket: web.WebSocketResponse) -> Hello:
    """What an agent says first. Ended if it does not, or speaks another version of the protocol."""
    try:
        message = _decoded(await socket.receive(timeout=HELLO_S))
    except TimeoutError as err:
        raise Ended(messages.CLOSE_BAD_MESSAGE, "no hello in time") from err
    if not isinstance(message, Hello):
        raise Ended(messages.CLOSE_BAD_MESSAGE, "expected hello")
    if message.protocol != PROTOCOL_VERSION:
        raise Ended(
            messages.CLOSE_BAD_MESSAGE, f"protocol {message.protocol} is not spoken here (ours is {PROTOCOL_VERSION})"
        )
    return message


def _decoded(frame: WSMessage) -> AgentMessage:
    if frame.type is not WSMsgType.BINARY:
        raise Ended(messages.CLOSE_BAD_MESSAGE, "expected binary frames")
    try:
        return messages.decode_from_agent(frame.data)
    except msgspec.DecodeError as err:
        raise Ended(messages.CLOSE_BAD_MESSAGE, f"not a message: {err}") from err


class SessionOwner(Protocol):
    """What a session asks of the dispatcher."""

    @property
    def state(self) -> State: ...

    @property
    def facts(self) -> Facts: ...

    def welcome(self) -> Welcome: ...

    def heard(self, session: Session) -> None: ...

    def back_soon(self, session: Session) -> None: ...

    def reported(self, session: Session, seq: int, reports: list[tuple[str, TaskStatus]]) -> None: ...

    def listed(self, session: Session, inventory: Inventory) -> None: ...

    def leases(
        self, session: Session, said: LeaseAsk | LeasesHeld
    ) -> asyncio.Future[LeaseAnswer | LeasesLost | None]: ...

    async def described(self, session: Session, update: DescriptionUpdate) -> None: ...

    async def ways_changed(self, session: Session, update: WaysUpdate) -> None: ...

    def auth_for(self, tasks: list[Task]) -> dict[str, str]: ...

    def contents(self, wanted: Iterable[Wanted]) -> Iterator[Content]: ...

    def is_leaving(self, task_id: str) -> bool: ...

    def awaited(self, session: Session) -> tuple[int, ...]: ...

    def left(self, session: Session, groups: tuple[int, ...]) -> None: ...


class Session:
    def __init__(
        self, owner: SessionOwner, socket: web.WebSocketResponse, node_id: str, term: int, *, mesh_news: bool = False
    ) -> None:
        self.node_id = node_id
        self._owner = owner
        self._socket = socket
        self._term = term
        self._seq = 0
        self._acknowledged = 0
        self._sent_ack = 0
        self._feed = Feed(node_id)
        self._contents = ContentFeed(node_id)
        self._networks = NetworkFeed(node_id, owner.facts, mesh_news=mesh_news)
        self._confirming: dict[int, tuple[int, ...]] = {}  # sequence -> groups of tasks that wait for its effect
        self._pulse = Pulse(SPACING_S)
        self._welcome_due = True
        self._told_period_ns = 0
        #: The longest heartbeat period by which the agent may still go.
        self.period_ns = 0
        self._description: DescriptionUpdate | None = None
        #: What the node said last that it cannot do, in this session; None: it said nothing of it.
        self.problems: tuple[str, ...] | None = None
        self._ways: WaysUpdate | None = None
        self._told = asyncio.Event()
        self._asked: set[asyncio.Future[LeaseAnswer | LeasesLost | None]] = set()
        self._answers: list[LeaseAnswer | LeasesLost] = []
        self._ended: Ended | None = None
        self._end = asyncio.Event()

    async def run(self) -> None:
        """Until either side ends it. The socket is closed when this returns."""
        tasks = [
            asyncio.create_task(self._read(), name=f"read {self.node_id}"),
            asyncio.create_task(self._write(), name=f"write {self.node_id}"),
            asyncio.create_task(self._record(), name=f"record {self.node_id}"),
            asyncio.create_task(self._told_to_end(), name=f"end {self.node_id}"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for asked in self._asked:
                asked.cancel()  # the agent asks, and states what it holds, in its next session again
            results = await asyncio.gather(*tasks, return_exceptions=True)
        await self._close([result for result in results if isinstance(result, Exception)])

    def end(self, code: int, reason: str) -> None:
        """End it from outside: node removed, replaced by a newer session, leadership lost."""
        self._ended = self._ended or Ended(code, reason)
        self._end.set()

    def note(self, task_id: str) -> None:
        """This task may be news for the agent."""
        self._feed.note(task_id)
        self._contents.note(task_id)
        self._pulse.beat()

    def note_networks(self, changes: Sequence[Change], *, mesh: bool) -> None:
        """What has changed of tasks, services and leases, anywhere in the cluster. mesh: perhaps the mesh, too."""
        if mesh:
            self._networks.mesh_changed()
            self._pulse.beat()
        for change in changes:
            if self._networks.note(change):
                self._pulse.beat()

    def note_node(self, node_id: str) -> None:
        """Another node's address or state may be news for this one."""
        if self._networks.node_changed(node_id):
            self._pulse.beat()

    def note_ways(self) -> None:
        """The keys of encrypted networks are others."""
        if self._networks.ways_changed():
            self._pulse.beat()

    def leads_to(self, task: Task) -> bool:
        """Whether the node was told to send clients to a task."""
        return self._networks.leads_to(task)

    def welcome_again(self) -> None:
        """Something that Welcome tells has changed."""
        self._welcome_due = True
        self._pulse.beat()

    def acknowledge(self, seq: int) -> None:
        self._acknowledged = max(self._acknowledged, seq)
        self._pulse.beat()

    async def _told_to_end(self) -> None:
        await self._end.wait()

    async def _record(self) -> None:
        """What the node says of itself goes into its record: the newest of each kind, however long a commit takes.

        Not where messages are read: a store that is slow for some seconds must not make its nodes silent.
        """
        while True:
            await self._told.wait()
            self._told.clear()
            description, self._description = self._description, None
            ways, self._ways = self._ways, None
            if description is not None:
                await self._owner.described(self, description)
            if ways is not None:
                await self._owner.ways_changed(self, ways)

    async def _read(self) -> None:
        while (frame := await self._socket.receive()).type not in _ENDS:
            message = _decoded(frame)
            if isinstance(message, Heartbeat) and message.period_ns == self._told_period_ns:
                self.period_ns = self._told_period_ns
            self._owner.heard(self)
            match message:
                case Heartbeat():
                    pass
                case StatusUpdate():
                    reports = [(report.task_id, report.status) for report in message.reports]
                    self._owner.reported(self, message.seq, reports)
                case Inventory():
                    self._owner.listed(self, message)
                case LeaseAsk() | LeasesHeld():
                    self._lease(message)
                case DescriptionUpdate():
                    self._description = message
                    self.problems = message.description.problems
                    self._told.set()
                case WaysUpdate():
                    self._ways = message
                    self._told.set()
                case Applied():
                    for seq in [seq for seq in self._confirming if seq <= message.seq]:
                        self._owner.left(self, self._confirming.pop(seq))
                case Hello():
                    raise Ended(messages.CLOSE_BAD_MESSAGE, "hello was said before")
        # Of the frame, not of the socket: there it is another where the agent was gone before the answer to its close.
        if frame.type is WSMsgType.CLOSE and frame.data == messages.CLOSE_SERVICE_RESTART:
            self._owner.back_soon(self)

    def _lease(self, said: LeaseAsk | LeasesHeld) -> None:
        if len(self._asked) >= MAX_ASKED:
            raise Ended(messages.CLOSE_TRY_LATER, f"more than {MAX_ASKED} questions for addresses at once")
        asked = self._owner.leases(self, said)
        self._asked.add(asked)
        asked.add_done_callback(self._leased)

    def _leased(self, asked: asyncio.Future[LeaseAnswer | LeasesLost | None]) -> None:
        self._asked.discard(asked)
        if asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            self.end(messages.CLOSE_TRY_LATER, str(error))
        elif (answer := asked.result()) is not None:
            self._answers.append(answer)
            self._pulse.beat()

    async def _write(self) -> None:
        self._pulse.beat()
        while True:
            await self._pulse.wait()
            if self._welcome_due:
                self._welcome_due = False
                await self._welcome(self._owner.welcome())
            if self._acknowledged > self._sent_ack:
                self._sent_ack = self._acknowledged
                await self._send(StatusAck(seq=self._sent_ack))
            answers, self._answers = self._answers, []
            if self._feed.pending or self._networks.pending:
                await self._order()
            for answer in answers:  # behind the orders that tell of the network
                await self._send(answer)

    async def _welcome(self, welcome: Welcome) -> None:
        self._told_period_ns = welcome.heartbeat_period_ns
        self.period_ns = max(self.period_ns, self._told_period_ns)
        await self._send(welcome)

    async def _order(self) -> None:
        # Both of one state: what a task needs of its networks comes with it.
        full, tasks, removed = self._feed.take(self._owner.state, self._owner.is_leaving)
        wanted, unneeded = self._contents.take(self._owner.state)
        networking = self._networks.take(self._owner.state)
        # Of this state, too. What the agent was asked to confirm is not done because nothing more is to be said.
        asked = {group for groups in self._confirming.values() for group in groups}
        groups = tuple(group for group in self._owner.awaited(self) if group not in asked)
        auth = self._owner.auth_for(tasks)
        for items in in_messages(self._owner.contents(wanted)):
            await self._send(Contents(term=self._term, items=items))
            for item in items:
                if item.lacking:
                    self._contents.lacks(item)
        if groups and not networking:
            self._owner.left(self, groups)
        if full or tasks or removed or networking or unneeded:
            self._seq += 1
            if groups and networking:
                self._confirming[self._seq] = groups
            await self._send(
                Assignments(
                    term=self._term, seq=self._seq, full=full, tasks=tuple(tasks), removed=tuple(removed),
                    registry_auth=auth, networking=networking or None,
                    confirm=self._seq in self._confirming, unneeded=tuple(unneeded),
                )
            )

    async def _send(self, message: messages.ManagerMessage) -> None:
        async with asyncio.timeout(SEND_S):
            await self._socket.send_bytes(messages.encode(message))

    async def _close(self, failures: list[Exception]) -> None:
        ended = self._ended or next((failure for failure in failures if isinstance(failure, Ended)), None)
        for failure in failures:
            if isinstance(failure, SwarmletError):
                ended = ended or Ended(messages.CLOSE_TRY_LATER, str(failure))
                log.warning("session ended", node_id=self.node_id, reason=failure)
            elif not isinstance(failure, (Ended, ConnectionError, TimeoutError)):
                log.error("session failed", node_id=self.node_id, error=repr(failure))
        code, reason = (ended.code, ended.reason) if ended else (1000, "")
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code=code, message=reason.encode()[:120])
        except (TimeoutError, ConnectionError) as err:
            log.debug("session could not be closed in order", node_id=self.node_id, reason=repr(err))
