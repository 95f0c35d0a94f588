"""Networks: what clients send to make one (Engine API 1.50: NetworkCreateRequest, IPAM), what they are shown, and the
stored record of a network that spans the cluster."""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct, Record

#: Network option: the MTU of containers' interfaces.
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_ENCRYPTED = "encrypted"


class IpamConfig(ApiStruct, frozen=True, kw_only=True):
    subnet: str = ""
    ip_range: str = field(name="IPRange", default="")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = {}


class Ipam(ApiStruct, frozen=True, kw_only=True):
    driver: str = "default"
    config: tuple[IpamConfig, ...] = ()
    options: dict[str, str] | None = None


class ConfigReference(ApiStruct, frozen=True, kw_only=True, omit_defaults=False):
    network: str = ""


class NetworkCreate(ApiStruct, frozen=True, kw_only=True):
    """POST /networks/create."""

    name: str = ""
    check_duplicate: bool = False
    driver: str = "bridge"
    scope: str = ""
    enable_ipv4: bool = field(name="EnableIPv4", default=True)
    enable_ipv6: bool = field(name="EnableIPv6", default=False)
    ipam: Ipam = field(name="IPAM", default=Ipam())
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference | None = None
    options: dict[str, str] = {}
    labels: dict[str, str] = {}

    @property
    def encrypted(self) -> bool:
        """Packets of it are encrypted between nodes (libnetwork: the option is there, and is not false)."""
        return self.options.get(OPTION_ENCRYPTED, "false").lower() not in ("false", "f", "0")


class NetworkContainer(ApiStruct, frozen=True, kw_only=True, omit_defaults=False):
    name: str
    endpoint_id: str = field(name="EndpointID")
    mac_address: str
    ipv4_address: str = field(name="IPv4Address")
    ipv6_address: str = field(name="IPv6Address", default="")


class NetworkView(ApiStruct, frozen=True, kw_only=True, omit_defaults=False):
    """GET /networks/{id}: every field is present."""

    name: str
    id: str
    created: str
    scope: str = "local"
    driver: str
    enable_ipv4: bool = field(name="EnableIPv4", default=True)
    enable_ipv6: bool = field(name="EnableIPv6", default=False)
    ipam: dict[str, object] = field(name="IPAM", default={})
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_from: ConfigReference = ConfigReference()
    config_only: bool = False
    containers: dict[str, NetworkContainer] = {}
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class Subnet(Record, frozen=True, kw_only=True):
    """One family's addresses of a network, as text; "" where there is none. chosen: by the user."""

    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    auxiliary: dict[str, str] = {}
    chosen: bool = False


class Network(Record, frozen=True, kw_only=True):
    """A stored network of the cluster (driver overlay). `spec` is the user's; addresses and VNI are the allocator's.

    subnet, gateway and ip_range are IPv4's, in the form that `Subnet` has.
    """

    id: str
    spec: NetworkCreate
    subnet: str
    gateway: str
    ip_range: str = ""
    #: Its IPv6 addresses; without a subnet it has no IPv6.
    v6: Subnet = Subnet()
    #: VXLAN network identifier: which of all networks a packet between nodes belongs to.
    vni: int
    #: Of the containers' interfaces, in bytes: what every node's underlay carries, or as the user chose.
    mtu: int = 1450
    created_at: int = 0
    updated_at: int = 0
    version: int = 0
    #: Removed for its users; its subnet and VNI are free once the last task on it has stopped.
    pending_delete: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def v4(self) -> Subnet:
        """Its IPv4 addresses in the form that both families share."""
        auxiliary = {
            name: text for config in self.spec.ipam.config for name, text in config.auxiliary_addresses.items()
            if ":" not in text
        }
        return Subnet(subnet=self.subnet, gateway=self.gateway, ip_range=self.ip_range, auxiliary=auxiliary)

    @property
    def families(self) -> tuple[Subnet, ...]:
        """Those that it has, IPv4 first."""
        return (self.v4, self.v6) if self.v6.subnet else (self.v4,)


def vxlan_mtu(underlay_mtu: int, address: str) -> int:
    """Bytes that a network of the cluster carries over an underlay: less the outer Ethernet, IP, UDP and VXLAN headers.

    address: a node's on the underlay.
    """
    return min(underlay_mtu, 65_535) - (70 if ":" in address else 50)


class NetworkAttachment(Record, frozen=True, kw_only=True):
    """A place in one of the cluster's networks, of a task, or a service's virtual one.

    Addresses in interface form ("10.0.1.5/24"); address6 "": the network has no IPv6. mac: as chosen by the user, "" =
    the one that follows from the IPv4 address.
    """

    network_id: str
    address: str
    mac: str = ""
    address6: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """IPv4 first."""
        return (self.address, self.address6) if self.address6 else (self.address,)


class Lease(Record, frozen=True, kw_only=True):
    """The address of a plain container (not a task's) in an attachable network, in interface form.

    id: the endpoint's, chosen by the node's agent. names: the container's in this network. mac "": as it follows from
    the address.
    """

    id: str
    network_id: str
    node_id: str
    container_id: str
    container_name: str
    address: str
    names: tuple[str, ...] = ()
    mac: str = ""
    created_at: int = 0
    version: int = 0
    address6: str = ""

    @property
    def place(self) -> NetworkAttachment:
        return NetworkAttachment(
            network_id=self.network_id, address=self.address, address6=self.address6, mac=self.mac
        )
