"""Addresses of `docker swarm init` and `join`: which one this host has for others, and what a new cluster is to have.

An address may be given as the name of one of the host's interfaces. What is wrong is told in dockerd's words (moby
daemon/cluster/listen_addr.go, swarm.go).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.ipam import AnyAddress as Address
from swarmlet.model.cluster import Cluster
from swarmlet.model.states import Availability
from swarmlet.swarm_spec import first_spec
from swarmlet.wire.joining import Founding

#: The addresses of a host's interface, None if there is no such interface.
Interfaces = Callable[[str], Sequence[Address] | None]

#: What clients send when nobody chose where managers listen.
UNSAID_LISTEN_ADDR = "0.0.0.0:2377"
#: What the docker command sends when nobody chose a size.
UNSAID_SUBNET_SIZE = 24
LONGEST_SUBNET_SIZE = 29


def advertised(text: str, default: Callable[[], str], interfaces: Interfaces) -> str:
    """The address others reach this host at: as asked for, or the default. InvalidArgument."""
    if not text:
        if not (host := default()):
            raise InvalidArgument(
                "could not choose an IP address to advertise since this system has no default route: "
                "specify one with --advertise-addr"
            )
        text = host
    return _resolved(
        host_of(text), interfaces,
        "advertise address must be a non-zero IP address or network interface (with optional port number)",
    )


def data_path(text: str, interfaces: Interfaces) -> str:
    """The address that packets of the cluster's networks use; "": the one that is advertised. InvalidArgument."""
    if not text:
        return ""
    return _resolved(
        text, interfaces,
        "data path address must be a non-zero IP address or network interface (without a port number)",
    )


def _resolved(host: str, interfaces: Interfaces, wrong: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as err:
        if not host or ":" in host:
            raise InvalidArgument(wrong) from err
    else:
        if address.is_unspecified:
            raise InvalidArgument(wrong)
        return str(address)
    found = interfaces(host)
    if found is None:
        raise InvalidArgument(f"{wrong}: no such interface {host}")
    # As dockerd: its IPv4 address; an IPv6 one where it has no other.
    for version in (4, 6):
        own = [address for address in found if address.version == version]
        if len(own) > 1:
            raise InvalidArgument(f"interface {host} has more than one IPv{version} address ({own[0]} and {own[1]})")
        if own:
            return str(own[0])
    raise InvalidArgument(f"interface {host} has no usable IPv4 or IPv6 address")


def listening(text: str, *, default: int, node_port: int) -> int:
    """The port that a manager of this host is to listen on, of "ADDRESS[:PORT]". NotSupported, InvalidArgument.

    default: that of the settings, which is also meant by what the docker command sends when nobody chose.
    """
    if text in ("", UNSAID_LISTEN_ADDR):
        return default
    host, port = host_of(text), with_port(text, default).rpartition(":")[2]
    if host not in ("", "0.0.0.0", "::"):
        raise NotSupported(f"ListenAddr {text} is not supported: managers listen on every address, say 0.0.0.0:{port}")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"listen address must be an IP address with an optional port number: {text}")
    if int(port) == node_port:
        raise InvalidArgument(f"ListenAddr {text} cannot be had: port {port} is this host's node_port")
    return int(port)


def founding_of(request: Mapping[str, Any]) -> Founding:
    """What an init asks for of the cluster. InvalidArgument, NotSupported."""
    pools, size, port = request.get("DefaultAddrPool") or [], request.get("SubnetSize") or 0, _port(request)
    spec = first_spec(request.get("Spec") or {})
    if not isinstance(pools, list) or not all(isinstance(pool, str) for pool in pools) or type(size) is not int:
        raise InvalidArgument("invalid JSON: DefaultAddrPool must be a list of strings and SubnetSize a number")
    if not pools and size in (0, UNSAID_SUBNET_SIZE):
        return Founding(data_path_port=port, spec=spec)
    size = size or UNSAID_SUBNET_SIZE
    if not 0 < size <= LONGEST_SUBNET_SIZE:
        raise InvalidArgument(f"subnet size is out of range: {size}")
    seen: list[ipaddress.IPv4Network] = []
    for text in pools or Cluster(id="").address_pools:
        pool = _pool(text)
        if size < pool.prefixlen:
            raise InvalidArgument(f'invalid CIDR: "{text}". Subnet size is too small for pool: {size}')
        if any(pool.overlaps(other) for other in seen):
            raise InvalidArgument(f"invalid base pool {text}: Pool overlaps with other one on this address space")
        seen.append(pool)
    return Founding(
        address_pools=tuple(str(pool) for pool in seen) if pools else (), subnet_size=size, data_path_port=port,
        spec=spec,
    )


def availability_of(request: Mapping[str, Any]) -> Availability:
    """What a node begins as. InvalidArgument."""
    said = request.get("Availability") or Availability.ACTIVE
    try:
        return Availability(said)
    except ValueError as err:
        raise InvalidArgument(f"invalid Availability: {said!r}: expected active, pause or drain") from err


def _pool(text: str) -> ipaddress.IPv4Network:
    try:
        pool = ipaddress.ip_network(text, strict=False)
    except ValueError as err:
        raise InvalidArgument(f"invalid base pool {text}: invalid CIDR address: {text}") from err
    if "/" not in text:
        raise InvalidArgument(f"invalid base pool {text}: invalid CIDR address: {text}")
    if not isinstance(pool, ipaddress.IPv4Network):
        raise NotSupported(
            f"invalid base pool {text}: DefaultAddrPool is for IPv4; networks with IPv6 get subnets of a unique local "
            "network of the cluster's own"
        )
    return pool


def _port(request: Mapping[str, Any]) -> int:
    """0: the default."""
    port = request.get("DataPathPort") or 0
    if type(port) is not int:
        raise InvalidArgument("invalid JSON: DataPathPort must be a number")
    if port and not 1024 <= port <= 49151:
        raise InvalidArgument(f"Datapath port number is not in valid range (1024-49151) : {port}")
    return port


def host_of(text: str) -> str:
    """The host of "host", "host:port", "[v6]:port" or "v6"."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text if text.count(":") > 1 else text.partition(":")[0]


def with_port(text: str, port: int) -> str:
    """ "host:port", with this port unless the text has one."""
    has_port = text.rpartition("]")[2].startswith(":") if text.startswith("[") else text.count(":") == 1
    return text if has_port else authority(host_of(text), port)


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
