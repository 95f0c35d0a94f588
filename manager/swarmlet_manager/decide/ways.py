"""When the keys of encrypted ways between nodes change (see swarmlet/model/ways.py). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from swarmlet.model.cluster import Cluster
from swarmlet.model.network import Network
from swarmlet.model.node import Node
from swarmlet.model.states import NodeState
from swarmlet.model.times import NS
from swarmlet.model.ways import WayKey, WaysPlan, digest_of, inner_address
from swarmlet_manager.state import Op, Put, State

#: As Docker changes the keys of its encrypted networks.
ROTATE_NS = 12 * 3600 * NS


def is_encrypted(network: Network | None) -> bool:
    return network is not None and network.spec.encrypted


def takers(state: State) -> list[Node]:
    """Nodes that have a part in some encrypted network."""
    return [node for node in state.nodes.values() if node.ways.keys and node.number]


def keys_digest(nodes: Sequence[Node]) -> bytes:
    return digest_of((inner_address(node.number), node.ways.keys) for node in nodes)


def plan_ways(state: State, now: int) -> list[Op]:
    """The next step of a change of keys, if all nodes that are there are ready for it.

    A node that is down is not waited for: it makes the new key when it comes back, before anything is sent to it.
    """
    cluster, everyone = state.cluster, takers(state)
    if cluster is None or not everyone:
        return []
    after = _step(cluster.ways, everyone, now)
    return [] if after == cluster.ways else [Put(_with(cluster, after))]


def _step(plan: WaysPlan, everyone: Sequence[Node], now: int) -> WaysPlan:
    up = [node for node in everyone if node.state is not NodeState.DOWN]
    if plan.active < plan.newest:
        known = keys_digest(everyone)
        ready = all(_has(node.ways.keys, plan.newest) and node.ways.applied == known for node in up)
        return replace(plan, active=plan.newest) if up and ready else plan
    if plan.oldest < plan.active:
        moved = all(node.ways.active == plan.active for node in up)
        return replace(plan, oldest=plan.active) if up and moved else plan
    if not plan.since:
        return replace(plan, since=now)
    if now - plan.since >= ROTATE_NS:
        return replace(plan, newest=plan.newest + 1, since=now)
    return plan


def _has(keys: Sequence[WayKey], number: int) -> bool:
    return any(key.number == number for key in keys)


def _with(cluster: Cluster, ways: WaysPlan) -> Cluster:
    return replace(cluster, ways=ways)
