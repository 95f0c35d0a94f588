"""Who is called what in which network: the data behind the embedded DNS. In memory, owned by the networks.

Names are held by whoever brings them (an endpoint of this node, a task or a service that a manager tells of), so each
change costs as much as what changes, however many others there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from swarmlet_agent.net.records import EndpointRecord


class Kind(IntEnum):
    """Who brings a name. Of a name that a service has, too, those below it say nothing: they would lead past it."""

    LOCAL = 0  # an endpoint of this node
    TASK = 1  # a task of a service, on any node
    CONTAINER = 2  # a plain container in a network of the cluster, on any node
    SERVICE = 3


Holder = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a port is served: a name of the network, and its addresses."""

    name: str
    port: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What one holder brings. Names are lower case.

    addresses: name -> addresses, () for a name that has none now; reverse: address -> its best name; ports:
    "_http._tcp.web" -> who serves it; families: names that have no slots and ports but those listed ("7.web" is then
    nobody's).
    """

    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reverse: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    families: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a name stands for. missing: it cannot be anyone's, here or elsewhere. network: where targets' names are."""

    addresses: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    missing: bool = False
    network: str = ""


class _Zone:
    """One network."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.suffix = f".{network.lower()}"
        self.entries: dict[Holder, Entry] = {}
        self.by_name: dict[str, dict[Holder, tuple[str, ...]]] = {}
        self.by_address: dict[str, dict[Holder, str]] = {}
        self.by_port: dict[str, dict[Holder, tuple[Target, ...]]] = {}
        self.families: dict[str, set[Holder]] = {}

    def put(self, holder: Holder, entry: Entry) -> None:
        self.drop(holder)
        self.entries[holder] = entry
        for name, addresses in entry.addresses.items():
            self.by_name.setdefault(name, {})[holder] = addresses
        for address, name in entry.reverse.items():
            self.by_address.setdefault(address, {})[holder] = name
        for name, targets in entry.ports.items():
            self.by_port.setdefault(name, {})[holder] = targets
        for name in entry.families:
            self.families.setdefault(name, set()).add(holder)

    def drop(self, holder: Holder) -> None:
        entry = self.entries.pop(holder, None)
        if entry is None:
            return
        for name in entry.addresses:
            _forget(self.by_name, name, holder)
        for address in entry.reverse:
            _forget(self.by_address, address, holder)
        for name in entry.ports:
            _forget(self.by_port, name, holder)
        for name in entry.families:
            holders = self.families[name]
            holders.discard(holder)
            if not holders:
                del self.families[name]

    def find(self, name: str) -> Found | None:
        if (held := self.by_name.get(name)) is not None:
            if len(held) > 1 and any(kind is Kind.SERVICE for kind, _ in held):
                held = {holder: found for holder, found in held.items() if holder[0] >= Kind.CONTAINER}
            return Found(tuple(dict.fromkeys(address for found in held.values() for address in found)))
        if (serving := self.by_port.get(name)) is not None:
            return Found(targets=tuple(target for found in serving.values() for target in found), network=self.network)
        first, _, below = name.partition(".")
        if first.startswith("_"):  # "_port._protocol.service"
            below = below.partition(".")[2]
        elif not first.isdigit():
            return None  # a service may be called as a domain is: "example.com" is not a part of the service "com"
        return Found(missing=True) if below in self.families else None


class NameTable:
    """Names of user-defined networks' endpoints. version grows with every change: answers of another are old."""

    def __init__(self) -> None:
        self._zones: dict[str, _Zone] = {}
        self.version = 0

    def add(self, endpoint: EndpointRecord) -> None:
        """Register the names of an endpoint of this node; again is fine."""
        if not endpoint.names or not endpoint.addresses:
            return
        self.put(endpoint.network_id, endpoint.network, (Kind.LOCAL, endpoint.id), Entry(
            {name.lower(): endpoint.addresses for name in endpoint.names},
            dict.fromkeys(endpoint.addresses, endpoint.names[0]),
        ))  # fmt: skip

    def remove(self, endpoint: EndpointRecord) -> None:
        self.drop(endpoint.network_id, (Kind.LOCAL, endpoint.id))

    def put(self, network_id: str, network: str, holder: Holder, entry: Entry) -> None:
        """What a holder brings, in place of what it brought before."""
        zone = self._zones.get(network_id)
        if zone is None:
            zone = self._zones[network_id] = _Zone(network)
        if zone.entries.get(holder) != entry:
            zone.put(holder, entry)
            self.version += 1

    def drop(self, network_id: str, holder: Holder) -> None:
        """Not known is fine."""
        zone = self._zones.get(network_id)
        if zone is not None and holder in zone.entries:
            zone.drop(holder)
            self.version += 1
            if not zone.entries:
                del self._zones[network_id]

    def leave(self, network_id: str) -> None:
        """Forget what a manager told of a network; this node's own endpoints there stay."""
        zone = self._zones.get(network_id)
        for holder in [] if zone is None else list(zone.entries):
            if holder[0] is not Kind.LOCAL:
                self.drop(network_id, holder)

    def find(self, name: str, networks: Iterable[str], private: Mapping[str, str]) -> Found | None:
        """A lower-case name as a container on these networks (by id, in order) sees it; addresses of both families.

        `name` may end in ".<network>". private: the asker's links, alias -> the linked container's name.
        None if nothing here is called so: others may know it.
        """
        name = private.get(name, name)
        missing: Found | None = None
        for network_id in networks:
            if (zone := self._zones.get(network_id)) is None:
                continue
            found = zone.find(name)
            if (found is None or found.missing) and name.endswith(zone.suffix):
                found = zone.find(name.removesuffix(zone.suffix)) or found
            if found is not None and not found.missing:
                return found
            missing = missing or found
        return missing

    def name_of(self, address: str, networks: Iterable[str]) -> str:
        """"name.network" of an address, "" if it is nobody's."""
        for network_id in networks:
            zone = self._zones.get(network_id)
            if zone is not None and (held := zone.by_address.get(address)) is not None:
                return f"{held[max(held)]}.{zone.network}"
        return ""


def _forget(index: dict[str, dict[Holder, tuple[str, ...]]] | dict[str, dict[Holder, str]]
            | dict[str, dict[Holder, tuple[Target, ...]]], key: str, holder: Holder) -> None:  # fmt: skip
    held = index[key]
    del held[holder]
    if not held:
        del index[key]
