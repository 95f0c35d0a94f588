"""The routing mesh as every node must know it: which ports lead to which tasks. Pure."""

from __future__ import annotations

from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.model.defaults import ingress_ports
from swarmlet.model.states import NodeState, TaskState
from swarmlet.wire.networking import MeshBackend, MeshInfo, MeshNodeInfo, MeshPort
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import State


def data_path_port(state: State) -> int:
    """UDP port that carries VXLAN between nodes."""
    return DATA_PATH_PORT if state.cluster is None else state.cluster.data_path_port


def mesh_of(state: State) -> MeshInfo:
    """Ports of services that are there, with their tasks from the moment those run until they are gone."""
    nodes = {node.id: node for node in state.nodes.values() if node.number and node.data_path}
    ingress = state.ingress
    ports: list[MeshPort] = []
    for service in sorted(state.services.values(), key=lambda service: service.id):
        published = ingress_ports(service.ports)
        if ingress is None or service.pending_delete or not published:
            continue
        places: list[tuple[str, int, bool]] = []
        for task in sorted(state.tasks_of_service(service.id), key=lambda task: task.id):
            address = next((place.address for place in task.networks if place.network_id == ingress.id), "")
            node = nodes.get(task.node_id)
            if address and node is not None and task.status.state == TaskState.RUNNING and not is_gone(task):
                serving = task.desired_state <= TaskState.RUNNING and node.state is not NodeState.DOWN
                places.append((address.partition("/")[0], node.number, serving))
        ports += [
            MeshPort(
                protocol=port.protocol, port=port.published_port,
                backends=tuple(
                    MeshBackend(address=address, port=port.target_port, node=number, serving=serving)
                    for address, number, serving in places
                ),
            )
            for port in published
        ]
    return MeshInfo(
        data_path_port=data_path_port(state),
        nodes=tuple(
            MeshNodeInfo(id=node.id, number=node.number, address=node.data_path)
            for node in sorted(nodes.values(), key=lambda node: node.number)
        ),
        ports=tuple(ports),
    )
