"""What the networks remember, in the journal and in memory, and their errors."""

from __future__ import annotations

from swarmlet.errors import Conflict, SwarmletError
from swarmlet.model.base import Record
from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.model.container import EndpointSettings, PortBinding
from swarmlet.model.network import Subnet

BRIDGE, HOST, NONE, SHARED = "bridge", "host", "none", "shared"
PREDEFINED = (BRIDGE, HOST, NONE)
#: Parents of closed networks of the drivers macvlan and ipvlan: these and the id's first 12 characters.
OWN_PARENTS = ("dm-", "di-")


class PortTaken(Conflict):
    """A host port that another container publishes or a process of the host listens on (dockerd answers 500)."""

    status = 500


class AddressTaken(Conflict):
    """A wanted address that is in use (dockerd answers 403)."""

    status = 403


class NotConnected(Conflict):
    """A container that is to be taken off a network it is not on (dockerd answers 500)."""

    status = 500


class NetworkFailure(SwarmletError):
    """A binding that the host cannot have (an address that is not its own). 500."""


class NetworkRecord(Record, frozen=True, kw_only=True):
    """A network on this node. driver: bridge, macvlan, ipvlan, host or null; overlay for the cluster's.

    subnet, gateway, ip_range: IPv4's first, as text; "" where there is none.
    """

    id: str
    name: str
    driver: str = "bridge"
    created_at: int = 0
    bridge: str = ""
    #: Of a macvlan or ipvlan network: the host's interface that its containers sit on, and how they see each other.
    parent: str = ""
    mode: str = ""
    flag: str = ""
    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    auxiliary: dict[str, str] = {}
    #: Of an overlay network: its VXLAN number and UDP port, and this node's address for the other nodes.
    vni: int = 0
    port: int = DATA_PATH_PORT
    #: It is the routing mesh's: nothing on it has a name.
    ingress: bool = False
    underlay: str = ""
    #: The user chose the subnet: containers may then ask for addresses.
    chosen_subnet: bool = False
    #: Its IPv6 addresses; without a subnet it has no IPv6.
    v6: Subnet = Subnet()
    #: Further subnets of either family, each with a gateway of its own: only of a macvlan or ipvlan network.
    more: tuple[Subnet, ...] = ()
    #: Asked for, of a family that the network does not have: containers may name addresses there, and get none.
    unused: tuple[Subnet, ...] = ()
    internal: bool = False
    attachable: bool = False
    inter_container: bool = True
    masquerade: bool = True
    host_binding: str = "0.0.0.0"
    mtu: int = 1500
    #: How the outside reaches containers, by family: nat, nat-unprotected, routed or isolated.
    reach4: str = "nat"
    reach6: str = "nat"
    #: The bridge has no IPv4 address: someone else is the gateway.
    inhibit: bool = False
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    #: Of a configuration network: the request it was made with, JSON; no other network has one.
    blueprint: str = ""
    #: The name of the configuration network that this one was made from.
    config_from: str = ""
    #: As given: inspect tells none from {}.
    ipam_options: dict[str, str] | None = None
    #: Of the default network: the settings it was made from, to see when they change.
    configured: str = ""

    @property
    def predefined(self) -> bool:
        return self.name in PREDEFINED

    @property
    def scope(self) -> str:
        return "swarm" if self.driver == "overlay" else "local"

    @property
    def exclusive(self) -> bool:
        """True for host and none: a container on one of them is on no other network."""
        return self.driver in ("host", "null")

    @property
    def closed(self) -> bool:
        """Nothing leads out of it."""
        return self.internal or self.parent.startswith(OWN_PARENTS)

    @property
    def routed(self) -> bool:
        """Its containers send everything out by the interface: the host's own routes say where it goes."""
        return self.driver == "ipvlan" and self.mode != "l2"

    @property
    def bridge_parts(self) -> tuple[Subnet, ...]:
        """The families whose gateway address the bridge has."""
        return tuple(
            part for part, reach, without in ((self.v4, self.reach4, self.inhibit), (self.v6, self.reach6, False))
            if part.subnet and reach != "isolated" and not without
        )

    @property
    def v4(self) -> Subnet:
        """Its IPv4 addresses in the form that both families share."""
        return Subnet(
            subnet=self.subnet, gateway=self.gateway, ip_range=self.ip_range, auxiliary=self.auxiliary,
            chosen=self.chosen_subnet,
        )

    @property
    def families(self) -> tuple[Subnet, ...]:
        """Those that it has, IPv4 first."""
        return tuple(part for part in (self.v4, self.v6) if part.subnet)

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """All of them, in the order they were asked for, IPv4's first."""
        return tuple(sorted((*self.families, *self.more), key=lambda part: ":" in part.subnet))

    def unused_of(self, version: int) -> tuple[Subnet, ...]:
        return tuple(part for part in self.unused if (6 if ":" in part.subnet else 4) == version)


