"""What a manager tells an agent of the networks its node takes part in, and of no others.

One full set with the first assignments of a session, increments from then on. Addresses are text, of IPv4;
those with a 6 are of IPv6, "" in a network without it.
"""

from __future__ import annotations

from swarmlet.model.base import Record
from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.model.ways import WayKey


class NetworkInfo(Record, frozen=True, kw_only=True):
    """A network: what the node needs to make its part of it."""

    id: str
    name: str
    subnet: str
    gateway: str
    ip_range: str = ""
    subnet6: str = ""
    gateway6: str = ""
    ip_range6: str = ""
    vni: int
    mtu: int
    #: UDP port that carries it between nodes.
    port: int = DATA_PATH_PORT
    #: Packets of it go over the encrypted ways.
    encrypted: bool = False
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    created_at: int = 0


class EndpointInfo(Record, frozen=True, kw_only=True):
    """A container's place in a network, on this node or another. id: the task's, or the lease's.

    node_addr: where packets for it go. names: its own, not its service's. serving: it may be sent clients (a task
    that runs, is healthy and is meant to go on). lost: it answers nobody any more, though it has not ended.
    """

    network_id: str
    id: str
    address: str
    address6: str = ""
    node_id: str
    node_addr: str
    names: tuple[str, ...] = ()
    service_id: str = ""
    slot: int = 0
    serving: bool = False
    lost: bool = False
    #: "" = the one that follows from the address.
    mac: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """IPv4 first."""
        return (self.address, self.address6) if self.address6 else (self.address,)


class ServicePort(Record, frozen=True, kw_only=True):
    """A port that a service publishes: the one its tasks listen on. name: the user's, "" for none."""

    name: str = ""
    protocol: str = "tcp"
    port: int

class ServiceInfo(Record, frozen=True, kw_only=True):
    """A service in a network. vip "": its names stand for its tasks' addresses in turn."""

    network_id: str
    id: str
    name: str
    aliases: tuple[str, ...] = ()
    vip: str = ""
    vip6: str = ""
    #: For who asks for them by name (SRV records).
    ports: tuple[ServicePort, ...] = ()

    @property
    def vips(self) -> tuple[str, ...]:
        """IPv4 first; () without any."""
        return tuple(vip for vip in (self.vip, self.vip6) if vip)


class MeshNodeInfo(Record, frozen=True, kw_only=True):
    """A node's place in the routing mesh."""

    id: str
    number: int
    address: str
    #: More addresses that its own processes may come from.
    others: tuple[str, ...] = ()


class MeshBackend(Record, frozen=True, kw_only=True):
    """A task that a published port leads to. node: the number of the node it is on. serving, lost: as an endpoint's."""

    address: str
    port: int
    node: int
    serving: bool = True
    lost: bool = False
    address6: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """IPv4 first."""
        return (self.address, self.address6) if self.address6 else (self.address,)


#: What a port of the mesh is found by: protocol, number, address ("" = all).
PortName = tuple[str, int, str]


class MeshPort(Record, frozen=True, kw_only=True):
    """A port published on every node. host_ip "": on all its addresses; local_only: nodes lead to their own tasks only.

    service: the name of the one that publishes it.
    """

    protocol: str
    port: int
    service: str = ""
    host_ip: str = ""
    local_only: bool = False
    backends: tuple[MeshBackend, ...] = ()

    @property
    def called(self) -> PortName:
        return self.protocol, self.port, self.host_ip


class MeshInfo(Record, frozen=True, kw_only=True):
    """The routing mesh, all of it, the same for every node."""

    #: UDP port of its VXLAN.
    data_path_port: int = DATA_PATH_PORT
    nodes: tuple[MeshNodeInfo, ...] = ()
    ports: tuple[MeshPort, ...] = ()


class MeshNews(Record, frozen=True, kw_only=True):
    """What is new of the routing mesh. whole: everything that is not in it is to be forgotten.

    stamps: a number for each of `nodes`, then of `ports`, that goes with what it says. total: the sum of the stamps of
    everything that is told by now, modulo 2**64: who comes to another sum has missed something.
    """

    whole: bool = False
    data_path_port: int = DATA_PATH_PORT
    nodes: tuple[MeshNodeInfo, ...] = ()
    ports: tuple[MeshPort, ...] = ()
    stamps: tuple[int, ...] = ()
    gone_nodes: tuple[str, ...] = ()
    gone_ports: tuple[PortName, ...] = ()
    total: int = 0


class WaysPeer(Record, frozen=True, kw_only=True):
    """Another node in encrypted networks: its address inside, where its devices are reached, its keys."""

    inner: str
    address: str
    keys: tuple[WayKey, ...]


class WaysInfo(Record, frozen=True, kw_only=True):
    """The encrypted ways, all of them; without `numbers` the node needs none.

    inner: the node's own address inside. numbers: the generations of keys it is to have; active: by which packets go.
    digest: to be said back once this is taken in, b"" = it need not.
    """

    inner: str = ""
    numbers: tuple[int, ...] = ()
    active: int = 0
    digest: bytes = b""
    peers: tuple[WaysPeer, ...] = ()


class Networking(Record, frozen=True, kw_only=True):
    """A full set (everything else is to be forgotten) or an increment. gone_…: (network id, id)."""

    full: bool = False
    networks: tuple[NetworkInfo, ...] = ()
    endpoints: tuple[EndpointInfo, ...] = ()
    services: tuple[ServiceInfo, ...] = ()
    gone_networks: tuple[str, ...] = ()
    gone_endpoints: tuple[tuple[str, str], ...] = ()
    gone_services: tuple[tuple[str, str], ...] = ()
    #: All of the mesh, for agents that do not take `mesh_news`. None: as it was.
    mesh: MeshInfo | None = None
    #: None: as it was.
    mesh_news: MeshNews | None = None
    #: None: as it was.
    ways: WaysInfo | None = None

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return self.full or any((
            self.networks, self.endpoints, self.services, self.gone_networks, self.gone_endpoints, self.gone_services,
            self.mesh, self.mesh_news, self.ways,
        ))
