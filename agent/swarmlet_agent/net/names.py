"""Who is called what in which network: the data behind the embedded DNS. In memory, owned by the networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from swarmlet_agent.net.overlay.directory import Directory
from swarmlet_agent.net.records import EndpointRecord


@dataclass(slots=True)
class _Zone:
    """One network. by_name: name -> {endpoint id: addresses}; by_address: address -> first name."""

    network: str
    by_name: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    by_address: dict[str, str] = field(default_factory=dict)
    #: What a manager tells of a network of the cluster.
    shared: Directory | None = None

    def addresses(self, name: str) -> list[str] | None:
        held = self.by_name.get(name)
        found = [] if held is None else [address for addresses in held.values() for address in addresses]
        told = None if self.shared is None else self.shared.by_name.get(name)
        if held is None and told is None:
            return None
        return list(dict.fromkeys([*found, *(told or ())]))


class NameTable:
    """Names of user-defined networks' endpoints."""

    def __init__(self) -> None:
        self._zones: dict[str, _Zone] = {}

    def add(self, endpoint: EndpointRecord) -> None:
        """Register an endpoint's names; again is fine."""
        if not endpoint.names or not endpoint.addresses:
            return
        zone = self._zones.setdefault(endpoint.network_id, _Zone(endpoint.network))
        for name in endpoint.names:
            zone.by_name.setdefault(name.lower(), {})[endpoint.id] = endpoint.addresses
        for address in endpoint.addresses:
            zone.by_address[address] = endpoint.names[0]

    def remove(self, endpoint: EndpointRecord) -> None:
        zone = self._zones.get(endpoint.network_id)
        if zone is None:
            return
        for name in endpoint.names:
            holders = zone.by_name.get(name.lower(), {})
            holders.pop(endpoint.id, None)
            if not holders:
                zone.by_name.pop(name.lower(), None)
        for address in endpoint.addresses:
            zone.by_address.pop(address, None)
        if not zone.by_name and zone.shared is None:
            del self._zones[endpoint.network_id]

    def share(self, network_id: str, network: str, names: Directory) -> None:
        """Everything that is called something in a network of the cluster, in place of what was told before."""
        self._zones.setdefault(network_id, _Zone(network)).shared = names

    def unshare(self, network_id: str) -> None:
        if (zone := self._zones.get(network_id)) is not None:
            zone.shared = None
            if not zone.by_name:
                del self._zones[network_id]

    def addresses(self, name: str, networks: Iterable[str], private: Mapping[str, str]) -> list[str] | None:
        """Addresses, of both families, of a lower-case name as a container on these networks (by id, in order) sees it.

        `name` may end in ".<network>". private: the asker's links, alias -> the linked container's name.
        [] if what is called so has no address now; None if nothing is called so.
        """
        name = private.get(name, name)
        for network_id in networks:
            if (zone := self._zones.get(network_id)) is None:
                continue
            found = zone.addresses(name)
            if found is None:
                found = zone.addresses(name.removesuffix(f".{zone.network.lower()}"))
            if found is not None:
                return found
        return None

    def name_of(self, address: str, networks: Iterable[str]) -> str:
        """"name.network" of an address, "" if it is nobody's."""
        for network_id in networks:
            zone = self._zones.get(network_id)
            if zone is None:
                continue
            shared = {} if zone.shared is None else zone.shared.by_address
            if name := zone.by_address.get(address) or shared.get(address):
                return f"{name}.{zone.network}"
        return ""
