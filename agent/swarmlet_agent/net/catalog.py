"""The networks of this node in memory: records, their address pools, and looking them up."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet_agent.net.plan_ipam import AddressPool
from swarmlet_agent.net.records import NetworkRecord


class Catalog:
    """Owned by the networks; records change only through it."""

    def __init__(self) -> None:
        self.by_id: dict[str, NetworkRecord] = {}
        self._pools: dict[str, AddressPool] = {}

    def put(self, network: NetworkRecord) -> None:
        self.by_id[network.id] = network
        if network.subnet:
            self._pools[network.id] = AddressPool(network)

    def drop(self, network_id: str) -> None:
        self.by_id.pop(network_id, None)
        self._pools.pop(network_id, None)

    def pool(self, network_id: str) -> AddressPool:
        """KeyError for a network without addresses (host, none)."""
        return self._pools[network_id]

    def give_back(self, network_id: str, address: str) -> None:
        """End a lease; its network may be gone already."""
        if address and (pool := self._pools.get(network_id)) is not None:
            pool.give_back(address)

    def find(self, ref: str) -> NetworkRecord | None:
        """By full name, full id, or an id prefix that only one has. InvalidArgument if several do."""
        if ref in self.by_id:
            return self.by_id[ref]
        for network in self.by_id.values():
            if network.name == ref:
                return network
        matches = [network for ident, network in self.by_id.items() if ref and ident.startswith(ref)]
        if len(matches) > 1:
            raise InvalidArgument(f"network {ref} is ambiguous ({len(matches)} matches found based on ID prefix)")
        return matches[0] if matches else None

    def get(self, ref: str) -> NetworkRecord:
        """As `find`; NotFound."""
        if (network := self.find(ref)) is None:
            raise NotFound("network", ref, f"network {ref} not found")
        return network

    def bridges(self) -> list[NetworkRecord]:
        return [network for network in list(self.by_id.values()) if network.bridge]

    def subnets(self, but: Iterable[str] = ()) -> list[IPv4Network]:
        return [IPv4Network(n.subnet) for n in self.by_id.values() if n.subnet and n.id not in set(but)]
