"""From a request to create a network to its record. Pure: the state of the host arrives as arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import IPv4Network

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound, NotSupported
from swarmlet_agent.net.plan_ipam import check_overlap, parse_address, parse_subnet, pick_subnet
from swarmlet_agent.net.records import PREDEFINED, NetworkRecord
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkCreate

_BRIDGE = "com.docker.network.bridge."
OPTION_NAME = _BRIDGE + "name"
OPTION_ICC = _BRIDGE + "enable_icc"
OPTION_MASQUERADE = _BRIDGE + "enable_ip_masquerade"
OPTION_HOST_BINDING = _BRIDGE + "host_binding_ipv4"
OPTION_DEFAULT = _BRIDGE + "default_bridge"
OPTION_MTU = "com.docker.network.driver.mtu"
#: Set by Compose and other clients on every network; it has no meaning for bridges we make.
_KNOWN = {OPTION_NAME, OPTION_ICC, OPTION_MASQUERADE, OPTION_HOST_BINDING, OPTION_DEFAULT, OPTION_MTU}
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}
_LINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
#: Bridges of user-defined networks: this and the id's first 12 characters (15 is what the kernel allows).
BRIDGE_PREFIX = "sw-"


def plan_network(
    request: NetworkCreate, *, network_id: str, now: int, existing: Mapping[str, NetworkRecord],
    host_routes: Collection[IPv4Network], links: Collection[str],
) -> NetworkRecord:
    """The record of a new user-defined bridge network.

    existing: networks by id; host_routes: of this namespace; links: interface names in use.
    Conflict, Forbidden, NotFound (driver), InvalidArgument, NotSupported, PoolOverlap, PoolExhausted.
    """
    _check_name(request.name, existing)
    _check_kind(request)
    options = request.options
    unknown = sorted(key for key in options if key not in _KNOWN and key.startswith("com.docker.network."))
    if unknown:
        raise NotSupported(f"network option {unknown[0]} is not supported")
    if not request.enable_ipv4:
        raise NotSupported("IPv4 cannot be disabled on a local network (EnableIPv4=false)")
    bridge = options.get(OPTION_NAME, "") or BRIDGE_PREFIX + network_id[:12]
    if not _LINK_NAME.fullmatch(bridge):
        raise InvalidArgument(f"invalid bridge name {bridge!r}: at most 15 of letters, digits, '_', '.' and '-'")
    if bridge in links:
        raise Conflict(f"cannot create network {request.name}: the host has an interface {bridge} already")
    config = _ipam_config(request.ipam)
    used = [IPv4Network(known.subnet) for known in existing.values() if known.subnet]
    subnet = parse_subnet(config.subnet) if config.subnet else pick_subnet(used, host_routes)
    if config.subnet:
        check_overlap(subnet, used)
        if subnet.prefixlen > 30:
            raise InvalidArgument(f"invalid subnet {subnet}: a bridge network needs at least a /30")
    return NetworkRecord(
        id=network_id, name=request.name, created_at=now, bridge=bridge, subnet=str(subnet),
        gateway=_gateway(config, subnet), ip_range=_ip_range(config, subnet),
        auxiliary=_auxiliary(config, subnet), chosen_subnet=bool(config.subnet),
        internal=request.internal, attachable=request.attachable, inter_container=_flag(options, OPTION_ICC, True),
        masquerade=_flag(options, OPTION_MASQUERADE, True), host_binding=_host_binding(options), mtu=_mtu(options),
        options=dict(options), labels=dict(request.labels), ipam_options=dict(request.ipam.options),
    )


def default_network(
    *, network_id: str, now: int, bridge: str, subnet: str, gateway: str = "", mtu: int = 1500, configured: str = ""
) -> NetworkRecord:
    """The network called "bridge". configured: the settings it is made from."""
    parsed = parse_subnet(subnet)
    return NetworkRecord(
        id=network_id, name="bridge", created_at=now, bridge=bridge, subnet=str(parsed),
        gateway=_gateway(IpamConfig(subnet=subnet, gateway=gateway), parsed), mtu=mtu, configured=configured,
        options={
            OPTION_DEFAULT: "true", OPTION_ICC: "true", OPTION_MASQUERADE: "true",
            OPTION_HOST_BINDING: "0.0.0.0", OPTION_NAME: bridge, OPTION_MTU: str(mtu),
        },
    )


def _check_name(name: str, existing: Mapping[str, NetworkRecord]) -> None:
    if not name.strip():
        raise InvalidArgument("invalid network name: name is empty")
    if name in (*PREDEFINED, "default"):
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if name != name.strip() or "/" in name or "\0" in name or name.startswith("container:"):
        raise InvalidArgument(f"invalid network name {name!r}: no surrounding blanks, no '/', no 'container:'")
    if any(known.name == name for known in existing.values()):
        raise Conflict(f"network with name {name} already exists")


def _check_kind(request: NetworkCreate) -> None:
    driver = request.driver or "bridge"
    if driver == "overlay" or request.scope in ("swarm", "global"):
        raise NotSupported(
            f"network {request.name} spans nodes (driver overlay or scope swarm): overlay networks are not supported "
            "yet; create a bridge network"
        )
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver in ("macvlan", "ipvlan"):
        raise NotSupported(f"network driver {driver} is not supported; use bridge")
    if driver != "bridge":
        raise NotFound(
            "plugin", driver, f'could not find plugin {driver} in v1 plugin registry: plugin "{driver}" not found'
        )
    if request.enable_ipv6:
        raise NotSupported("IPv6 networks are not supported yet; leave EnableIPv6 off")
    if request.ingress or request.config_only or (request.config_from is not None and request.config_from.network):
        raise NotSupported("ingress, config-only and config-from networks are not supported on a node")
    if request.ipam.driver not in ("", "default"):
        raise NotSupported(f"IPAM driver {request.ipam.driver} is not supported; use default")


def _ipam_config(ipam: Ipam) -> IpamConfig:
    if len(ipam.config) > 1:
        if any(":" in config.subnet for config in ipam.config):
            raise NotSupported("IPv6 subnets are not supported yet")
        raise InvalidArgument("bridge driver doesn't support multiple subnets")
    config = ipam.config[0] if ipam.config else IpamConfig()
    if ":" in config.subnet:
        raise NotSupported("IPv6 subnets are not supported yet")
    if not config.subnet and (config.gateway or config.ip_range or config.auxiliary_addresses):
        raise InvalidArgument("invalid network config: a gateway, IP range or auxiliary address needs a subnet")
    return config


def _gateway(config: IpamConfig, subnet: IPv4Network) -> str:
    if config.gateway:
        gateway = parse_address(config.gateway, "gateway address")
        if gateway not in subnet:
            raise InvalidArgument(f"invalid network config: gateway {gateway} is not in subnet {subnet}")
        if gateway in (subnet.network_address, subnet.broadcast_address):
            raise InvalidArgument(f"invalid network config: {gateway} cannot be a gateway in {subnet}")
        return str(gateway)
    first = parse_subnet(config.ip_range, "IP range").network_address if config.ip_range else subnet.network_address
    taken = set(config.auxiliary_addresses.values())
    candidate = first + 1 if first == subnet.network_address else first
    while str(candidate) in taken and candidate + 1 < subnet.broadcast_address:
        candidate += 1
    return str(candidate)


def _ip_range(config: IpamConfig, subnet: IPv4Network) -> str:
    if not config.ip_range:
        return ""
    wanted = parse_subnet(config.ip_range, "IP range")
    if not wanted.subnet_of(subnet):
        raise InvalidArgument(f"invalid network config: IP range {wanted} is not in subnet {subnet}")
    return str(wanted)


def _auxiliary(config: IpamConfig, subnet: IPv4Network) -> dict[str, str]:
    for name, text in config.auxiliary_addresses.items():
        if parse_address(text, f"auxiliary address {name}") not in subnet:
            raise InvalidArgument(f"invalid network config: auxiliary address {name}={text} is not in subnet {subnet}")
    return dict(config.auxiliary_addresses)


def _flag(options: Mapping[str, str], key: str, default: bool) -> bool:
    text = options.get(key, "").lower()
    if not text:
        return default
    if text not in _TRUE | _FALSE:
        raise InvalidArgument(f"invalid value {text!r} for network option {key}: expected true or false")
    return text in _TRUE


def _host_binding(options: Mapping[str, str]) -> str:
    text = options.get(OPTION_HOST_BINDING, "")
    return str(parse_address(text, f"network option {OPTION_HOST_BINDING}")) if text else "0.0.0.0"


def _mtu(options: Mapping[str, str]) -> int:
    text = options.get(OPTION_MTU, "")
    if not text:
        return 1500
    if not text.isdigit() or not 68 <= int(text) <= 65535:
        raise InvalidArgument(f"invalid value {text!r} for network option {OPTION_MTU}: expected 68 to 65535")
    return int(text)
