"""What a manager has told of one network: its endpoints and services, and what has changed since last time. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from swarmlet.wire.networking import EndpointInfo, ServiceInfo


@dataclass(frozen=True, slots=True)
class Changes:
    """id -> what was told before (None: nothing)."""

    endpoints: dict[str, EndpointInfo | None] = field(default_factory=dict)
    services: dict[str, ServiceInfo | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.endpoints or self.services)


class Places:
    """One network's endpoints and services, by id, by service and by address."""

    def __init__(self) -> None:
        self.endpoints: dict[str, EndpointInfo] = {}
        self.services: dict[str, ServiceInfo] = {}
        self._of_service: defaultdict[str, dict[str, EndpointInfo]] = defaultdict(dict)
        self._at: defaultdict[str, dict[str, EndpointInfo]] = defaultdict(dict)
        self._before_endpoints: dict[str, EndpointInfo | None] = {}
        self._before_services: dict[str, ServiceInfo | None] = {}

    def put(self, endpoint: EndpointInfo) -> None:
        """Add an endpoint, or have it in place of what was told of it before."""
        self.remove(endpoint.id)
        self._before_endpoints.setdefault(endpoint.id, None)
        self.endpoints[endpoint.id] = endpoint
        self._of_service[endpoint.service_id][endpoint.id] = endpoint
        for address in endpoint.addresses:
            self._at[address][endpoint.id] = endpoint

    def remove(self, ident: str) -> None:
        """Not known is fine."""
        known = self.endpoints.pop(ident, None)
        if known is not None:
            self._before_endpoints.setdefault(ident, known)
            _forget(self._of_service, known.service_id, ident)
            for address in known.addresses:
                _forget(self._at, address, ident)

    def put_service(self, service: ServiceInfo) -> None:
        self._before_services.setdefault(service.id, self.services.get(service.id))
        self.services[service.id] = service

    def remove_service(self, ident: str) -> None:
        """Not known is fine."""
        if (known := self.services.pop(ident, None)) is not None:
            self._before_services.setdefault(ident, known)

    def clear(self) -> None:
        """Everything is to be told anew."""
        for ident in list(self.endpoints):
            self.remove(ident)
        for ident in list(self.services):
            self.remove_service(ident)

    def take(self) -> Changes:
        """What differs from the last time this was called."""
        endpoints, self._before_endpoints = self._before_endpoints, {}
        services, self._before_services = self._before_services, {}
        return Changes(
            {ident: before for ident, before in endpoints.items() if before != self.endpoints.get(ident)},
            {ident: before for ident, before in services.items() if before != self.services.get(ident)},
        )

    def put_back(self, changes: Changes) -> None:
        """These changes were taken, and not made use of."""
        self._before_endpoints |= changes.endpoints
        self._before_services |= changes.services

    def of_service(self, service_id: str) -> tuple[EndpointInfo, ...]:
        """Its endpoints."""
        return tuple(self._of_service[service_id].values()) if service_id in self._of_service else ()

    def at(self, address: str) -> EndpointInfo | None:
        """Who has an address. Two do for a moment where a task's chosen address goes on: the one that serves counts."""
        held = self._at.get(address)
        return None if held is None else max(held.values(), key=lambda endpoint: (endpoint.serving, endpoint.id))

    def addresses(self, changes: Changes) -> set[str]:
        """Those of changed endpoints, before and now."""
        return {address for known in self._both(changes) for address in known.addresses}

    def services_of(self, changes: Changes) -> set[str]:
        """Ids of the services that these changes are about."""
        return {*changes.services, *(known.service_id for known in self._both(changes) if known.service_id)}

    def _both(self, changes: Changes) -> Iterable[EndpointInfo]:
        for ident, before in changes.endpoints.items():
            if before is not None:
                yield before
            if (now := self.endpoints.get(ident)) is not None:
                yield now


def _forget(index: dict[str, dict[str, EndpointInfo]], key: str, ident: str) -> None:
    del index[key][ident]
    if not index[key]:
        del index[key]
