"""Nodes: what the user says of one (spec), what its agent says (description), what the manager sees (status)."""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct, Record
from swarmlet.model.common import Platform
from swarmlet.model.service import GenericResource
from swarmlet.model.states import Availability, NodeState, Role
from swarmlet.model.ways import NodeWays


class NodeSpec(ApiStruct, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = {}
    role: Role = Role.WORKER
    availability: Availability = Availability.ACTIVE


class NodeResources(ApiStruct, frozen=True, kw_only=True):
    nano_cpus: int = field(name="NanoCPUs", default=0)
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] = ()


class EnginePlugin(ApiStruct, frozen=True, kw_only=True):
    type: str
    name: str


class EngineDescription(ApiStruct, frozen=True, kw_only=True):
    engine_version: str = ""
    labels: dict[str, str] = {}
    plugins: tuple[EnginePlugin, ...] = ()


class TLSInfo(ApiStruct, frozen=True, kw_only=True):
    """`trust_root` is the CA certificate as PEM; subject and key are base64 of DER."""

    trust_root: str = ""
    cert_issuer_subject: str = ""
    cert_issuer_public_key: str = ""


def unpublished(port: int, protocol: str, service: str) -> str:
    """How a node's problem begins that does not publish a port of a service; the reason follows."""
    return f"port {port}/{protocol} of service {service} is not published on this node: "


class NodeDescription(ApiStruct, frozen=True, kw_only=True):
    """What the agent reports of its host."""

    hostname: str = ""
    platform: Platform = Platform()
    resources: NodeResources = NodeResources()
    engine: EngineDescription = EngineDescription()
    tls_info: TLSInfo | None = field(name="TLSInfo", default=None)
    #: What keeps the host from doing all that is asked of it, for its operator to mend.
    problems: tuple[str, ...] = ()


class Node(Record, frozen=True, kw_only=True):
    """A stored node. `addr` is the host's address as its agent advertises it, `port` that of its node port
    (mTLS, Engine API for managers). state and message are the leader's judgement of its liveness."""

    id: str
    spec: NodeSpec = NodeSpec()
    description: NodeDescription = NodeDescription()
    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""
    port: int = 0
    manager_addr: str = ""  # "host:port" of its manager, "" for workers
    created_at: int = 0
    updated_at: int = 0
    version: int = 0
    #: When the state last changed: DOWN for 24 h orphans its tasks.
    state_changed_at: int = 0
    #: Its place in the routing mesh, 1 to 65,534; 0 until the allocator has given it one.
    number: int = 0
    #: Where packets of the cluster's networks go, if not to `addr` (`--data-path-addr`).
    data_addr: str = ""
    #: Of the interface that has that address, in bytes; 0 = not known.
    data_mtu: int = 0
    #: More addresses of the host, as far as its agent has told: clients that come from them are the node itself.
    others: tuple[str, ...] = ()
    #: Its part in encrypted networks.
    ways: NodeWays = NodeWays()

    @property
    def data_path(self) -> str:
        """The address that packets of the cluster's networks for it go to."""
        return self.data_addr or self.addr
