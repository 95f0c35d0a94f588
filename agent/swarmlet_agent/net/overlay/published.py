"""From what a manager tells of published ports to what the mesh of this node is to be. Pure."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from swarmlet.wire.networking import MeshInfo, MeshPort
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published
from swarmlet_agent.net.plan_ports import ANY, ANY6, HostPort

#: Of the mesh's device where it is not known what the underlay carries: 1500 less VXLAN's 50.
MTU = 1450


def mesh_state(told: MeshInfo, node_id: str, containers: tuple[str, ...], mtu: int = 0) -> MeshState | None:
    """None while this node has no number yet.

    containers: subnets of this node's bridges. mtu: what the way to other nodes carries, 0 = not known.
    """
    nodes = {node.id: MeshNode(node.number, node.address, node.others) for node in told.nodes}
    own = nodes.pop(node_id, None)
    if own is None:
        return None
    return MeshState(
        own=own, mtu=mtu or MTU, port=told.data_path_port, peers=tuple(nodes.values()), containers=containers,
        ports=tuple(
            Published(
                port.protocol, port.port,
                tuple(
                    Backend(address, one.port, one.node, one.serving)
                    for one in port.backends for address in one.addresses
                ),
                port.host_ip, port.local_only,
            )
            for port in told.ports
        ),
    )


def addresses_of(told: MeshInfo | None) -> set[str]:
    """Of every task that a port leads to and that answers."""
    if told is None:
        return set()
    return {address for port in told.ports for one in port.backends if not one.lost for address in one.addresses}


def places_of(told: MeshInfo, *, ipv6: bool) -> dict[HostPort, str]:
    """What the mesh must have for itself on this host, and what that is called in messages. ipv6: the host has it."""
    found: dict[HostPort, str] = {}
    for port in told.ports:
        name = f"service {port.service}"
        for host_ip in (port.host_ip,) if port.host_ip else (ANY, ANY6):
            if ipv6 or ":" not in host_ip:
                found[HostPort(host_ip, port.protocol, port.port)] = name
    return found


def without(told: MeshInfo, troubles: Collection[HostPort]) -> MeshInfo:
    """What is left of it where some ports are something else's. A port that is taken in one family is so in both."""
    taken = {(place.protocol, place.port, "" if place.host_ip in (ANY, ANY6) else place.host_ip) for place in troubles}

    def key(port: MeshPort) -> tuple[str, int, str]:
        return port.protocol, port.port, port.host_ip

    return replace(told, ports=tuple(port for port in told.ports if key(port) not in taken)) if taken else told
