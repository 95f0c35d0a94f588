"""The routing mesh as every node must know it: which ports lead to which tasks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.model.defaults import ingress_ports
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet.wire.networking import MeshBackend, MeshInfo, MeshNodeInfo, MeshPort, PortName
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


def is_lost(task: Task, node: Node) -> bool:
    """Whether it answers nobody any more, as far as is known: what is open to it may as well be closed."""
    return task.status.unhealthy or node.state is NodeState.DOWN


def mesh_of(state: State) -> MeshInfo:
    """Ports of services with their tasks, from the moment those run until they are gone.

    A service that is being removed serves nobody new, but what is open goes on: its ports are another's as soon as one
    asks for them, and lead to both as long as the old tasks last.
    """
    return MeshInfo(
        data_path_port=data_path_port(state), nodes=tuple(mesh_nodes(state)),
        ports=tuple(ports_of(state, state.services.values()).values()),
    )


def ports_of(state: State, services: Iterable[Service]) -> dict[PortName, MeshPort]:
    """What these services publish. A port that several of them have leads to the tasks of all."""
    ports: dict[PortName, MeshPort] = {}
    for service in sorted(services, key=lambda service: (service.pending_delete, service.id)):
        published = ingress_ports(service.ports)
        places = list(_places(state, service)) if published else []
        if service.pending_delete and not places:
            continue
        for port in published:
            key = (port.protocol, port.published_port, port.host_ip)
            known = ports.get(key)
            backends = tuple(replace(place, port=port.target_port) for place in places)
            if known is not None:
                ports[key] = replace(known, backends=known.backends + backends)
            else:
                ports[key] = MeshPort(
                    protocol=port.protocol, port=port.published_port, service=service.spec.name, host_ip=port.host_ip,
                    local_only=port.local_only, backends=backends,
                )
    return ports


def mesh_nodes(state: State) -> Iterator[MeshNodeInfo]:
    for node in sorted((node for node in state.nodes.values() if takes_part(node)), key=lambda node: node.number):
        yield MeshNodeInfo(id=node.id, number=node.number, address=node.data_path, others=_others(node))


def takes_part(node: Node) -> bool:
    return bool(node.number and node.data_path)


def _places(state: State, service: Service) -> Iterator[MeshBackend]:
    """Each task that runs, and whether it gets new clients; without a port."""
    if (ingress := state.ingress) is None:
        return
    for task in sorted(state.tasks_of_service(service.id), key=lambda task: task.id):
        place = next((place for place in task.networks if place.network_id == ingress.id), None)
        node = state.nodes.get(task.node_id)
        if place is None or node is None or not takes_part(node):
            continue
        if task.status.state is TaskState.RUNNING and not is_gone(task):
            yield MeshBackend(
                address=place.address.partition("/")[0], address6=place.address6.partition("/")[0], port=0,
                node=node.number, serving=not service.pending_delete and serves(task, node),
                lost=is_lost(task, node),
            )


def _others(node: Node) -> tuple[str, ...]:
    return tuple(address for address in dict.fromkeys((node.addr, *node.others)) if address not in ("", node.data_path))
