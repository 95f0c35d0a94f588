"""Networks as the Engine API shows them, and what its filters select. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.filters import until_of as until_of
from swarmlet.errors import InvalidArgument
from swarmlet.model.base import to_api
from swarmlet.model.times import rfc3339
from swarmlet_agent.net import plan_config
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord, SandboxRecord
from swarmlet_agent.net.requests import ConfigReference, NetworkContainer, NetworkView

LIST_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("until", "label", "label!")


def view(network: NetworkRecord, attached: Iterable[tuple[SandboxRecord, EndpointRecord]] = ()) -> NetworkView:
    """One network; attached: its containers (lists leave them out)."""
    config: list[dict[str, object]] = []
    asked = plan_config.blueprint(network) if network.blueprint else None
    if asked is not None:
        config += [to_api(each) for each in asked.ipam.config]
    for part in (*network.subnets, *network.unused):
        entry: dict[str, object] = {"Subnet": part.subnet}
        if part.ip_range:
            entry["IPRange"] = part.ip_range
        if part.gateway:
            entry["Gateway"] = part.gateway
        if part.auxiliary:
            entry["AuxiliaryAddresses"] = part.auxiliary
        config.append(entry)
    return NetworkView(
        name=network.name, id=network.id, created=rfc3339(network.created_at), scope=network.scope,
        driver=network.driver,
        enable_ipv4=asked.enable_ipv4 if asked is not None else bool(network.subnet) or not network.v6.subnet,
        enable_ipv6=asked.enable_ipv6 if asked is not None else bool(network.v6.subnet),
        config_only=bool(network.blueprint), config_from=ConfigReference(network=network.config_from),
        ipam={"Driver": "default", "Options": network.ipam_options, "Config": config},
        internal=network.internal, attachable=network.attachable, ingress=network.ingress,
        options=network.options, labels=network.labels,
        containers={
            sandbox.container_id: NetworkContainer(
                name=sandbox.container_name, endpoint_id=endpoint.id, mac_address=endpoint.mac,
                ipv4_address=f"{endpoint.ip}/{endpoint.prefix}" if endpoint.ip else "",
                ipv6_address=f"{endpoint.ip6}/{endpoint.prefix6}" if endpoint.ip6 else "",
            )
            for sandbox, endpoint in attached
        },
    )


def selects(filters: Filters, network: NetworkRecord, *, in_use: bool) -> bool:
    """True if a list with these filters shows the network. InvalidArgument for a bad value."""
    for kind in filters.get("type"):
        if kind not in ("custom", "builtin"):
            raise InvalidArgument(f"invalid filter: 'type'='{kind}'")
    dangling = filters.flag("dangling")
    return (
        filters.matches("driver", network.driver)
        and filters.matches("scope", network.scope)
        and filters.matches_pattern("id", network.id)
        and filters.matches_pattern("name", network.name)
        and filters.matches("type", "builtin" if network.predefined else "custom")
        and filters.matches_labels(network.labels)
        # Predefined networks are never dangling: they cannot be removed.
        and (dangling is None or dangling is (not in_use and not network.predefined))
    )


def prunes(filters: Filters, network: NetworkRecord, until: int | None) -> bool:
    """True if a prune with these filters may take an unused network. until: nanoseconds, None = any age."""
    kept = network.predefined or network.blueprint or network.scope == "swarm"
    if kept or (until is not None and network.created_at > until):
        return False
    if not filters.matches_labels(network.labels):
        return False
    for unwanted in filters.get("label!"):
        name, equals, value = unwanted.partition("=")
        if name in network.labels and (not equals or network.labels[name] == value):
            return False
    return True
