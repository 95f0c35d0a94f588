"""Networks: what clients send to make one (Engine API 1.50: NetworkCreateRequest, IPAM), what they are shown, and the
stored record of a network that spans the cluster."""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct, Record


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

    subnet and ip_range in prefix form, gateway without; ip_range "" = the whole subnet.
    """

    id: str
    spec: NetworkCreate
    subnet: str
    gateway: str
    ip_range: str = ""
    #: VXLAN network identifier: which of all networks a packet between nodes belongs to.
    vni: int
    #: Of the containers' interfaces, in bytes; what the underlay carries less VXLAN's 50.
    mtu: int = 1450
    created_at: int = 0
    updated_at: int = 0
    version: int = 0
    #: Removed for its users; its subnet and VNI are free once the last task on it has stopped.
    pending_delete: bool = False

    @property
    def name(self) -> str:
        return self.spec.name


class NetworkAttachment(Record, frozen=True, kw_only=True):
    """An address in one of the cluster's networks, in interface form ("10.0.1.5/24"): of a task, or a service's VIP.

    mac: as chosen by the user, "" = the one that follows from the address.
    """

    network_id: str
    address: str
    mac: str = ""


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
