"""From what a container asks for to its places in the networks. Pure: networks are looked up by a function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network

import msgspec

from swarmlet.errors import Forbidden, InvalidArgument, NotFound
from swarmlet.ipam import parse_address
from swarmlet.model.container import EndpointSettings
from swarmlet.model.ids import short_id
from swarmlet_agent.net.netlink import mac_bytes
from swarmlet_agent.net.plan_endpoint import check_options
from swarmlet_agent.net.records import BRIDGE, HOST, NONE, SHARED, EndpointRecord, NetworkRecord
from swarmlet_agent.net.types import NetworkWish

_SHARING = (
    "container sharing network namespace with another container or host cannot be connected to any other network"
)

Lookup = Callable[[str], NetworkRecord]


@dataclass(frozen=True, slots=True)
class Place:
    """A wanted endpoint: which network, and what was asked for there."""

    network: NetworkRecord
    settings: EndpointSettings


def digest(wish: NetworkWish) -> str:
    """The same for the same wish: tells whether what is attached is what is wanted."""
    return hashlib.sha256(repr(_plain(wish)).encode()).hexdigest()[:16]


def _plain(wish: NetworkWish) -> tuple[object, ...]:
    endpoints = sorted((name, msgspec.json.encode(settings)) for name, settings in wish.endpoints.items())
    ports = sorted((key, msgspec.json.encode(bindings)) for key, bindings in wish.ports.items())
    rest = replace(wish, endpoints={}, ports={})
    return (endpoints, ports, repr(rest))


def kind_of(mode: str, share_with: str = "") -> str:
    """BRIDGE, HOST, NONE or SHARED, of a network mode."""
    if share_with or mode.startswith("container:"):
        return SHARED
    return mode if mode in (HOST, NONE) else BRIDGE


def places(wish: NetworkWish, lookup: Lookup) -> list[Place]:
    """Every network wanted, the one of the mode first, the others by name.

    Where endpoints are listed they are all there is: a container may have been taken off its mode's network.
    NotFound for an unknown network; InvalidArgument, Forbidden for what a network cannot do.
    """
    listed = {lookup(known_as(ref)).name: settings for ref, settings in sorted(wish.endpoints.items())}
    try:
        main = lookup(known_as(wish.mode))
    except NotFound:  # taken off it, and it is not here any more
        if not listed:
            raise
        main = lookup(min(listed))
    if listed and main.name not in listed and not main.exclusive:
        main = lookup(min(listed))
    wanted = {main.name: EndpointSettings(), **listed}
    if wish.mac_address and not wanted[main.name].mac_address:
        wanted[main.name] = msgspec.structs.replace(wanted[main.name], mac_address=wish.mac_address)
    found = [Place(lookup(name), settings) for name, settings in wanted.items()]
    for place in found:
        check_settings(place.network, place.settings, f"invalid config for network {place.network.name}: ")
    exclusive = [place.network.name for place in found if place.network.exclusive]
    if exclusive and len(found) > 1:
        raise InvalidArgument(
            "container cannot be connected to multiple networks with one of the networks in "
            f"{exclusive[0] if exclusive[0] != NONE else 'private (none)'} mode"
        )
    return found


def known_as(mode: str) -> str:
    """The name of the network that a network mode stands for."""
    return BRIDGE if mode in ("", "default", BRIDGE) else mode


def check_settings(network: NetworkRecord, settings: EndpointSettings, doing: str = "") -> None:
    """Refuse, in dockerd's words, what this network cannot do for an endpoint. doing: what the message begins with."""
    if network.blueprint:
        raise Forbidden("cannot create endpoint on configuration-only network")
    problems = [*_address_problems(network, settings)]
    if problems:
        told = "\n".join(f"* {problem}" for problem in problems) if len(problems) > 1 else problems[0]
        raise InvalidArgument(f"{doing}invalid endpoint settings:\n{told}")
    if settings.ipam_config is not None:
        link_local(settings.ipam_config.link_local_ips)
    check_options(settings.driver_opts)
    if settings.mac_address and network.driver == "ipvlan":
        raise InvalidArgument(
            f"network {network.name}: ipvlan interfaces do not support custom mac address assignment"
        )
    if settings.mac_address:
        check_mac(settings.mac_address)