class EndpointRecord(Record, frozen=True, kw_only=True):
    """A container's place in one network. wish: what was asked for. gateway "": none (internal network).

    ip, prefix, gateway are IPv4's, those with a 6 IPv6's. direct: whatever is elsewhere is sent out by the interface
    itself, without a gateway.
    """

    id: str
    network_id: str
    network: str
    interface: str = ""
    veth: str = ""
    ip: str = ""
    prefix: int = 0
    gateway: str = ""
    ip6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    direct: bool = False
    mac: str = ""
    names: tuple[str, ...] = ()
    #: A plain container's place in a network of the cluster: `id` is its lease's.
    leased: bool = False
    wish: EndpointSettings = EndpointSettings()

    def settings(self) -> EndpointSettings:
        """As inspect shows it."""
        return EndpointSettings(
            ipam_config=self.wish.ipam_config, links=self.wish.links, aliases=self.wish.aliases,
            driver_opts=self.wish.driver_opts, gw_priority=self.wish.gw_priority, mac_address=self.mac,
            network_id=self.network_id, endpoint_id=self.id, gateway=self.gateway, ip_address=self.ip,
            ip_prefix_len=self.prefix, ipv6_gateway=self.gateway6, global_ipv6_address=self.ip6,
            global_ipv6_prefix_len=self.prefix6, dns_names=self.names,
        )

    @property
    def ways_out(self) -> tuple[str, str]:
        """What its default routes would lead to, by family: a gateway, the unspecified address, or "" for none."""
        v4, v6 = ("0.0.0.0" if self.ip else "", "::" if self.ip6 else "") if self.direct else ("", "")
        return self.gateway or v4, self.gateway6 or v6

    @property
    def addresses(self) -> tuple[str, ...]:
        """IPv4 first; () without any."""
        return tuple(address for address in (self.ip, self.ip6) if address)


class PortRecord(Record, frozen=True, kw_only=True):
    """One published port: host_ip:host_port leads to the container's port at target_ip.

    host_port 0: no port of the host, the container's own is open to whoever has a route to it.

    The two may be of different families: then a relay leads there, not the kernel.
    """

    port: int
    protocol: str
    host_ip: str
    host_port: int
    target_ip: str

    @property
    def direct(self) -> bool:
        """True if the kernel's address translation can lead there."""
        return (":" in self.host_ip) == (":" in self.target_ip)


class SandboxRecord(Record, frozen=True, kw_only=True):
    """A container's whole attachment. dns_port 0: no embedded DNS. digest: of the wish, to know it again."""

    container_id: str
    container_name: str
    sandbox_id: str
    kind: str  # BRIDGE, HOST, NONE, or SHARED: that of another container
    digest: str = ""
    hostname: str = ""
    endpoints: tuple[EndpointRecord, ...] = ()
    ports: tuple[PortRecord, ...] = ()
    port_wishes: dict[str, tuple[PortBinding, ...]] = {}
    dns_port: int = 0
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    domainname: str = ""
    extra_hosts: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    share_with: str = ""
    user_namespace: str = ""

    @property
    def has_namespace(self) -> bool:
        """True if it is in a network namespace of its own, which is ours to make and to end."""
        return self.kind not in (HOST, SHARED)

    def on(self, network_id: str) -> EndpointRecord | None:
        """The endpoint in a network, None if it has none there."""
        return next((endpoint for endpoint in self.endpoints if endpoint.network_id == network_id), None)
