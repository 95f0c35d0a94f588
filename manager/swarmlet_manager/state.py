"""The whole cluster in memory: records by id, and the indexes every decision needs.

Pure: no I/O, no clock. The store applies changes to it (from the watch, and on acknowledgement of its own
writes); everyone else only reads. All of it is of one revision between two awaits, so a decision that
does not await sees a consistent view without a copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, ValuesView
from dataclasses import dataclass
from typing import TypeVar, cast

from swarmlet.errors import Conflict, NotFound
from swarmlet.model.cluster import Cluster
from swarmlet.model.dependency import Config, Dependency, Kind, Secret
from swarmlet.model.network import Lease, Network
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.task import Task

#: Everything the store keeps. A record's kind is its class; its identity is its `id`.
StoredRecord = Cluster | Config | Lease | Network | Node | Secret | Service | Task


@dataclass(frozen=True, slots=True)
class Put:
    """Create or replace a record. `record.version` is the version it was read at; 0 = it must not exist."""

    record: StoredRecord


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a record, if it still has the version it was read at."""

    record: StoredRecord


Op = Put | Delete

_Found = TypeVar("_Found", Dependency, Network, Node, Service, Task)


@dataclass(frozen=True, slots=True)
class Change:
    """One applied change: before is None for a creation, after is None for a removal."""

    before: StoredRecord | None
    after: StoredRecord | None

    @property
    def record(self) -> StoredRecord:
        """The newer of the two: enough to know kind and id."""
        record = self.after if self.after is not None else self.before
        assert record is not None
        return record


