"""Addresses: which subnet a network gets, which address a container gets. Pure.

Addresses are given in turn, not lowest first: a container that has just gone may have left frames, neighbour
entries and connection tracking behind, so its address rests while others are free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from swarmlet.errors import InvalidArgument
from swarmlet_agent.net.records import AddressTaken, NetworkRecord, PoolExhausted, PoolOverlap


def default_pools() -> Iterator[IPv4Network]:
    """Docker's local pools in their order: 172.17-172.31 as /16, then 192.168.0.0/16 cut in /20."""
    for second in range(17, 32):
        yield IPv4Network((f"172.{second}.0.0", 16))
    yield from IPv4Network("192.168.0.0/16").subnets(new_prefix=20)


def pick_subnet(used: Collection[IPv4Network], host_routes: Collection[IPv4Network]) -> IPv4Network:
    """The first default pool that overlaps no network and no route of the host. PoolExhausted."""
    for pool in default_pools():
        if not any(pool.overlaps(other) for other in (*used, *host_routes)):
            return pool
    raise PoolExhausted("all predefined address pools have been fully subnetted")


def check_overlap(wanted: IPv4Network, used: Iterable[IPv4Network]) -> None:
    """PoolOverlap if a network of ours has addresses of `wanted`."""
    if any(wanted.overlaps(other) for other in used):
        raise PoolOverlap("invalid pool request: Pool overlaps with other one on this address space")


def parse_subnet(text: str, what: str = "subnet") -> IPv4Network:
    """A network in prefix form; InvalidArgument for host bits, IPv6, or what is no network."""
    try:
        return IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as err:
        raise InvalidArgument(f"invalid {what} {text}: {err}") from err


def parse_address(text: str, what: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except (AddressValueError, ValueError) as err:
        raise InvalidArgument(f"invalid {what}: {text}") from err


def mac_of(address: IPv4Address) -> str:
    """02:42 and the four bytes of the address, as Docker makes them."""
    return (b"\x02\x42" + address.packed).hex(":")


class AddressPool:
    """The addresses of one network. Owned by the networks' own task; not persistent (leases are)."""

    def __init__(self, network: NetworkRecord) -> None:
        self.network = network
        self.subnet = IPv4Network(network.subnet)
        self._range = IPv4Network(network.ip_range) if network.ip_range else self.subnet
        fixed = [network.gateway, *network.auxiliary.values()] if network.gateway else [*network.auxiliary.values()]
        self._reserved = {int(IPv4Address(text)) for text in fixed}
        if self.subnet.prefixlen < 31:
            self._reserved |= {int(self.subnet.network_address), int(self.subnet.broadcast_address)}
        self._taken: set[int] = set()
        self._next = int(self._range.network_address)

    @property
    def taken(self) -> int:
        """How many addresses are leased."""
        return len(self._taken)

    def take(self, wanted: str = "") -> IPv4Address:
        """Lease the wanted address, or the next free one. InvalidArgument, AddressTaken, PoolExhausted."""
        number = self._check(parse_address(wanted, "IPv4 address")) if wanted else self._free()
        self._taken.add(number)
        return IPv4Address(number)

    def take_again(self, before: str) -> IPv4Address:
        """Lease the address a container had once if it is free ("": it had none), else the next. PoolExhausted."""
        if before:
            with suppress(AddressTaken, InvalidArgument):
                return self.take(before)
        return self.take()

    def hold(self, address: str) -> None:
        """Count an address as leased (a lease from the journal, or one that rests)."""
        self._taken.add(int(IPv4Address(address)))

    def give_back(self, address: str) -> None:
        """End a lease; one that is not there is fine."""
        self._taken.discard(int(IPv4Address(address)))

    def _check(self, address: IPv4Address) -> int:
        if address not in self.subnet:
            raise InvalidArgument(
                f"no configured subnet contains IP address {address}: network {self.network.name} has {self.subnet}"
            )
        if int(address) in self._taken or int(address) in self._reserved:
            raise AddressTaken("Address already in use")
        return int(address)

    def _free(self) -> int:
        first, size = int(self._range.network_address), self._range.num_addresses
        # The walk ends: one step more than there are taken and reserved addresses must find a free one.
        for step in range(min(size, len(self._taken) + len(self._reserved) + 1)):
            number = first + (self._next - first + step) % size
            if number not in self._taken and number not in self._reserved:
                self._next = number + 1
                return number
        raise PoolExhausted(
            "no available IPv4 addresses on this network's address pools: "
            f"{self.network.name} ({self.network.id})"
        )
