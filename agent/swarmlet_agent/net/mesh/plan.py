"""What the routing mesh needs of one node's kernel, and how to get from one state to another. Pure.

A node's number is its place in the mesh for life: its addresses and MAC on `ing0`, its routing table and its mark
follow from it, so that the nodes need not tell each other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, ip_address, ip_network
from typing import Any

from swarmlet.errors import InvalidArgument
from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet_agent.net.netlink import mac_bytes
from swarmlet_agent.net.nftset import Change, Element
from swarmlet_agent.net.slots import Edits, fill

Address = IPv4Address | IPv6Address

DEVICE = "ing0"
VNI = 4096
#: Of our rules and routes (/etc/iproute2/rt_protos has no such number): how they are found again.
PROTOCOL = 83
#: Marks of connections and packets. ENTRY: came in here, translated; a connection's has its slot added while that is
#: being drawn. BACK + number: came from that node.
ENTRY, BACK, NUMBERS = 0x0100_0000, 0x0200_0000, 0xFFFF
#: Routing tables: this one leads to remote backends, this one + number back to the node of that number.
TABLES = 0x5357_0000
#: Places of our rules. Packets without a mark of ours leap from BEFORE to AFTER, past one rule for each node.
ENTRY_AT, BEFORE_AT, BACK_AT, AFTER_AT = 1500, 1501, 1502, 1503
#: The mesh's own addresses, never seen outside `ing0`; the node's number is added.
PREFIX4, PREFIX6 = int(IPv4Address("100.64.0.0")), int(IPv6Address("fd53:574c:6d65::"))
SUBNETS = ("100.64.0.0/16", "fd53:574c:6d65::/112")
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

#: address and port of a backend
Slot = tuple[str, int]


@dataclass(frozen=True, slots=True)
class MeshNode:
    """number: 1 to 65,534, unique and the same for all; address: of the network between the nodes.

    others: more addresses that the node's own processes and masqueraded containers may come from. From one that is not
    named, they cannot reach a backend on their own node by way of another node.
    """

    number: int
    address: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Backend:
    """A container's address and port. node: the number of the node it is on.

    serving False: it gets no new connections, but those that are open go on.
    """

    address: str
    port: int
    node: int
    serving: bool = True


@dataclass(frozen=True, slots=True)
class Published:
    """A published port. host_ip "": on every address of every node. local_only: a node sends to its own backends."""

    protocol: str
    port: int
    backends: tuple[Backend, ...] = ()
    host_ip: str = ""
    local_only: bool = False


@dataclass(frozen=True, slots=True)
class MeshState:
    """Everything the mesh of one node depends on.

    peers: the other nodes, also those that are down: what they open again must find its way back. containers: subnets
    of containers on this node. mtu: of `ing0`: the underlay's less 50 (IPv4 underlay) or 70 (IPv6).
    """

    own: MeshNode
    mtu: int
    peers: tuple[MeshNode, ...] = ()
    ports: tuple[Published, ...] = ()
    containers: tuple[str, ...] = ()
    #: UDP port of its VXLAN.
    port: int = DATA_PATH_PORT


@dataclass(frozen=True, slots=True)
class Device:
    """`ing0` itself. mac also says which number and address it was made for."""

    mac: str
    mtu: int
    local: str
    addresses: tuple[Address, ...]
    port: int = DATA_PATH_PORT


@dataclass(frozen=True, slots=True)
class Neighbour:
    """On `ing0`: what `mac` is reached by. A mesh address leads to a MAC, the MAC (`underlay`) to a node."""

    mac: str
    address: Address
    underlay: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """To one backend (or everything, if None) by a node's mesh address."""

    table: int
    gateway: Address
    to: Address | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule for packets whose mark & mask is mark. table 0: leap to the rule at `goto`, or nothing at all."""

    family: int
    at: int
    mark: int = 0
    mask: int = 0
    table: int = 0
    goto: int = 0


#: family, address it is bound to (b"": all), protocol, port
PortKey = tuple[int, bytes, int, int]
#: family, name of the set, element
Member = tuple[int, str, Element]


@dataclass(frozen=True, slots=True)
class Programmed:
    """What one node's kernel holds of the mesh, without the device.

    ways: address of each remote backend -> its node's number. Plain values, for there may be many thousands.
    """

    neighbours: frozenset[Neighbour] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    members: frozenset[Member] = frozenset()
    ways: Mapping[str, int] = field(default_factory=dict)
    slots: Mapping[PortKey, tuple[Slot, ...]] = field(default_factory=dict)

    @property
    def forwards_ipv6(self) -> bool:
        return any(key[0] == 6 and slots for key, slots in self.slots.items())


def device(state: MeshState, *, ipv6: bool) -> Device:
    addresses = mesh_addresses(state.own.number, ipv6=ipv6)
    return Device(mac_of(state.own), state.mtu, state.own.address, addresses, state.port)


def mesh_addresses(number: int, *, ipv6: bool) -> tuple[Address, ...]:
    if not 0 < number < NUMBERS:
        raise InvalidArgument(f"node number {number} is not between 1 and {NUMBERS - 1}")
    return (IPv4Address(PREFIX4 + number), *((IPv6Address(PREFIX6 + number),) if ipv6 else ()))


def mac_of(node: MeshNode) -> str:
    """Of a node's `ing0`. Another address of the node is another MAC, so that nobody sends to where it was."""
    place = blake2s(ip_address(node.address).packed, digest_size=2).digest()
    return (b"\x02\xee" + place + struct.pack("!H", node.number)).hex(":")


