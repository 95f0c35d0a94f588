"""The encrypted ways as a node in an encrypted network must know them. Pure."""

from __future__ import annotations

from swarmlet.model.cluster import Cluster
from swarmlet.model.ways import inner_address
from swarmlet.wire.networking import WaysInfo, WaysPeer
from swarmlet_manager.decide.ways import keys_digest, takers
from swarmlet_manager.state import State


def ways_of(state: State, node_id: str) -> WaysInfo:
    """() for a node that has no number yet."""
    node = state.nodes.get(node_id)
    if node is None or not node.number:
        return WaysInfo()
    plan, everyone = (state.cluster or Cluster(id="")).ways, takers(state)
    return WaysInfo(
        inner=inner_address(node.number), numbers=tuple(range(plan.oldest, plan.newest + 1)), active=plan.active,
        digest=keys_digest(everyone) if plan.oldest < plan.newest else b"",
        peers=tuple(
            WaysPeer(inner=inner_address(peer.number), address=peer.data_path, keys=peer.ways.keys)
            for peer in sorted(everyone, key=lambda peer: peer.number)
            if peer.id != node_id and peer.data_path
        ),
    )
