"""What agents are told of one network, one endpoint, one service: from the state. Pure, but for what is kept of it."""

from __future__ import annotations

from swarmlet.model.defaults import cluster_networks, has_vip
from swarmlet.model.ids import short_id
from swarmlet.model.network import Network, NetworkAttachment
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet.model.template import NodeFacts, own_hostname
from swarmlet.model.ways import SEALED_PORT, inner_address
from swarmlet.wire.networking import EndpointInfo, NetworkInfo, ServiceInfo, ServicePort
from swarmlet_manager.decide.fixed import fixed_in
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.decide.ways import is_encrypted
from swarmlet_manager.dispatch.meshbook import MeshBook
from swarmlet_manager.dispatch.meshfeed import data_path_port, is_lost, serves
from swarmlet_manager.state import State

#: (network id, id of a task, lease or service)
Place = tuple[str, str]


class Facts:
    """Endpoints and the mesh, made once for all sessions: they are the same for every node, and there may be many."""

    def __init__(self) -> None:
        self.mesh = MeshBook()
        self._known: dict[Place, tuple[Task, Node, EndpointInfo]] = {}

    def endpoint(self, state: State, place: Place) -> EndpointInfo | None:
        """As `endpoint_info`."""
        task = state.tasks.get(place[1])
        node = state.nodes.get(task.node_id) if task is not None else None
        known = self._known.get(place)
        if known is not None and known[0] is task and known[1] is node:
            return known[2]
        info = endpoint_info(state, place)
        # Whether a task with a chosen address is told of depends on others, too.
        if info is not None and task is not None and node is not None and not fixed_in(task.spec):
            self._known[place] = task, node, info
        elif known is not None:
            del self._known[place]
        return info

    def forget(self, task: Task) -> None:
        """It is not in the state any more."""
        for held in task.networks:
            self._known.pop((held.network_id, task.id), None)


def wanted_networks(service: Service) -> tuple[str, ...]:
    return cluster_networks(service.spec.task_template)


def network_info(state: State, network: Network) -> NetworkInfo:
    spec = network.spec
    return NetworkInfo(
        id=network.id, name=network.name, subnet=network.subnet, gateway=network.gateway, ip_range=network.ip_range,
        subnet6=network.v6.subnet, gateway6=network.v6.gateway, ip_range6=network.v6.ip_range,
        vni=network.vni, mtu=network.mtu, encrypted=is_encrypted(network),
        port=SEALED_PORT if is_encrypted(network) else data_path_port(state),
        internal=spec.internal, attachable=spec.attachable, ingress=spec.ingress,
        options=spec.options,
        labels=spec.labels, created_at=network.created_at,
    )


def endpoint_info(state: State, place: Place) -> EndpointInfo | None:
    """None for a task that has ended, or was not given to a node yet."""
    network_id, ident = place
    if (lease := state.leases.get(ident)) is not None:
        node = state.nodes.get(lease.node_id)
        return EndpointInfo(
            network_id=network_id, id=ident, address=_plain(lease.address), address6=_plain(lease.address6),
            node_id=lease.node_id, node_addr=_way_to(state, node, network_id), mac=lease.mac,
            names=() if node is None or node.state is NodeState.DOWN else lease.names,
        )
    task = state.tasks.get(ident)
    if task is None or is_gone(task) or task.status.state < TaskState.ASSIGNED:
        return None
    held = next((held for held in task.networks if held.network_id == network_id), None)
    node = state.nodes.get(task.node_id)
    if held is None or node is None or _is_replaced(state, task, held):
        return None
    return EndpointInfo(
        network_id=network_id, id=task.id, address=_plain(held.address), address6=_plain(held.address6),
        node_id=task.node_id, node_addr=_way_to(state, node, network_id),
        # Nobody is sent to a lost node. The way there stays: perhaps only we do not hear it, and connections go on.
        names=() if node.state is NodeState.DOWN else _names(task, node),
        service_id=task.service_id, slot=task.slot, serving=serves(task, node), mac=held.mac,
        lost=is_lost(task, node),
    )


def _names(task: Task, node: Node) -> tuple[str, ...]:
    """What a task is called by itself: its name, its container's host name and short id, as Docker has it."""
    facts = NodeFacts(node.id, node.description.hostname, *_platform(node))
    names = (task.name, own_hostname(task, facts), short_id(task.status.container_id))
    return tuple(dict.fromkeys(name for name in names if name))


def _platform(node: Node) -> tuple[str, str]:
    platform = node.description.platform
    return platform.os, platform.architecture


def _is_replaced(state: State, task: Task, held: NetworkAttachment) -> bool:
    """Its address was chosen, and is another task's by now: this one's node was lost, and has come back with it."""
    if task.desired_state <= TaskState.RUNNING or held.network_id not in fixed_in(task.spec):
        return False
    return any(
        other.id != task.id and other.is_active
        and any(
            place.network_id == held.network_id and not set(held.addresses).isdisjoint(place.addresses)
            for place in other.networks
        )
        for other in state.tasks_of_service(task.service_id)
    )


def service_info(state: State, place: Place) -> ServiceInfo | None:
    network_id, ident = place
    service = state.services.get(ident)
    if service is None or service.pending_delete or network_id not in wanted_networks(service):
        return None
    vip = next((vip for vip in service.vips if vip.network_id == network_id), None)
    if vip is None and has_vip(service.spec):
        return None  # the allocator is about to give it one
    aliases = next(
        network.aliases for network in service.spec.task_template.networks if network.target == network_id
    )
    ports = tuple(
        ServicePort(name=port.name, protocol=port.protocol, port=port.target_port) for port in service.ports
    )
    return ServiceInfo(
        network_id=network_id, id=ident, name=service.spec.name, aliases=aliases, ports=ports,
        vip="" if vip is None else _plain(vip.address), vip6="" if vip is None else _plain(vip.address6),
    )


def _plain(address: str) -> str:
    return address.partition("/")[0]


def _way_to(state: State, node: Node | None, network_id: str) -> str:
    """The address that packets of a network for a node go to: where they are encrypted, the one inside."""
    if node is None:
        return ""
    if not is_encrypted(state.networks.get(network_id)):
        return node.data_path
    return inner_address(node.number) if node.number else ""
