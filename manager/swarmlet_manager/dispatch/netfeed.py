"""What one agent has been told of networks, and what it must be told next: pure bookkeeping of one session.

A node takes part in a network while it has a task or a leased container there; it then knows every endpoint and
every service of that network, and nothing of any other.
"""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.model.defaults import ingress_ports
from swarmlet.model.network import Lease
from swarmlet.model.service import Service
from swarmlet.model.task import Task
from swarmlet.wire.networking import EndpointInfo, MeshNews, NetworkInfo, Networking, ServiceInfo, WaysInfo
from swarmlet_manager.decide.ways import is_encrypted
from swarmlet_manager.dispatch.meshfeed import mesh_of
from swarmlet_manager.dispatch.netfacts import Facts, Place, network_info, service_info, wanted_networks
from swarmlet_manager.dispatch.wayfeed import ways_of
from swarmlet_manager.state import Change, State


class NetworkFeed:
    """One session's view. `note` each change, then `take` what to send.

    facts: those of all sessions; who has them notes changes there first. mesh_news: whether the agent takes them.
    """

    def __init__(self, node_id: str, facts: Facts | None = None, *, mesh_news: bool = True) -> None:
        self.node_id = node_id
        self._facts = facts or Facts()
        self._takes_mesh_news = mesh_news
        self._members: dict[str, set[str]] = {}  # network -> this node's tasks and leases there
        self._told: dict[str, NetworkInfo] = {}
        self._endpoints: dict[Place, EndpointInfo] = {}
        self._services: dict[Place, ServiceInfo] = {}
        self._dirty: set[Place] = set()
        self._dirty_services: set[Place] = set()
        self._full = True
        #: The version of the mesh that was told last, None = none.
        self._mesh: int | None = None
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
                    for place in record.networks:
                        if place.network_id in self._told or record.node_id == self.node_id:
                            self._dirty.add((place.network_id, record.id))
                            noted = True
                case Lease():
                    if record.network_id in self._told or record.node_id == self.node_id:
                        self._dirty.add((record.network_id, record.id))
                        noted = True
                case Service():
                    for network_id in {*(vip.network_id for vip in record.vips), *wanted_networks(record)}:
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
        self.mesh_changed()
        self.ways_changed()
        return True

    def mesh_changed(self) -> None:
        """There may be news of it."""
        self._mesh_dirty = True

    def leads_to(self, task: Task) -> bool:
        """Whether what was told last sends clients to a task."""
        if self._mesh is not None and ingress_ports(task.ports):
            return True
        told = (self._endpoints.get((place.network_id, task.id)) for place in task.networks)
        return any(endpoint is not None and endpoint.serving for endpoint in told)

    def take(self, state: State) -> Networking:
        """What was taken counts as told. An empty answer if nothing is news."""
        news = self._take_networks(state)
        mesh_news = self._take_mesh(state)
        mesh = mesh_of(state) if mesh_news is not None and not self._takes_mesh_news else None
        return replace(
            news, mesh=mesh, mesh_news=mesh_news if mesh is None else None, ways=self._take_ways(state)
        )

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

    def _take_mesh(self, state: State) -> MeshNews | None:
        if not self._mesh_dirty:
            return None
        self._mesh_dirty = False
        news, self._mesh = self._facts.mesh.news(state, self._mesh)
        return news

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
        networks = tuple(network_info(state, state.networks[ident]) for ident in joined)
        for info in networks:
            self._told[info.id] = info
            dirty |= {(info.id, task.id) for task in state.tasks_on_network(info.id)}
            dirty |= {(info.id, lease.id) for lease in state.leases_on_network(info.id)}
            dirty_services |= {
                (info.id, service.id) for service in state.services.values() if info.id in wanted_networks(service)
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
        here = self._facts.endpoint(state, place)
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
            now = self._facts.endpoint(state, place)
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
            now = service_info(state, place)
            if now is None:
                if self._services.pop(place, None) is not None:
                    gone.append(place)
            elif self._services.get(place) != now:
                self._services[place] = now
                changed.append(now)
        return changed, gone
