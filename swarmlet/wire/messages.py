"""What an agent and a manager say to each other: MessagePack frames over one WebSocket (mTLS).

The agent dials and says Hello; the manager answers Welcome, then one full set of assignments, then
increments. Every order carries (term, seq): the leader key's create revision and a counter within this
session. An agent refuses a term lower than the highest it has ever seen, and a sequence that does not
continue; it then dials again. Status goes up batched and is acknowledged once it is in the store.
"""

from __future__ import annotations

import msgspec

from swarmlet.model.base import Record
from swarmlet.model.node import NodeDescription
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.ways import NodeWays
from swarmlet.wire.contents import Contents
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk, LeasesHeld, LeasesLost
from swarmlet.wire.networking import Networking

#: Grows with every change that an older peer could misread; Hello and Welcome carry it.
PROTOCOL_VERSION = 1
#: A frame larger than this ends the session (the largest legitimate one is a full set of some 10,000 tasks).
MAX_FRAME_BYTES = 64 << 20


class ContainerRef(Record, frozen=True, kw_only=True):
    """Enough of a container for a manager to route a name or id to its node."""

    id: str
    name: str


class TaskReport(Record, frozen=True, kw_only=True):
    task_id: str
    status: TaskStatus


class Hello(Record, frozen=True, kw_only=True, tag="hello"):
    """First frame of the agent. The node id is that of its certificate; a different one ends the session."""

    node_id: str
    protocol: int = PROTOCOL_VERSION
    description: NodeDescription
    #: Where managers and peers reach this node's Engine API (mTLS).
    addr: str
    port: int
    #: Where packets of the cluster's networks for this node go, "" = to addr.
    data_addr: str = ""
    #: Of the interface that has that address, in bytes.
    data_mtu: int = 0
    ways: NodeWays = NodeWays()
    #: "host:port" of the manager this host runs, "" if it runs none.
    manager_addr: str = ""
    #: More addresses of the host, that its own processes may come from when they use a published port.
    others: tuple[str, ...] = ()
    #: The routing mesh may be told by what is new of it (`Networking.mesh_news`).
    mesh_news: bool = False


class DescriptionUpdate(Record, frozen=True, kw_only=True, tag="description"):
    description: NodeDescription


class WaysUpdate(Record, frozen=True, kw_only=True, tag="ways"):
    """The node's part in encrypted networks is another one."""

    ways: NodeWays


class Heartbeat(Record, frozen=True, kw_only=True, tag="beat"):
    """Sent every heartbeat period, and as soon as the agent hears of another one; anything else counts as one too.

    period_ns: by which the agent goes from now on, so that the manager knows when it has heard of a new one.
    """

    period_ns: int = 0


class StatusUpdate(Record, frozen=True, kw_only=True, tag="status"):
    """Observed states, newest per task. Sent again until acknowledged, in this session or the next."""

    seq: int
    reports: tuple[TaskReport, ...]


class Inventory(Record, frozen=True, kw_only=True, tag="inventory"):
    """All containers of the node, the plain ones included (full), or what changed since."""

    full: bool
    containers: tuple[ContainerRef, ...] = ()
    removed: tuple[str, ...] = ()


class Applied(Record, frozen=True, kw_only=True, tag="applied"):
    """What the orders with this seq, and all before it, tell of networks holds on this node. Said where asked for."""

    seq: int


class Welcome(Record, frozen=True, kw_only=True, tag="welcome"):
    protocol: int = PROTOCOL_VERSION
    cluster_id: str
    term: int
    heartbeat_period_ns: int
    #: Every manager's "host:port", for the agent to keep and dial when this one is gone.
    managers: tuple[str, ...] = ()
    #: True if this node should run a manager.
    is_manager: bool = False


class Assignments(Record, frozen=True, kw_only=True, tag="assignments"):
    """Tasks of this node. full: everything not listed is to be stopped and forgotten."""

    term: int
    seq: int
    full: bool
    tasks: tuple[Task, ...] = ()
    removed: tuple[str, ...] = ()  # task ids whose records are gone: remove what is left of them
    #: Service id -> X-Registry-Auth value, for services of `tasks` that have one. Kept in memory, never logged.
    registry_auth: dict[str, str] = {}
    #: Of the networks this node takes part in; None: nothing new.
    networking: Networking | None = None
    #: The agent is to say Applied once `networking` holds: a task waits for it before it is stopped.
    confirm: bool = False
    #: Ids of secrets and configs that no task needs any more. In a full set: those that none of `tasks` refers to.
    unneeded: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Assignments(term={self.term}, seq={self.seq}, full={self.full}, tasks={len(self.tasks)})"


class StatusAck(Record, frozen=True, kw_only=True, tag="ack"):
    """The status update with this seq, and all before it, are in the store."""

    seq: int


AgentMessage = (
    Hello | DescriptionUpdate | WaysUpdate | Heartbeat | StatusUpdate | Inventory | Applied | LeaseAsk | LeasesHeld
)
ManagerMessage = Welcome | Contents | Assignments | StatusAck | LeaseAnswer | LeasesLost

#: Why an agent ended its session: it is about to be started again, and its containers live on. The name and number are
#: from IANA's registry of WebSocket close codes. Any other code says nothing.
CLOSE_SERVICE_RESTART = 1012
#: Why a manager ended a session: WebSocket close codes (RFC 6455; 4000-4999 are the application's). With NOT_LEADER
#: the reason is the leader's "host:port" or "".
CLOSE_TRY_LATER = 1013
CLOSE_NOT_LEADER = 4001
CLOSE_REMOVED = 4003
CLOSE_REPLACED = 4009
CLOSE_BAD_MESSAGE = 4400

_encoder = msgspec.msgpack.Encoder()
_agent_decoder = msgspec.msgpack.Decoder(AgentMessage)
_manager_decoder = msgspec.msgpack.Decoder(ManagerMessage)


def encode(message: AgentMessage | ManagerMessage) -> bytes:
    return _encoder.encode(message)


def decode_from_agent(frame: bytes) -> AgentMessage:
    """msgspec.DecodeError (a ValueError) for anything that is not one of the agent's messages."""
    message: AgentMessage = _agent_decoder.decode(frame)
    return message


def decode_from_manager(frame: bytes) -> ManagerMessage:
    """msgspec.DecodeError (a ValueError) for anything that is not one of the manager's messages."""
    message: ManagerMessage = _manager_decoder.decode(frame)
    return message
