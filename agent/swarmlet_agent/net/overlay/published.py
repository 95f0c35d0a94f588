"""From what a manager tells of published ports to what the mesh of this node is to be. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.wire.networking import MeshNodeInfo, MeshPort, PortName
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published
from swarmlet_agent.net.plan_ports import ANY, ANY6, HostPort

#: Of the mesh's device where it is not known what the underlay carries: 1500 less VXLAN's 50.
MTU = 1450


def mesh_state(
    nodes: Iterable[MeshNodeInfo], ports: Iterable[Published], node_id: str, containers: tuple[str, ...], *,
    mtu: int = 0, port: int = DATA_PATH_PORT,
) -> MeshState | None:
    """None while this node has no number yet.

    containers: subnets of this node's bridges. mtu: what the way to other nodes carries, 0 = not known. port: of VXLAN.
    """
    places = {node.id: MeshNode(node.number, node.address, node.others) for node in nodes}
    own = places.pop(node_id, None)
    if own is None:
        return None
    return MeshState(
        own=own, mtu=mtu or MTU, port=port, peers=tuple(places.values()), containers=containers, ports=tuple(ports)
    )


def published_of(port: MeshPort) -> Published:
    backends = tuple(
        Backend(address, one.port, one.node, one.serving) for one in port.backends for address in one.addresses
    )
    return Published(port.protocol, port.port, backends, port.host_ip, port.local_only)


def addresses_of(ports: Iterable[MeshPort]) -> set[str]:
    """Of every task that a port leads to and that answers."""
    return {address for port in ports for one in port.backends if not one.lost for address in one.addresses}


def places_of(ports: Iterable[MeshPort], *, ipv6: bool) -> dict[HostPort, str]:
    """What the mesh must have for itself on this host, and for which service. ipv6: the host has it."""
    found: dict[HostPort, str] = {}
    for port in ports:
        for host_ip in (port.host_ip,) if port.host_ip else (ANY, ANY6):
            if ipv6 or ":" not in host_ip:
                found[HostPort(host_ip, port.protocol, port.port)] = port.service
    return found


def without(published: Mapping[PortName, Published], troubles: Collection[HostPort]) -> list[Published]:
    """What is left of it where some ports are something else's. A port that is taken in one family is so in both."""
    taken = {(place.protocol, place.port, "" if place.host_ip in (ANY, ANY6) else place.host_ip) for place in troubles}
    return [port for name, port in published.items() if name not in taken]