def plan(before: Programmed, state: MeshState, *, ipv6: bool = True) -> Programmed:
    """What the kernel should hold. ipv6: whether this kernel has it."""
    families = (4, 6) if ipv6 else (4,)
    slots: dict[PortKey, tuple[Slot, ...]] = {}
    for port in state.ports:
        for key, backends in _backends(port, state.own.number, families).items():
            slots[key] = fill(before.slots.get(key, ()), backends)
    neighbours: set[Neighbour] = set()
    routes: set[Route] = set()
    rules = {rule for family in families for rule in _standing_rules(family)}
    for peer in state.peers:
        neighbours.add(Neighbour(mac_of(peer), ip_address(peer.address), underlay=True))
        for address in mesh_addresses(peer.number, ipv6=ipv6):
            neighbours.add(Neighbour(mac_of(peer), address))
            routes.add(Route(TABLES + peer.number, address))
            rules.add(Rule(address.version, BACK_AT, BACK | peer.number, BACK | NUMBERS, TABLES + peer.number))
    peers = {peer.number for peer in state.peers}
    ways = {
        backend.address: backend.node
        for port in state.ports if not port.local_only
        for backend in port.backends if backend.node in peers and (ipv6 or ":" not in backend.address)
    }
    return Programmed(
        frozenset(neighbours), frozenset(routes), frozenset(rules), frozenset(_members(state, families)), ways, slots
    )


def way(address: str, number: int) -> Route:
    """The route to a remote backend on the node of that number."""
    to = ip_address(address)
    return Route(TABLES, mesh_addresses(number, ipv6=True)[to.version == 6], to)


def split_ways(routes: Iterable[Route]) -> tuple[frozenset[Route], dict[str, int]]:
    """Routes as the kernel has them, as those back to nodes and the ways to backends."""
    back, ways = set(), {}
    for route in routes:
        if route.table == TABLES and route.to is not None:
            ways[str(route.to)] = int(route.gateway) - (PREFIX4 if route.to.version == 4 else PREFIX6)
        else:
            back.add(route)
    return frozenset(back), ways


