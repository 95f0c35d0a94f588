"""What is called how in one of the cluster's networks: what endpoints and services bring to the names. Pure.

A service's name and aliases stand for its VIP, or for its serving tasks in turn where it has none; `tasks.<service>`
always for the tasks, `<slot>.<service>` for one of them. A service or a slot whose tasks do not serve is known, and has
no address: an answer without records, not a missing name. `_<port>._<protocol>.<service>` (SRV, RFC 2782) has the ports
that a service publishes, by their number and, where the user gave one, their name; the port is the tasks' own.
"""

from __future__ import annotations

from collections.abc import Collection

from swarmlet.wire.networking import EndpointInfo, ServiceInfo
from swarmlet_agent.net.names import Entry, Holder, Kind, Target


def endpoint_holder(endpoint: EndpointInfo) -> Holder:
    return (Kind.TASK if endpoint.service_id else Kind.CONTAINER, endpoint.id)


def service_holder(service_id: str) -> Holder:
    return (Kind.SERVICE, service_id)


def endpoint_entry(endpoint: EndpointInfo) -> Entry:
    """The endpoint's own names."""
    return Entry(
        {name.lower(): endpoint.addresses for name in endpoint.names},
        dict.fromkeys(endpoint.addresses, endpoint.names[0]) if endpoint.names else {},
    )


def service_entry(service: ServiceInfo, endpoints: Collection[EndpointInfo]) -> Entry:
    """The service's names. endpoints: its own in this network."""
    tasks = sorted(endpoints, key=lambda endpoint: (endpoint.slot, endpoint.id))
    serving = [task for task in tasks if task.serving]
    each = tuple(dict.fromkeys(address for task in serving for address in task.addresses))
    slots: dict[int, tuple[str, ...]] = {}
    for task in tasks:
        if task.slot:
            slots[task.slot] = (*slots.get(task.slot, ()), *(task.addresses if task.serving else ()))
    addresses: dict[str, tuple[str, ...]] = {}
    ports: dict[str, tuple[Target, ...]] = {}
    families = []
    for name in dict.fromkeys((service.name.lower(), *(alias.lower() for alias in service.aliases))):
        families += [name, f"tasks.{name}"]
        addresses[name] = service.vips or each
        addresses[f"tasks.{name}"] = each
        for slot, found in slots.items():
            addresses[f"{slot}.{name}"] = found
        for port in service.ports:
            tasks_targets = tuple(
                Target(f"{task.slot}.{name}" if task.slot else task.names[0].lower(), port.port, task.addresses)
                for task in serving
            )
            own = (Target(name, port.port, service.vips),) if service.vips else tasks_targets
            for label in (port.name.lower(), str(port.port)) if port.name else (str(port.port),):
                ports[f"_{label}._{port.protocol}.{name}"] = own
                ports[f"_{label}._{port.protocol}.tasks.{name}"] = tasks_targets
    return Entry(addresses, dict.fromkeys(service.vips, service.name), ports, tuple(families))


def backends(endpoints: Collection[EndpointInfo], vip: str) -> tuple[str, ...]:
    """Addresses, of the VIP's family, of those of a service's endpoints that serve it now; () for none."""
    return tuple(sorted(
        address for endpoint in endpoints if endpoint.serving for address in endpoint.addresses
        if (":" in address) == (":" in vip)
    ))  # fmt: skip
