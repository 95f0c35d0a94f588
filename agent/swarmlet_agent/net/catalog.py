"""The networks of this node in memory: records, their address pools, and looking them up."""

from __future__ import annotations

from ipaddress import ip_network

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.ipam import AnyNetwork
from swarmlet_agent.net.plan_ipam import FamilyPool
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord


class Catalog:
    """Owned by the networks; records change only through it."""

    def __init__(self) -> None:
        self.by_id: dict[str, NetworkRecord] = {}
        #: By network and IP version.
        self._pools: dict[tuple[str, int], FamilyPool] = {}

    def put(self, network: NetworkRecord) -> None:
        self.by_id[network.id] = network
        for version in (4, 6):
            parts = [part for part in network.subnets if (":" in part.subnet) == (version == 6)]
            if parts:
                self._pools[network.id, version] = FamilyPool(network, parts)

    def drop(self, network_id: str) -> None:
        self.by_id.pop(network_id, None)
        for version in (4, 6):
            self._pools.pop((network_id, version), None)

    def pool(self, network_id: str, version: int = 4) -> FamilyPool | None:
        """None for a network without such addresses (host and none have none at all)."""
        return self._pools.get((network_id, version))

    def hold(self, endpoint: EndpointRecord) -> None:
        """Count an endpoint's addresses as leased."""
        for version, address in ((4, endpoint.ip), (6, endpoint.ip6)):
            if address and (pool := self.pool(endpoint.network_id, version)) is not None:
                pool.hold(address)

    def give_back(self, endpoint: EndpointRecord) -> None:
        """End an endpoint's leases; its network may be gone already."""
        for version, address in ((4, endpoint.ip), (6, endpoint.ip6)):
            if address and (pool := self.pool(endpoint.network_id, version)) is not None:
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

    def with_links(self) -> list[NetworkRecord]:
        """Those that the kernel has something of: all but host and none."""
        return [network for network in list(self.by_id.values()) if not network.exclusive]

    def bridges(self) -> list[NetworkRecord]:
        return [network for network in list(self.by_id.values()) if network.bridge]

    def subnets(self) -> list[AnyNetwork]:
        return [ip_network(part.subnet) for network in self.by_id.values() for part in network.subnets]