def elements(table: str, before: Programmed, after: Programmed) -> tuple[Change, ...]:
    """The element changes from one to the other, `in_turn`."""
    edits = Edits(table, ENTRY)
    # Intervals that change are made anew, all of their family: half of one is refused beside the other half.
    anew = {family for family, name, _ in before.members ^ after.members if name == "containers"}
    whole = {member for member in before.members & after.members if member[0] in anew and member[1] == "containers"}
    for family, name, element in sorted((before.members - after.members) | whole, key=_order):
        edits.remove(family, name, element)
    for family, name, element in sorted((after.members - before.members) | whole, key=_order):
        edits.add(family, name, element)
    for key in sorted({*before.slots, *after.slots}):
        old, new = before.slots.get(key), after.slots.get(key)
        if old == new:
            continue
        family, host_ip, protocol, port = key
        packed = host_ip + _port(protocol, port)
        if old is None:
            edits.add(family, "oneports" if host_ip else "ports", Element(packed))
        if new is None:
            edits.remove(family, "oneports" if host_ip else "ports", Element(packed))
        edits.move(family, "one" if host_ip else "any", packed, old or (), new or (), _target)
    return edits.changes()


def _backends(port: Published, own: int, families: tuple[int, ...]) -> dict[PortKey, list[Slot]]:
    """The port in each address family that it is served in. A port without backends is refused in all of them."""
    if port.protocol not in PROTOCOLS:
        raise InvalidArgument(f"protocol {port.protocol} of port {port.port} cannot be published")
    host = ip_address(port.host_ip) if port.host_ip else None
    found: dict[PortKey, list[Slot]] = {}
    for family in families:
        backends = [backend for backend in port.backends if (":" in backend.address) == (family == 6)]
        if (host is not None and host.version != family) or (port.backends and not backends):
            continue
        key = (family, host.packed if host is not None else b"", PROTOCOLS[port.protocol], port.port)
        found[key] = [
            (backend.address, backend.port)
            for backend in backends if backend.serving and (not port.local_only or backend.node == own)
        ]
    return found


def _standing_rules(family: int) -> tuple[Rule, ...]:
    return (
        Rule(family, ENTRY_AT, ENTRY, ENTRY, TABLES),
        Rule(family, BEFORE_AT, 0, BACK, goto=AFTER_AT),
        Rule(family, AFTER_AT),
    )


def _members(state: MeshState, families: tuple[int, ...]) -> set[Member]:
    found: set[Member] = set()
    for peer in state.peers:
        mark = struct.pack("=I", BACK | peer.number)
        for family in families:
            found.add((family, "peer", Element(mac_bytes(mac_of(peer)), mark)))
    for node in state.peers:
        for address in map(ip_address, (node.address, *node.others)):
            if address.version in families:
                found.add((address.version, "nodes", Element(address.packed)))
    for family in families:
        bits = 32 if family == 4 else 128
        for first, after in _ranges(state, family):
            for key, end in ((first, False), (after % (1 << bits), True)):
                found.add((family, "containers", Element(key.to_bytes(bits // 8, "big"), end=end)))
    return found


def _ranges(state: MeshState, family: int) -> list[tuple[int, int]]:
    """The containers' addresses, as first and first behind. Those side by side are one: the kernel refuses an interval
    that begins where another has not been ended yet."""
    networks: Iterator[Any] = (
        network for text in state.containers if (network := ip_network(text)).version == family
    )
    ranges: list[tuple[int, int]] = []
    for network in collapse_addresses(networks):
        first = int(network.network_address)
        after = first + network.num_addresses
        if ranges and ranges[-1][1] == first:
            ranges[-1] = ranges[-1][0], after
        else:
            ranges.append((first, after))
    return ranges


def _port(protocol: int, port: int) -> bytes:
    return struct.pack("!BxxxHxx", protocol, port)


def _target(slot: Slot) -> bytes:
    address, port = slot
    return ip_address(address).packed + struct.pack("!Hxx", port)


def _order(member: Member) -> tuple[int, str, bytes, bool]:
    family, name, element = member
    return family, name, element.key, element.end
