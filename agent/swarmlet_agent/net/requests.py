"""Bodies of the Engine API's network calls (definitions IPAM, NetworkCreateRequest, NetworkConnectRequest …)."""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct
from swarmlet.model.container import EndpointSettings


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


class NetworkConnect(ApiStruct, frozen=True, kw_only=True):
    """POST /networks/{id}/connect."""

    container: str = ""
    endpoint_config: EndpointSettings = EndpointSettings()


class NetworkDisconnect(ApiStruct, frozen=True, kw_only=True):
    """POST /networks/{id}/disconnect."""

    container: str = ""
    force: bool = False


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
