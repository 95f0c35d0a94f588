"""Addresses: which pools networks get their subnets from, which address a container gets. Pure.

Addresses are given in turn, not lowest first: a container that has just gone may have left frames, neighbour
entries and connection tracking behind, so its address rests while others are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network

from swarmlet.errors import InvalidArgument
from swarmlet.ipam import AnyAddress, AnyNetwork, PoolExhausted, parse_address, parse_subnet, unique_local_pools
from swarmlet.model.network import Subnet
from swarmlet_agent.net.records import AddressTaken, NetworkRecord


def default_pools() -> Iterator[IPv4Network]:
    """Docker's local pools in their order: 172.17-172.31 as /16, then 192.168.0.0/16 cut in /20."""
    for second in range(17, 32):
        yield IPv4Network((f"172.{second}.0.0", 16))
    yield from IPv4Network("192.168.0.0/16").subnets(new_prefix=20)


@dataclass(frozen=True, slots=True)
class Pools:
    """Where networks get their subnets: (base, size) in order; a family without any has its default."""

    configured: tuple[tuple[AnyNetwork, int], ...] = ()

    def of(self, version: int, seed: str = "") -> Iterator[AnyNetwork]:
        """Docker's own pools for IPv4, unique local ones (of the engine whose `seed` this is) for IPv6."""
        own = [(base, size) for base, size in self.configured if base.version == version]
        if own:
            for base, size in own:
                yield from base.subnets(new_prefix=size)
        else:
            yield from default_pools() if version == 4 else unique_local_pools(seed)


#: Nothing is configured.
DEFAULT_POOLS = Pools()


def parse_pools(texts: Iterable[str]) -> Pools:
    """Of "10.200.0.0/16:24" and the like. InvalidArgument."""
    found = []
    for text in texts:
        base, _, size = text.rpartition(":")
        network = parse_subnet(base, "base of the address pool")
        if not size.isdigit() or not network.prefixlen <= int(size) <= network.max_prefixlen - 2:
            raise InvalidArgument(f"invalid address pool {text!r}: expected BASE:SIZE, such as 10.200.0.0/16:24")
        found.append((network, int(size)))
    return Pools(tuple(found))


class AddressPool:
    """The addresses of one subnet of a network. Owned by the networks' own task; not persistent (leases are)."""

    def __init__(self, network: NetworkRecord, part: Subnet | None = None) -> None:
        part = part or network.v4
        self.network = network
        self.gateway = part.gateway
        self.subnet = ip_network(part.subnet)
        self._kind = type(self.subnet.network_address)
        self._range = ip_network(part.ip_range) if part.ip_range else self.subnet
        fixed = [*([part.gateway] if part.gateway else []), *part.auxiliary.values()]
        self._reserved = {int(ip_address(text)) for text in fixed}
        if self.subnet.prefixlen < self.subnet.max_prefixlen - 1:
            self._reserved |= {int(self.subnet.network_address)}
            if self.subnet.version == 4:  # IPv6 has no broadcast; its first address is the routers'
                self._reserved |= {int(self.subnet.broadcast_address)}
        self._taken: set[int] = set()
        self._next = int(self._range.network_address)

    @property
    def taken(self) -> int:
        """How many addresses are leased."""
        return len(self._taken)

    def take(self, wanted: str = "") -> AnyAddress:
        """Lease the wanted address, or the next free one. InvalidArgument, AddressTaken, PoolExhausted."""
        what = f"IPv{self.subnet.version} address"
        number = self._check(parse_address(wanted, what)) if wanted else self._free()
        self._taken.add(number)
        return self._kind(number)

    def hold(self, address: str) -> None:
        """Count an address as leased (a lease from the journal, or one that rests)."""
        self._taken.add(int(ip_address(address)))

    def give_back(self, address: str) -> None:
        """End a lease; one that is not there is fine."""
        self._taken.discard(int(ip_address(address)))

    def _check(self, address: AnyAddress) -> int:
        if address not in self.subnet:
            raise InvalidArgument(f"no configured subnet or ip-range contain the IP address {address}")
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
            f"no available IPv{self.subnet.version} addresses on this network's address pools: "
            f"{self.network.name} ({self.network.id})"
        )


class FamilyPool:
    """The addresses of one family of a network: most have one subnet of it, a macvlan network may have several."""

    def __init__(self, network: NetworkRecord, parts: Sequence[Subnet]) -> None:
        """parts: of one IP version, at least one."""
        self._network = network
        self._pools = tuple(AddressPool(network, part) for part in parts)

    @property
    def taken(self) -> int:
        """How many addresses are leased."""
        return sum(pool.taken for pool in self._pools)

    def of(self, address: AnyAddress) -> AddressPool:
        """The subnet an address is of: the first for one of none, which none ever is that was taken here."""
        return next((pool for pool in self._pools if address in pool.subnet), self._pools[0])

    def take(self, wanted: str = "") -> AnyAddress:
        """As AddressPool: from the first subnet that has one. InvalidArgument, AddressTaken, PoolExhausted."""
        if wanted:
            return self.of(parse_address(wanted, f"IPv{self._pools[0].subnet.version} address")).take(wanted)
        for pool in self._pools[:-1]:
            with suppress(PoolExhausted):
                return pool.take()
        return self._pools[-1].take()

    def take_again(self, before: str) -> AnyAddress:
        """Lease the address a container had once if it is free ("": it had none), else the next. PoolExhausted."""
        if before:
            with suppress(AddressTaken, InvalidArgument):
                return self.take(before)
        return self.take()

    def hold(self, address: str) -> None:
        """Count an address as leased (a lease from the journal, or one that rests)."""
        self.of(ip_address(address)).hold(address)

    def give_back(self, address: str) -> None:
        """End a lease; one that is not there is fine."""
        self.of(ip_address(address)).give_back(address)
