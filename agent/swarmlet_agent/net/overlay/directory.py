"""What is called how in one of the cluster's networks: from its endpoints and services to names. Pure.

A service's name and aliases stand for its VIP, or for its serving tasks in turn where it has none; `tasks.<service>`
always for the tasks, `<slot>.<service>` for one of them. Names of a service without tasks are known, and have no
address: an answer without records, not a missing name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from swarmlet.wire.networking import EndpointInfo, ServiceInfo


@dataclass(frozen=True, slots=True)
class Directory:
    """by_name: lower-case name -> addresses; by_address: address -> its best name."""

    by_name: dict[str, tuple[str, ...]] = field(default_factory=dict)
    by_address: dict[str, str] = field(default_factory=dict)


def directory(endpoints: Collection[EndpointInfo], services: Collection[ServiceInfo]) -> Directory:
    names: defaultdict[str, list[str]] = defaultdict(list)
    by_address: dict[str, str] = {}
    serving: defaultdict[str, list[EndpointInfo]] = defaultdict(list)
    for endpoint in sorted(endpoints, key=lambda endpoint: (endpoint.slot, endpoint.id)):
        for name in endpoint.names:
            names[name.lower()] += endpoint.addresses
        for address in endpoint.addresses if endpoint.names else ():
            by_address[address] = endpoint.names[0]
        if endpoint.serving and endpoint.service_id:
            serving[endpoint.service_id].append(endpoint)
    for service in sorted(services, key=lambda service: (service.name, service.id)):
        tasks = serving[service.id]
        addresses = [address for task in tasks for address in task.addresses]
        for name in dict.fromkeys((service.name.lower(), *(alias.lower() for alias in service.aliases))):
            names[name] += service.vips or addresses
            names[f"tasks.{name}"] += addresses
            for task in tasks:
                if task.slot:
                    names[f"{task.slot}.{name}"] += task.addresses
        for vip in service.vips:
            by_address[vip] = service.name
    return Directory({name: tuple(dict.fromkeys(found)) for name, found in names.items()}, by_address)


def backends(
    endpoints: Collection[EndpointInfo], services: Collection[ServiceInfo]
) -> dict[str, tuple[str, ...]]:
    """VIP -> addresses, of its family, of the tasks that serve it now; () for none."""
    serving: defaultdict[tuple[str, bool], list[str]] = defaultdict(list)
    for endpoint in endpoints:
        if endpoint.serving and endpoint.service_id:
            for address in endpoint.addresses:
                serving[endpoint.service_id, ":" in address].append(address)
    return {vip: tuple(sorted(serving[service.id, ":" in vip])) for service in services for vip in service.vips}
