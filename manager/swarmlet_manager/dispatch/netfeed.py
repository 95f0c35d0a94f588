"""What one agent has been told of networks, and what it must be told next: pure bookkeeping of one session.

A node takes part in a network while it has a task or a leased container there; it then knows every endpoint and
every service of that network, and nothing of any other.
"""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.model.defaults import cluster_networks, has_vip, ingress_ports
from swarmlet.model.ids import short_id
from swarmlet.model.network import Lease, Network, NetworkAttachment
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.model.template import NodeFacts, own_hostname
from swarmlet.model.ways import SEALED_PORT, inner_address
from swarmlet.wire.networking import EndpointInfo, MeshInfo, NetworkInfo, Networking, ServiceInfo, ServicePort, WaysInfo
from swarmlet_manager.decide.fixed import fixed_in
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.decide.ways import is_encrypted
from swarmlet_manager.dispatch.meshfeed import data_path_port, is_lost, mesh_of, serves
from swarmlet_manager.dispatch.wayfeed import ways_of
from swarmlet_manager.state import Change, State

#: (network id, id of a task, lease or service)
Place = tuple[str, str]


class NetworkFeed:
    """One session's view. `note` each change, then `take` what to send."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self._members: dict[str, set[str]] = {}  # network -> this node's tasks and leases there
        self._told: dict[str, NetworkInfo] = {}
        self._endpoints: dict[Place, EndpointInfo] = {}
        self._services: dict[Place, ServiceInfo] = {}
        self._dirty: set[Place] = set()
        self._dirty_services: set[Place] = set()
        self._full = True
        self._mesh: MeshInfo | None = None
        self._mesh_dirty = True
        self._ways: WaysInfo | None = None
        self._ways_dirty = False

    @property
    def pending(self) -> bool:
        return self._full or self._mesh_dirty or self._ways_dirty or bool(self._dirty or self._dirty_services)

    def note(self, change: Change) -> bool:
        """Remember what a change may make news; False if it certainly makes none for this node."""
        if self._full:
            return False
        noted = False
        for record in (change.before, change.after):
            match record:
                case Task():
                    if ingress_ports(record.ports):
                        self._mesh_dirty = noted = True
                    for place in record.networks:
                        if place.network_id in self._told or record.node_id == self.node_id:
                            self._dirty.add((place.network_id, record.id))
                            noted = True
                case Lease():
                    if record.network_id in self._told or record.node_id == self.node_id:
                        self._dirty.add((record.network_id, record.id))
                        noted = True
                case Service():
                    if ingress_ports(record.ports):
                        self._mesh_dirty = noted = True
                    for network_id in {*(vip.network_id for vip in record.vips), *_wanted(record)}:
                        if network_id in self._told:
                            self._dirty_services.add((network_id, record.id))
                            noted = True
                case _:
                    pass
        return noted

    def node_changed(self, node_id: str) -> bool:
        """A node has another address or state: its endpoints may be news."""
        places = [place for place, known in self._endpoints.items() if known.node_id == node_id]
        self._dirty.update(places)
        self._mesh_dirty = True
        self.ways_changed()
        return True

    def leads_to(self, task: Task) -> bool:
        """Whether what was told last sends clients to a task."""
        if self._mesh is not None and ingress_ports(task.ports):
            return True
        told = (self._endpoints.get((place.network_id, task.id)) for place in task.networks)
        return any(endpoint is not None and endpoint.serving for endpoint in told)

    def take(self, state: State) -> Networking:
        """What was taken counts as told. An empty answer if nothing is news."""
        news = self._take_networks(state)
        return replace(news, mesh=self._take_mesh(state), ways=self._take_ways(state))

    def ways_changed(self) -> bool:
        """Whether that may be news for this node."""
        self._ways_dirty |= self._ways is not None
        return self._ways_dirty

    def _take_ways(self, state: State) -> WaysInfo | None:
        """Behind the networks: which of them the node is in is known then."""
        self._ways_dirty = False
        encrypted = any(info.encrypted for info in self._told.values())
        now = ways_of(state, self.node_id) if encrypted else WaysInfo()
        if now == (self._ways or WaysInfo()):
            return None
        self._ways = now
        return now

    def _take_mesh(self, state: State) -> MeshInfo | None:
        if not self._mesh_dirty:
            return None
        self._mesh_dirty = False
        now = mesh_of(state)
        if now == self._mesh or (self._mesh is None and not now.ports):
            return None
        self._mesh = now
        return now

    def _take_networks(self, state: State) -> Networking:
        if self._full:
            self._full = False
            self._ways = None
            self._members, self._told, self._endpoints, self._services = {}, {}, {}, {}
            self._dirty = {
                (place.network_id, task.id) for task in state.tasks_on_node(self.node_id) for place in task.networks
            }
            self._dirty |= {(lease.network_id, lease.id) for lease in state.leases_on_node(self.node_id)}
            news = self._take(state)
            return Networking(
                full=True, networks=news.networks, endpoints=news.endpoints, services=news.services,
            )
        return self._take(state)

    def _take(self, state: State) -> Networking:
        dirty, self._dirty = self._dirty, set()
        dirty_services, self._dirty_services = self._dirty_services, set()
        for place in dirty:
            self._count(state, place)
        own = state.nodes.get(self.node_id)
        joined = [
            ident for ident in self._members
            # Without a number the node has no address inside the encrypted ways yet.
            if ident not in self._told and ident in state.networks
            and (not is_encrypted(state.networks[ident]) or (own is not None and own.number))
        ]
        left = [ident for ident in self._told if ident not in self._members]
        networks = tuple(_network(state, state.networks[ident]) for ident in joined)
        for info in networks:
            self._told[info.id] = info
            dirty |= {(info.id, task.id) for task in state.tasks_on_network(info.id)}
            dirty |= {(info.id, lease.id) for lease in state.leases_on_network(info.id)}
            dirty_services |= {
                (info.id, service.id) for service in state.services.values() if info.id in _wanted(service)
            }
        for ident in left:
            del self._told[ident]
            self._endpoints = {place: known for place, known in self._endpoints.items() if place[0] != ident}
            self._services = {place: known for place, known in self._services.items() if place[0] != ident}
        endpoints, gone_endpoints = self._changed_endpoints(state, dirty)
        services, gone_services = self._changed_services(state, dirty_services)
        return Networking(
            networks=networks, gone_networks=tuple(left), endpoints=tuple(endpoints), services=tuple(services),
            gone_endpoints=tuple(gone_endpoints), gone_services=tuple(gone_services),
        )

    def _count(self, state: State, place: Place) -> None:
        """Keep up whether this node takes part in a network because of this task or lease."""
        network_id, ident = place
        here = _endpoint(state, place)
        if here is not None and here.node_id == self.node_id:
            self._members.setdefault(network_id, set()).add(ident)
        elif (members := self._members.get(network_id)) is not None:
            members.discard(ident)
            if not members:
                del self._members[network_id]

    def _changed_endpoints(self, state: State, dirty: set[Place]) -> tuple[list[EndpointInfo], list[Place]]:
        changed: list[EndpointInfo] = []
        gone: list[Place] = []
        for place in dirty:
            if place[0] not in self._told:
                continue
            now = _endpoint(state, place)
            if now is None:
                if self._endpoints.pop(place, None) is not None:
                    gone.append(place)
            elif self._endpoints.get(place) != now:
                self._endpoints[place] = now
                changed.append(now)
        return changed, gone

    def _changed_services(self, state: State, dirty: set[Place]) -> tuple[list[ServiceInfo], list[Place]]:
        changed: list[ServiceInfo] = []
        gone: list[Place] = []
        for place in dirty:
            if place[0] not in self._told:
                continue
            now = _service(state, place)
            if now is None:
                if self._services.pop(place, None) is not None:
                    gone.append(place)
            elif self._services.get(place) != now:
                self._services[place] = now
                changed.append(now)
        return changed, gone


def _wanted(service: Service) -> tuple[str, ...]:
    return cluster_networks(service.spec.task_template)


def _network(state: State, network: Network) -> NetworkInfo:
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


def _endpoint(state: State, place: Place) -> EndpointInfo | None:
    """None for a task that has ended, or was not given to a node yet."""
    network_id, ident = place
    if (lease := state.leases.get(ident)) is not None:
        node = state.nodes.get(lease.node_id)
        return EndpointInfo(
            network_id=network_id, id=ident, address=_plain(lease.address), address6=_plain(lease.address6),
            node_id=lease.node_id, node_addr=_way_to(state, node, network_id), names=lease.names,
            mac=lease.mac,
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
        names=_names(task, node), service_id=task.service_id, slot=task.slot, serving=serves(task, node), mac=held.mac,
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
        and any((place.network_id, place.address) == (held.network_id, held.address) for place in other.networks)
        for other in state.tasks_of_service(task.service_id)
    )


def _service(state: State, place: Place) -> ServiceInfo | None:
    network_id, ident = place
    service = state.services.get(ident)
    if service is None or service.pending_delete or network_id not in _wanted(service):
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
