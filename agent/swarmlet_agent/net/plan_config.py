"""Configuration networks (`--config-only`): settings that networks are made from (`--config-from`). Pure.

The words of refusals are dockerd's (moby libnetwork validateConfiguration).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from swarmlet.errors import Forbidden, NotFound
from swarmlet_agent.net.records import NetworkRecord
from swarmlet_agent.net.requests import NetworkCreate


def config_network(request: NetworkCreate, *, network_id: str, now: int) -> NetworkRecord:
    """The record of a configuration network: nothing is made for it, and no container can be on it. Forbidden."""
    if request.config_from is not None and request.config_from.network:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    if request.ingress or request.internal or request.attachable or request.scope not in ("", "local"):
        raise Forbidden(
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported."
        )
    kept = replace(request, name="", driver="", config_only=False)
    return NetworkRecord(
        id=network_id, name=request.name, driver="null", created_at=now, blueprint=msgspec.json.encode(kept).decode(),
        options=dict(request.options), labels=dict(request.labels), ipam_options=request.ipam.options,
    )


def blueprint(network: NetworkRecord) -> NetworkCreate:
    """What a configuration network was made with."""
    return msgspec.json.decode(network.blueprint, type=NetworkCreate)


def resolved(request: NetworkCreate, existing: Mapping[str, NetworkRecord]) -> NetworkCreate:
    """The request with the settings of the configuration network that it names, if any. NotFound, Forbidden."""
    if request.config_from is None or not request.config_from.network:
        return request
    name = request.config_from.network
    source = next((network for network in existing.values() if network.name == name and network.blueprint), None)
    if source is None:
        raise NotFound("network", name, f'configuration network "{name}" does not exist')
    own = (
        request.enable_ipv6, request.labels, request.options, request.ipam.config, request.ipam.options,
        request.ipam.driver not in ("", "default"),
    )
    if any(own):
        raise Forbidden(
            "user supplied configurations are not supported if the network depends on a configuration network"
        )
    given = blueprint(source)
    return replace(
        request, ipam=given.ipam, options=given.options, labels=given.labels, enable_ipv4=given.enable_ipv4,
        enable_ipv6=given.enable_ipv6,
    )


def check_unused(network: NetworkRecord, others: Iterable[NetworkRecord]) -> None:
    """Forbidden while a network is made from this one."""
    if network.blueprint and any(other.config_from == network.name for other in others):
        raise Forbidden(f'configuration network "{network.name}" is in use')
