"""From the IPAM part of a request to a network's addresses of each family, for networks of a node and of the cluster.
Pure.

What is wrong with it is told in dockerd's words (moby api/types/network ValidateIPAM).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    NetmaskValueError,
    ip_address,
    ip_network,
)

from swarmlet.errors import Conflict, Forbidden, InvalidArgument
from swarmlet.model.network import Ipam, IpamConfig, Subnet

AnyNetwork = IPv4Network | IPv6Network
AnyAddress = IPv4Address | IPv6Address

#: A network of fewer addresses than this has none for a container, beside its own, its gateway's and its broadcast's.
_LONGEST_PREFIX = {4: 30, 6: 126}


class PoolExhausted(Conflict):
    """A network without a free address, or no subnet left (dockerd answers 500)."""

    status = 500


class PoolOverlap(Forbidden):
    """A wanted subnet that overlaps another network or a route of the host."""


def unique_local_pools(seed: str) -> Iterator[IPv6Network]:
    """/64 networks of the unique local /48 (RFC 4193) that belongs to an engine or a cluster. seed: its own."""
    prefix = b"\xfd" + hashlib.sha256(seed.encode()).digest()[:5]
    yield from IPv6Network((prefix + bytes(10), 48)).subnets(new_prefix=64)


def pick_subnet(
    used: Collection[AnyNetwork], host_routes: Collection[AnyNetwork], pools: Iterable[AnyNetwork]
) -> AnyNetwork:
    """The first pool that overlaps no network and no route of the host. PoolExhausted."""
    for pool in pools:
        if not any(pool.overlaps(other) for other in (*used, *host_routes)):
            return pool
    raise PoolExhausted("all predefined address pools have been fully subnetted")


def check_overlap(wanted: AnyNetwork, used: Iterable[AnyNetwork]) -> None:
    """PoolOverlap if a network of ours has addresses of `wanted`."""
    if any(wanted.overlaps(other) for other in used):
        raise PoolOverlap("invalid pool request: Pool overlaps with other one on this address space")


def parse_subnet(text: str, what: str = "subnet") -> AnyNetwork:
    """A network in prefix form; InvalidArgument for host bits, or what is no network."""
    try:
        return ip_network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as err:
        raise InvalidArgument(f"invalid {what} {text}: {err}") from err


def parse_address(text: str, what: str) -> AnyAddress:
    try:
        return ip_address(text)
    except (AddressValueError, ValueError) as err:
        raise InvalidArgument(f"invalid {what}: {text}") from err


def mac_of(address: AnyAddress) -> str:
    """02:42 and the last four bytes of the address, as Docker makes them of IPv4 addresses."""
    return (b"\x02\x42" + address.packed[-4:]).hex(":")


def check_ipam(ipam: Ipam, *, ipv6: bool) -> None:
    """InvalidArgument that names everything wrong. ipv6 False: IPv6 subnets are not looked at, as they are not used."""
    wrong: list[str] = []
    for config in ipam.config:
        try:
            subnet = ip_network(config.subnet, strict=False) if config.subnet else None
        except ValueError:
            wrong.append(f"invalid subnet {config.subnet}: invalid CIDR block notation")
            continue
        if subnet is None:
            if config.gateway or config.ip_range or config.auxiliary_addresses:
                wrong.append("a gateway, IP range or auxiliary address needs a subnet")
            continue
        if subnet.version == 4 or ipv6:
            wrong += _wrong_in(config, subnet)
    if wrong:
        raise InvalidArgument("invalid network config:\n" + "\n".join(wrong))


def _wrong_in(config: IpamConfig, subnet: AnyNetwork) -> Iterable[str]:
    if "/" not in config.subnet:
        yield f"invalid subnet {config.subnet}: invalid CIDR block notation"
    elif config.subnet.partition("/")[0] != str(subnet.network_address) and parse_address(
        config.subnet.partition("/")[0], "subnet"
    ) != subnet.network_address:
        yield f"invalid subnet {config.subnet}: it should be {subnet}"
    if subnet.prefixlen > _LONGEST_PREFIX[subnet.version]:
        yield f"invalid subnet {subnet}: a network needs at least a /{_LONGEST_PREFIX[subnet.version]}"
    if config.ip_range:
        yield from _wrong_range(config.ip_range, subnet)
    named = [("gateway", config.gateway)] if config.gateway else []
    for what, text in (*named, *(("auxiliary address", text) for text in config.auxiliary_addresses.values())):
        try:
            address = parse_address(text, what)
        except InvalidArgument:
            yield f"invalid {what} {text}: invalid address"
            continue
        if address.version != subnet.version:
            yield f"invalid {what} {text}: parent subnet is an IPv{subnet.version} block"
        elif address not in subnet:
            yield f"invalid {what} {text}: parent subnet {subnet} doesn't contain this address"
        elif what == "gateway" and subnet.version == 4 and address == subnet.broadcast_address:
            yield f"invalid gateway {text}: it is the broadcast address of {subnet}"
        elif what == "gateway" and address == subnet.network_address:
            yield f"invalid gateway {text}: it is the network address of {subnet}"


def _wrong_range(text: str, subnet: AnyNetwork) -> Iterable[str]:
    try:
        wanted = ip_network(text, strict=False)
    except ValueError:
        yield f"invalid ip-range {text}: invalid CIDR block notation"
        return
    if wanted.version != subnet.version:
        yield f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"
    elif parse_address(text.partition("/")[0], "ip-range") != wanted.network_address:
        yield f"invalid ip-range {text}: it should be {wanted}"
    elif wanted.prefixlen < subnet.prefixlen:
        yield f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"
    elif wanted.network_address not in subnet:
        yield f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"


def config_of(ipam: Ipam, version: int, driver: str) -> IpamConfig:
    """What is asked of one family. InvalidArgument for several subnets of it."""
    first, *others = configs_of(ipam, version)
    if others:
        raise InvalidArgument(f"{driver} driver doesn't support multiple subnets")
    return first


def configs_of(ipam: Ipam, version: int) -> list[IpamConfig]:
    """What is asked of one family, in order, for drivers whose networks may have several subnets of it; at least one,
    which may ask for nothing."""
    found = [config for config in ipam.config if config.subnet and ip_network(config.subnet).version == version]
    return found or [IpamConfig()]


def plan_family(
    config: IpamConfig, *, used: Collection[AnyNetwork], host_routes: Collection[AnyNetwork],
    pools: Iterable[AnyNetwork] = (),
) -> Subnet:
    """A family's addresses, as asked for or from the pools. PoolOverlap, PoolExhausted."""
    if config.subnet:
        subnet = parse_subnet(config.subnet)
        check_overlap(subnet, used)
    else:
        subnet = pick_subnet(used, host_routes, pools)
    return Subnet(
        subnet=str(subnet), gateway=str(_gateway(config, subnet)),
        ip_range=str(ip_network(config.ip_range)) if config.ip_range else "",
        auxiliary=dict(config.auxiliary_addresses), chosen=bool(config.subnet),
    )


def _gateway(config: IpamConfig, subnet: AnyNetwork) -> AnyAddress:
    """The one asked for; else the first address of the range, or of the subnet, that nothing else has."""
    if config.gateway:
        return parse_address(config.gateway, "gateway address")
    first = ip_network(config.ip_range).network_address if config.ip_range else subnet.network_address
    taken = {parse_address(text, "auxiliary address") for text in config.auxiliary_addresses.values()}
    candidate = first + 1 if first == subnet.network_address else first
    while candidate in taken and int(candidate) + 1 < int(subnet.broadcast_address):
        candidate += 1
    return candidate
