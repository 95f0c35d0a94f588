"""The routing mesh as every node must know it: which ports lead to which tasks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.model.defaults import ingress_ports
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet.wire.networking import MeshBackend, MeshInfo, MeshNodeInfo, MeshPort
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import State


def data_path_port(state: State) -> int:
    """UDP port that carries VXLAN between nodes."""
    return DATA_PATH_PORT if state.cluster is None else state.cluster.data_path_port


def serves(task: Task, node: Node) -> bool:
    """Whether clients may be sent to a task: it runs, is healthy, is meant to go on, and its node is there."""
    return (
        task.status.state is TaskState.RUNNING and not task.status.unhealthy
        and task.desired_state <= TaskState.RUNNING and node.state is not NodeState.DOWN
    )


def mesh_of(state: State) -> MeshInfo:
    """Ports of services with their tasks, from the moment those run until they are gone.

    A service that is being removed serves nobody new, but what is open goes on: its ports are another's as soon as one
    asks for them, and lead to both as long as the old tasks last.
    """
    nodes = {node.id: node for node in state.nodes.values() if node.number and node.data_path}
    ports: dict[tuple[str, int], MeshPort] = {}
    for service in sorted(state.services.values(), key=lambda service: (service.pending_delete, service.id)):
        published = ingress_ports(service.ports)
        places = list(_places(state, service, nodes)) if published else []
        if service.pending_delete and not places:
            continue
        for port in published:
            known = ports.get((port.protocol, port.published_port))
            backends = tuple(
                MeshBackend(address=address, port=port.target_port, node=number, serving=serving)
                for address, number, serving in places
            )
            ports[port.protocol, port.published_port] = MeshPort(
                protocol=port.protocol, port=port.published_port,
                backends=(*(known.backends if known is not None else ()), *backends),
            )
    return MeshInfo(
        data_path_port=data_path_port(state), nodes=tuple(_nodes(nodes.values())), ports=tuple(ports.values())
    )


def _places(state: State, service: Service, nodes: dict[str, Node]) -> Iterator[tuple[str, int, bool]]:
    """(address, its node's number, whether it gets new clients) of each task that runs."""
    if (ingress := state.ingress) is None:
        return
    for task in sorted(state.tasks_of_service(service.id), key=lambda task: task.id):
        address = next((place.address for place in task.networks if place.network_id == ingress.id), "")
        node = nodes.get(task.node_id)
        if address and node is not None and task.status.state is TaskState.RUNNING and not is_gone(task):
            serving = not service.pending_delete and serves(task, node)
            yield address.partition("/")[0], node.number, serving


def _nodes(nodes: Iterable[Node]) -> Iterator[MeshNodeInfo]:
    for node in sorted(nodes, key=lambda node: node.number):
        yield MeshNodeInfo(id=node.id, number=node.number, address=node.data_path)
