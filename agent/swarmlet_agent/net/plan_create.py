"""From a request to create a network to its record. Pure: the state of the host arrives as arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import ip_network

from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotAManager, NotFound, NotSupported
from swarmlet.ipam import AnyNetwork, check_ipam, config_of, configs_of, parse_address, plan_family
from swarmlet.model.network import OPTION_MTU, Subnet
from swarmlet_agent.net.plan_config import config_network, resolved
from swarmlet_agent.net.plan_endpoint import OPTION_NAME_PREFIX
from swarmlet_agent.net.plan_ipam import DEFAULT_POOLS, Pools
from swarmlet_agent.net.plan_parents import KINDS, OPTION_FAMILY, plan_parent
from swarmlet_agent.net.records import PREDEFINED, NetworkRecord
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkCreate

_BRIDGE = "com.docker.network.bridge."
OPTION_NAME = _BRIDGE + "name"
OPTION_ICC = _BRIDGE + "enable_icc"
OPTION_MASQUERADE = _BRIDGE + "enable_ip_masquerade"
OPTION_HOST_BINDING = _BRIDGE + "host_binding_ipv4"
OPTION_REACH = {4: _BRIDGE + "gateway_mode_ipv4", 6: _BRIDGE + "gateway_mode_ipv6"}
OPTION_INHIBIT = _BRIDGE + "inhibit_ipv4"
OPTION_DEFAULT = _BRIDGE + "default_bridge"
#: Set by Compose and other clients on every network; it has no meaning for bridges we make.
_KNOWN = {
    OPTION_NAME, OPTION_ICC, OPTION_MASQUERADE, OPTION_HOST_BINDING, OPTION_DEFAULT, OPTION_MTU, OPTION_NAME_PREFIX,
    OPTION_INHIBIT, *OPTION_FAMILY.values(), *OPTION_REACH.values(),
}
_REACHES = ("nat", "nat-unprotected", "routed", "isolated")
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}
_LINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
#: Bridges of user-defined networks: this and the id's first 12 characters (15 is what the kernel allows).
BRIDGE_PREFIX = "sw-"


def plan_network(
    request: NetworkCreate, *, network_id: str, now: int, existing: Mapping[str, NetworkRecord],
    host_routes: Collection[AnyNetwork], links: Collection[str], pools: Pools = DEFAULT_POOLS, seed: str = "",
) -> NetworkRecord:
    """The record of a new user-defined network.

    existing: networks by id; host_routes: of this namespace; links: interface names in use. seed: this engine's own,
    from which its unique local IPv6 networks follow.
    Conflict, Forbidden, NotFound (driver), InvalidArgument, NotSupported, PoolOverlap, PoolExhausted.
    """
    _check_name(request.name, existing)
    if request.config_only:
        return config_network(request, network_id=network_id, now=now)
    request = _with_families(resolved(request, existing))
    _check_kind(request)
    if not request.enable_ipv4 and not request.enable_ipv6:
        raise InvalidArgument("IPv4 or IPv6 must be enabled")
    driver = request.driver or "bridge"
    check_ipam(request.ipam, ipv6=request.enable_ipv6)
    used = [ip_network(part.subnet) for known in existing.values() for part in known.subnets]
    parts: dict[int, list[Subnet]] = {4: [], 6: []}
    for version in (*((4,) if request.enable_ipv4 else ()), *((6,) if request.enable_ipv6 else ())):
        several = driver in KINDS
        asked = configs_of(request.ipam, version) if several else [config_of(request.ipam, version, driver)]
        for config in asked:
            part = plan_family(config, used=used, host_routes=host_routes, pools=pools.of(version, seed))
            parts[version].append(part)
            used.append(ip_network(part.subnet))
    v4, *more4 = parts[4] or [Subnet()]
    v6, *more6 = parts[6] or [Subnet()]
    record = NetworkRecord(
        id=network_id, name=request.name, driver=driver, created_at=now, subnet=v4.subnet, gateway=v4.gateway,
        ip_range=v4.ip_range, auxiliary=v4.auxiliary, chosen_subnet=v4.chosen, v6=v6, more=(*more4, *more6),
        unused=_unused(request.ipam, [version for version, some in parts.items() if not some]),
        internal=request.internal, attachable=request.attachable,
        options=dict(request.options), labels=dict(request.labels),
        ipam_options=None if request.ipam.options is None else dict(request.ipam.options),
    )
    if request.config_from is not None:
        record = replace(record, config_from=request.config_from.network)
    if driver in KINDS:
        parent = plan_parent(KINDS[driver], request, network_id, existing.values(), links)
        return replace(record, parent=parent.name, mode=parent.mode, flag=parent.flag)
    return _bridge_network(record, links)


def _with_families(request: NetworkCreate) -> NetworkCreate:
    """The families that options ask for are enabled, unless the request says something of them by itself."""
    wanted = {}
    for version, field in OPTION_FAMILY.items():
        text = request.options.get(field, "").lower()
        if text and text not in _TRUE | _FALSE:
            raise InvalidArgument(f'driver-opt "{field}" is not a valid bool')
        wanted[version] = text
    return replace(
        request,
        enable_ipv4=request.enable_ipv4 and wanted[4] not in _FALSE,
        enable_ipv6=request.enable_ipv6 or wanted[6] in _TRUE,
    )


def _unused(ipam: Ipam, versions: Collection[int]) -> tuple[Subnet, ...]:
    """What was asked for of families that are not enabled: dockerd keeps it and shows it."""
    return tuple(
        Subnet(
            subnet=config.subnet, gateway=config.gateway, ip_range=config.ip_range,
            auxiliary=dict(config.auxiliary_addresses), chosen=True,
        )
        for version in versions for config in configs_of(ipam, version) if config.subnet
    )


def _bridge_network(record: NetworkRecord, links: Collection[str]) -> NetworkRecord:
    """With what only the driver bridge has."""
    options = record.options
    unknown = sorted(key for key in options if key not in _KNOWN and key.startswith("com.docker.network."))
    if unknown:
        raise NotSupported(f"network option {unknown[0]} is not supported")
    prefix = options.get(OPTION_NAME_PREFIX, "eth")
    if not _LINK_NAME.fullmatch(prefix + "0000"):
        raise InvalidArgument(f"invalid value {prefix!r} for network option {OPTION_NAME_PREFIX}")
    bridge = options.get(OPTION_NAME, "") or BRIDGE_PREFIX + record.id[:12]
    if not _LINK_NAME.fullmatch(bridge):
        raise InvalidArgument(f"invalid bridge name {bridge!r}: at most 15 of letters, digits, '_', '.' and '-'")
    if bridge in links:
        raise Conflict(f"cannot create network {record.name}: the host has an interface {bridge} already")
    return replace(
        record, bridge=bridge, inter_container=_flag(options, OPTION_ICC, True),
        masquerade=_flag(options, OPTION_MASQUERADE, True), host_binding=_host_binding(options), mtu=_mtu(options),
        reach4=_reach(record, 4), reach6=_reach(record, 6), inhibit=_flag(options, OPTION_INHIBIT, False),
    )


def default_network(
    *, network_id: str, now: int, bridge: str, subnet: str, subnet6: str = "", gateway: str = "", mtu: int = 1500,
    configured: str = "",
) -> NetworkRecord:
    """The network called "bridge". configured: the settings it is made from."""
    config = IpamConfig(subnet=subnet, gateway=gateway)
    config6 = IpamConfig(subnet=subnet6)
    check_ipam(Ipam(config=(config, config6)), ipv6=True)
    v4 = plan_family(config, used=(), host_routes=())
    return NetworkRecord(
        id=network_id, name="bridge", created_at=now, bridge=bridge, subnet=v4.subnet, gateway=v4.gateway,
        v6=plan_family(config6, used=(), host_routes=()) if subnet6 else Subnet(), mtu=mtu, configured=configured,
        options={
            OPTION_DEFAULT: "true", OPTION_ICC: "true", OPTION_MASQUERADE: "true",
            OPTION_HOST_BINDING: "0.0.0.0", OPTION_NAME: bridge, OPTION_MTU: str(mtu),
        },
    )


def _check_name(name: str, existing: Mapping[str, NetworkRecord]) -> None:
    if not name.strip():
        raise InvalidArgument("invalid name: name is empty")
    if name in (*PREDEFINED, "default"):
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if name != name.strip() or "/" in name or "\0" in name or name.startswith("container:"):
        raise InvalidArgument(f"invalid network name {name!r}: no surrounding blanks, no '/', no 'container:'")
    if any(known.name == name for known in existing.values()):
        raise Conflict(f"network with name {name} already exists")


def _check_kind(request: NetworkCreate) -> None:
    driver = request.driver or "bridge"
    if driver == "overlay" or request.scope in ("swarm", "global"):
        raise NotAManager
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver not in ("bridge", *KINDS):
        raise NotFound(
            "plugin", driver, f'plugin "{driver}" not found'
        )
    if request.ingress:
        raise NotSupported("ingress networks are not supported on a node")
    if request.ipam.driver not in ("", "default"):
        raise NotFound("plugin", request.ipam.driver, f'plugin "{request.ipam.driver}" not found')


def _reach(network: NetworkRecord, version: int) -> str:
    """The gateway mode of a family, in dockerd's words."""
    key = OPTION_REACH[version]
    mode = network.options.get(key, "") or "nat"
    if mode not in _REACHES:
        raise InvalidArgument(f"unknown gateway mode {mode} in {key}: expected one of {', '.join(_REACHES)}")
    if mode == "isolated" and not network.internal:
        raise InvalidArgument("gateway mode 'isolated' can only be used for an internal network")
    return mode


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
