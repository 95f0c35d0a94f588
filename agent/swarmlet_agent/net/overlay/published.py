"""From what a manager tells of published ports to what the mesh of this node is to be. Pure."""

from __future__ import annotations

from swarmlet.wire.networking import MeshInfo
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published

#: Of the mesh's device where it is not known what the underlay carries: 1500 less VXLAN's 50.
MTU = 1450


def mesh_state(told: MeshInfo, node_id: str, containers: tuple[str, ...], mtu: int = 0) -> MeshState | None:
    """None while this node has no number yet.

    containers: subnets of this node's bridges. mtu: what the way to other nodes carries, 0 = not known.
    """
    nodes = {node.id: MeshNode(node.number, node.address) for node in told.nodes}
    own = nodes.pop(node_id, None)
    if own is None:
        return None
    return MeshState(
        own=own, mtu=mtu or MTU, port=told.data_path_port, peers=tuple(nodes.values()), containers=containers,
        ports=tuple(
            Published(
                port.protocol, port.port,
                tuple(Backend(one.address, one.port, one.node, one.serving) for one in port.backends),
            )
            for port in told.ports
        ),
    )


def addresses_of(told: MeshInfo | None) -> set[str]:
    """Of every task that a port leads to."""
    return set() if told is None else {one.address for port in told.ports for one in port.backends}