class State:
    """Indexed records. Mappings handed out are live and must not be changed by readers."""

    def __init__(self) -> None:
        self.revision = 0
        self.cluster: Cluster | None = None
        self._nodes: dict[str, Node] = {}
        self._networks: dict[str, Network] = {}
        self._leases: dict[str, Lease] = {}
        self._leases_on_node: defaultdict[str, dict[str, Lease]] = defaultdict(dict)
        self._leases_on_network: defaultdict[str, dict[str, Lease]] = defaultdict(dict)
        self._services: dict[str, Service] = {}
        self._service_ids: dict[str, str] = {}
        self._secrets: dict[str, Secret] = {}
        self._configs: dict[str, Config] = {}
        self._tasks: dict[str, Task] = {}
        self._tasks_of_service: defaultdict[str, dict[str, Task]] = defaultdict(dict)
        self._tasks_on_node: defaultdict[str, dict[str, Task]] = defaultdict(dict)
        self._tasks_on_network: defaultdict[str, dict[str, Task]] = defaultdict(dict)

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    @property
    def networks(self) -> Mapping[str, Network]:
        return self._networks

    @property
    def leases(self) -> Mapping[str, Lease]:
        return self._leases

    @property
    def secrets(self) -> Mapping[str, Secret]:
        return self._secrets

    @property
    def configs(self) -> Mapping[str, Config]:
        return self._configs

    def dependencies(self, kind: Kind) -> Mapping[str, Dependency]:
        """All secrets, or all configs."""
        return cast(Mapping[str, Dependency], self._secrets if kind is Secret else self._configs)

    def dependency_named(self, kind: Kind, name: str) -> Dependency | None:
        return next((record for record in self.dependencies(kind).values() if record.name == name), None)

    def find_dependency(self, kind: Kind, ref: str) -> Dependency:
        """By id, name, or unambiguous id prefix, in this order. NotFound, Conflict."""
        known = self.dependencies(kind)
        found = known.get(ref) or self.dependency_named(kind, ref)
        return found or _by_prefix(kind.__name__.lower(), ref, known.values())

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def tasks_of_service(self, service_id: str) -> ValuesView[Task]:
        """All tasks of a service in any state, history included; in no particular order."""
        return self._tasks_of_service[service_id].values() if service_id in self._tasks_of_service else _NO_TASKS

    def tasks_on_node(self, node_id: str) -> ValuesView[Task]:
        """All tasks ever placed on a node that still have a record."""
        return self._tasks_on_node[node_id].values() if node_id in self._tasks_on_node else _NO_TASKS

    def tasks_on_network(self, network_id: str) -> ValuesView[Task]:
        """All tasks that were given an address in a network and still have a record."""
        return self._tasks_on_network[network_id].values() if network_id in self._tasks_on_network else _NO_TASKS

    def leases_on_node(self, node_id: str) -> ValuesView[Lease]:
        """All leases of a node's containers."""
        return self._leases_on_node[node_id].values() if node_id in self._leases_on_node else _NO_LEASES

    def leases_on_network(self, network_id: str) -> ValuesView[Lease]:
        """All leases in a network."""
        return self._leases_on_network[network_id].values() if network_id in self._leases_on_network else _NO_LEASES

    def get(self, record: StoredRecord) -> StoredRecord | None:
        """The current record of the same kind and id."""
        match record:
            case Task():
                return self._tasks.get(record.id)
            case Node():
                return self._nodes.get(record.id)
            case Service():
                return self._services.get(record.id)
            case Network():
                return self._networks.get(record.id)
            case Lease():
                return self._leases.get(record.id)
            case Secret():
                return self._secrets.get(record.id)
            case Config():
                return self._configs.get(record.id)
            case Cluster():
                return self.cluster

    def service_named(self, name: str) -> Service | None:
        ident = self._service_ids.get(name)
        return None if ident is None else self._services[ident]

    def find_service(self, ref: str) -> Service:
        """By id, name, or unambiguous id prefix, in this order. NotFound, Conflict."""
        found = self._services.get(ref) or self.service_named(ref)
        return found or _by_prefix("service", ref, self._services.values())

    def network_named(self, name: str) -> Network | None:
        live = (network for network in self._networks.values() if not network.pending_delete)
        return next((network for network in live if network.name == name), None)

    @property
    def ingress(self) -> Network | None:
        """The network that the routing mesh reaches tasks over."""
        live = (network for network in self._networks.values() if not network.pending_delete)
        return next((network for network in live if network.spec.ingress), None)

    def find_network(self, ref: str) -> Network:
        """By id, name, or unambiguous id prefix, in this order. NotFound, Conflict."""
        live = {ident: network for ident, network in self._networks.items() if not network.pending_delete}
        return live.get(ref) or self.network_named(ref) or _by_prefix("network", ref, live.values())

    def find_node(self, ref: str) -> Node:
        """By id, hostname, or unambiguous id prefix. NotFound; Conflict if several share the hostname."""
        if found := self._nodes.get(ref):
            return found
        named = [node for node in self._nodes.values() if node.description.hostname == ref or node.spec.name == ref]
        if len(named) > 1:
            raise Conflict(f"node {ref} is ambiguous ({len(named)} matches found)")
        return named[0] if named else _by_prefix("node", ref, self._nodes.values())

    def find_task(self, ref: str) -> Task:
        """By id or unambiguous id prefix (a task's name is searched by the callers that allow it)."""
        return self._tasks.get(ref) or _by_prefix("task", ref, self._tasks.values())

    def apply(self, op: Op) -> Change:
        """Put or delete, without any check: the store has made them. Returns what changed."""
        if isinstance(op, Put):
            return self._put(op.record)
        return self._delete(op.record)

    def _put(self, record: StoredRecord) -> Change:
        before = self.get(record)
        match record:
            case Task():
                if isinstance(before, Task):
                    self._unindex(before)
                self._tasks[record.id] = record
                self._tasks_of_service[record.service_id][record.id] = record
                if record.node_id:
                    self._tasks_on_node[record.node_id][record.id] = record
                for attachment in record.networks:
                    self._tasks_on_network[attachment.network_id][record.id] = record
            case Node():
                self._nodes[record.id] = record
            case Service():
                if isinstance(before, Service) and before.spec.name != record.spec.name:
                    self._service_ids.pop(before.spec.name, None)
                self._services[record.id] = record
                if not record.pending_delete:
                    self._service_ids[record.spec.name] = record.id
                elif self._service_ids.get(record.spec.name) == record.id:
                    # Removed for its users, though its tasks still have to stop: the name is free again.
                    del self._service_ids[record.spec.name]
            case Network():
                self._networks[record.id] = record
            case Lease():
                if isinstance(before, Lease):
                    self._unindex_lease(before)
                self._leases[record.id] = record
                self._leases_on_node[record.node_id][record.id] = record
                self._leases_on_network[record.network_id][record.id] = record
            case Secret():
                self._secrets[record.id] = record
            case Config():
                self._configs[record.id] = record
            case Cluster():
                self.cluster = record
        return Change(before, record)

    def _delete(self, record: StoredRecord) -> Change:
        before = self.get(record)
        match before:
            case Task():
                self._unindex(before)
                del self._tasks[before.id]
            case Node():
                del self._nodes[before.id]
            case Service():
                del self._services[before.id]
                if self._service_ids.get(before.spec.name) == before.id:
                    del self._service_ids[before.spec.name]
            case Network():
                del self._networks[before.id]
            case Lease():
                self._unindex_lease(before)
                del self._leases[before.id]
            case Secret():
                del self._secrets[before.id]
            case Config():
                del self._configs[before.id]
            case Cluster():
                self.cluster = None
            case None:
                pass
        return Change(before, None)

    def _unindex(self, task: Task) -> None:
        networks = ((self._tasks_on_network, attachment.network_id) for attachment in task.networks)
        for index, key in (
            (self._tasks_of_service, task.service_id), (self._tasks_on_node, task.node_id), *networks
        ):
            if key in index:
                index[key].pop(task.id, None)
                if not index[key]:
                    del index[key]

    def _unindex_lease(self, lease: Lease) -> None:
        for index, key in ((self._leases_on_node, lease.node_id), (self._leases_on_network, lease.network_id)):
            index[key].pop(lease.id, None)
            if not index[key]:
                del index[key]


_NO_TASKS: ValuesView[Task] = {}.values()
_NO_LEASES: ValuesView[Lease] = {}.values()


def _by_prefix(kind: str, ref: str, records: Iterable[_Found]) -> _Found:
    found = [record for record in records if record.id.startswith(ref)] if ref else []
    if len(found) > 1:
        raise Conflict(f"{kind} {ref} is ambiguous ({len(found)} matches found)")
    if not found:
        raise NotFound(kind, ref, f"{kind} {ref} not found")
    return found[0]