def _address_problems(network: NetworkRecord, settings: EndpointSettings) -> Iterator[str]:
    ipam = settings.ipam_config
    asked = [
        (address, version, part)
        for address, version, part in (
            (ipam.ipv4_address, 4, network.v4), (ipam.ipv6_address, 6, network.v6),
        ) if address
    ] if ipam is not None else []  # fmt: skip
    if asked and network.predefined:
        yield "user specified IP address is supported on user defined networks only"
    if settings.aliases and network.predefined:
        yield "network-scoped aliases are only supported for user-defined networks"
    for address, version, _ in asked:
        if _address(address, version) is None:
            yield f"invalid IPv{version} address: {address}"
    for address, version, part in asked:
        if not part.chosen and not network.predefined and not network.unused_of(version):
            yield "user specified IP address is supported only when connecting to networks with user configured subnets"
        elif (known := _address(address, version)) is None or not _within(known, network, version):
            yield f"no configured subnet or ip-range contain the IP address {address}"


def _address(text: str, version: int) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address if address.version == version and not address.is_unspecified else None


def _within(address: IPv4Address | IPv6Address, network: NetworkRecord, version: int) -> bool:
    """In a subnet that addresses may be asked for in: on a predefined network, any of its own."""
    part = (network.v4, network.v6)[version == 6]
    parts = [*(network.subnets if part.chosen or network.predefined else ()), *network.unused_of(version)]
    ours = [ip_network(part.subnet) for part in parts]
    return any(address in subnet for subnet in ours if subnet.version == version)


def link_local(addresses: Sequence[str]) -> list[IPv4Interface | IPv6Interface]:
    """A container's further addresses of one link, with the prefixes of RFC 3927 and RFC 4291. InvalidArgument."""
    found = []
    for text in addresses:
        address = parse_address(text, "link-local IP address")
        if not address.is_link_local:
            raise InvalidArgument(f"invalid link-local IP address: {text}")
        found.append(ip_interface(f"{address}/{16 if address.version == 4 else 64}"))
    return found


def check_mac(mac: str) -> None:
    """InvalidArgument for what is no unicast MAC address."""
    try:
        data = mac_bytes(mac)
    except ValueError as err:
        raise InvalidArgument(f"invalid MAC address: {mac}") from err
    if data[0] & 1 or not any(data):
        raise InvalidArgument(f"invalid MAC address: {mac} is not a unicast address")


def veth_name(endpoint_id: str) -> str:
    return f"veth{endpoint_id[:9]}"


def dns_names(container_name: str, container_id: str, hostname: str, settings: EndpointSettings) -> tuple[str, ...]:
    """The names of an endpoint in a user-defined network, without repeats: name, aliases, short id, hostname."""
    names = [container_name, *settings.aliases, short_id(container_id), hostname]
    return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, slots=True)
class DefaultRoutes:
    """The endpoints that a container's packets for elsewhere leave by, one for each family; None: they cannot."""

    v4: EndpointRecord | None = None
    v6: EndpointRecord | None = None

    def of(self, endpoint: EndpointRecord) -> tuple[str, ...]:
        """What the default routes of this endpoint lead to."""
        found = []
        if self.v4 is not None and self.v4.id == endpoint.id:
            found.append(endpoint.ways_out[0])
        if self.v6 is not None and self.v6.id == endpoint.id:
            found.append(endpoint.ways_out[1])
        return tuple(found)

    @property
    def main(self) -> EndpointRecord | None:
        """The one whose network says where ports are published."""
        return self.v4 or self.v6

    @property
    def targets(self) -> tuple[str, str]:
        """The container's IPv4 and IPv6 address to publish ports of, "" for none."""
        return self.v4.ip if self.v4 is not None else "", self.v6.ip6 if self.v6 is not None else ""


def default_routes(
    endpoints: Sequence[EndpointRecord], networks: Mapping[str, NetworkRecord]
) -> DefaultRoutes:
    """Highest gw_priority, then one with both families, then the first name; never an internal network's."""
    outward = sorted(
        (endpoint for endpoint in endpoints if not networks[endpoint.network_id].closed),
        key=lambda endpoint: (-endpoint.wish.gw_priority, len(endpoint.addresses) < 2, endpoint.network),
    )
    return DefaultRoutes(
        v4=next((endpoint for endpoint in outward if endpoint.ways_out[0]), None),
        v6=next((endpoint for endpoint in outward if endpoint.ways_out[1]), None),
    )


def check_connect(kind: str, network: NetworkRecord) -> None:
    """Refuse to connect a running container of this kind to this network."""
    if network.driver == "host":
        raise InvalidArgument(
            "cannot connect container to host network - container must be created in host network mode"
        )
    if network.driver == "null" or kind == NONE:
        raise InvalidArgument(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )
    if kind in (HOST, SHARED):
        raise InvalidArgument(_SHARING)


def check_disconnect(network: NetworkRecord) -> None:
    if network.driver == "host":
        raise Forbidden(
            "cannot disconnect container from host network - container was created in host network mode"
        )
