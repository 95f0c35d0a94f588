"""`Control`: what a user can ask of the cluster. The API decodes, calls one of these, and encodes.

Reads come from memory. Every command that returns has its effect in etcd; the leader's loops then make it so.
Errors are answers: NotFound, Conflict, InvalidArgument (NotSupported), OutOfSequence, Unavailable (no leader).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from msgspec.structs import replace

from swarmlet.errors import Conflict, InvalidArgument, NotAManager, NotFound, OutOfSequence, StaleView, Unavailable
from swarmlet.loops import KeyedLocks
from swarmlet.model.cluster import Cluster, SwarmSpec
from swarmlet.model.defaults import cluster_networks, ingress_ports
from swarmlet.model.ids import new_cluster_id
from swarmlet.model.network import Network, NetworkCreate
from swarmlet.model.node import Node, NodeSpec
from swarmlet.model.service import PortConfig, Service, ServiceSpec
from swarmlet.model.states import Role
from swarmlet.model.task import Task
from swarmlet.pki import new_join_token
from swarmlet_manager.ca.seal import seal
from swarmlet_manager.control import edits
from swarmlet_manager.control.dependencies import Dependencies, Vault
from swarmlet_manager.control.naming import new_name
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.decide import allocate, dependencies, fixed, networks, validate
from swarmlet_manager.state import Delete, Op, Put, State

#: How often a command whose record changed under it looks again before it gives up.
ATTEMPTS = 20


_Written = TypeVar("_Written", Network, Service, Node, Cluster)


@dataclass(frozen=True, slots=True)
class JoinTokens:
    worker: str
    manager: str

    def __repr__(self) -> str:
        return "JoinTokens(…)"


class NodeViews(Protocol):
    """What only the leader's sessions know."""

    def locate_container(self, ref: str) -> str:
        """The id of the node that has this container (name, id, id prefix). NotFound, Conflict."""
        ...


class Control:
    """Commands and look-ups. One per manager process."""

    def __init__(
        self,
        store: StorePort,
        nodes: NodeViews,
        vault: Vault,
        *,
        now: Callable[[], int] = time.time_ns,
        new_id: Callable[[], str] = new_cluster_id,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._now = now
        self._new_id = new_id
        self._rng = rng or random.Random()
        self._names: KeyedLocks[str] = KeyedLocks()
        #: Held from a decision on what is unique in the cluster (subnets, ports) to its commit.
        self._unique = asyncio.Lock()
        #: Secrets and configs.
        self.dependencies = Dependencies(store, vault, self._unique, now=now, new_id=new_id)

    @property
    def state(self) -> State:
        """The whole cluster, read only."""
        return self._store.state

    # Services

    async def create_service(self, spec: ServiceSpec, registry_auth: str = "") -> Service:
        """registry_auth: the X-Registry-Auth value agents pull with. A service without a name gets one.
        Conflict if the name is taken."""
        if not spec.name:
            spec = replace(spec, name=new_name(lambda name: self.state.service_named(name) is not None, self._rng))
        validate.check_service_spec(spec)
        ident = self._new_id()
        sealed = seal(self.cluster().seal_key, registry_auth, ident)
        async with self._names.hold(spec.name):
            if (taken := self.state.service_named(spec.name)) is not None:
                raise Conflict(
                    "rpc error: code = AlreadyExists desc = name conflicts with an existing object: "
                    f"service {taken.spec.name} already exists"
                )
            async with self._deciding_on(spec):
                ports = self._claims("", spec)
                return await self._put(edits.new_service(ident, spec, ports, sealed, self._now()))

    async def update_service(
        self,
        ref: str,
        version: int,
        spec: ServiceSpec | None,
        *,
        rollback: bool = False,
        registry_auth: str = "",
        registry_auth_from: str = "spec",
    ) -> Service:
        """Replace the spec, or with rollback=True go back to the previous one (spec is then ignored).

        registry_auth "" keeps the credentials of "spec" or "previous-spec", as registry_auth_from says.
        """
        service = self.service(ref)
        if not rollback and spec is not None:
            validate.check_service_spec(spec)
            validate.check_update(service.spec, spec)
        if version != service.version:
            raise OutOfSequence
        going = edits.previous_spec(service) if rollback or spec is None else spec
        async with self._deciding_on(going):
            return await self._update(service, spec, rollback, registry_auth, registry_auth_from)

    async def _update(
        self, service: Service, spec: ServiceSpec | None, rollback: bool, registry_auth: str, registry_auth_from: str
    ) -> Service:
        if rollback or spec is None:
            ports = self._claims(service.id, edits.previous_spec(service))
            changed = edits.rolled_back_service(service, ports, self._now())
        else:
            kept = service.previous_sealed_auth if registry_auth_from == "previous-spec" else service.sealed_auth
            sealed = seal(self.cluster().seal_key, registry_auth, service.id) or kept
            ports = self._claims(service.id, spec)
            changed = edits.updated_service(service, spec, ports, sealed, self._now())
        try:
            return await self._put(changed)
        except StaleView as err:
            raise OutOfSequence from err

    def _claims(self, service_id: str, spec: ServiceSpec) -> tuple[PortConfig, ...]:
        """The spec's ports with every number filled in. InvalidArgument, Conflict for what is someone else's."""
        fixed.check_free(self.state, service_id, spec)
        return allocate.plan_ports(self.state, service_id, spec)

    async def remove_service(self, ref: str) -> None:
        """Its name is free at once; its tasks stop, and their records go, in the background."""
        ident = self.service(ref).id
        await self._change(
            lambda: [Put(replace(self.service(ident), pending_delete=True, updated_at=self._now()))]
        )

    def service(self, ref: str) -> Service:
        """By id, name or id prefix. NotFound for one that is being removed."""
        service = self.state.find_service(ref)
        if service.pending_delete:
            raise NotFound("service", ref, f"service {ref} not found")
        return service

    def services(self) -> list[Service]:
        return [service for service in self.state.services.values() if not service.pending_delete]

    @contextlib.asynccontextmanager
    async def _deciding_on(self, spec: ServiceSpec) -> AsyncIterator[None]:
        """Commands whose results must not collide come one after another; the others side by side. The networks,
        secrets and configs a service names are there, and stay, inside the block. NotFound, InvalidArgument."""
        wanted = cluster_networks(spec.task_template)
        publishes = spec.endpoint_spec is not None and spec.endpoint_spec.ports
        if not wanted and not publishes and not dependencies.has_references(spec):
            yield
            return
        async with self._unique:
            dependencies.check_existence(self.state, spec)
            for network_id in wanted:
                self.network(network_id)
            if self.state.ingress is None and ingress_ports(spec.endpoint_spec.ports if spec.endpoint_spec else ()):
                if not self.ingress_is_due:
                    raise InvalidArgument(
                        "rpc error: code = FailedPrecondition desc = service needs ingress network, but no ingress "
                        "network is present"
                    )
                await self._put(networks.plan_ingress(self.state, self._new_id(), self._now()))
            yield

    # Networks

    async def create_network(self, spec: NetworkCreate) -> Network:
        async with self._unique:
            return await self._put(networks.plan_network(self.state, spec, self._new_id(), self._now()))

    @property
    def ingress_is_due(self) -> bool:
        """The routing mesh has no network yet, and gets one with the first service that publishes a port."""
        return self.state.ingress is None and not self.cluster().ingress_removed

    async def remove_network(self, ref: str) -> None:
        """Its name is free at once, its subnet when tasks that are stopping have left it. InvalidArgument says which
        service, task or container uses it."""
        async with self._unique:
            if ref == networks.INGRESS and self.ingress_is_due:
                await self._change(lambda: [Put(replace(self.cluster(), ingress_removed=True))])
                return
            network = self.network(ref)
            if users := networks.users_of(self.state, network):
                raise InvalidArgument(f"rpc error: code = FailedPrecondition desc = {users}")
            quiet = networks.is_quiet(self.state, network)
            going = replace(network, pending_delete=True, updated_at=self._now())
            ops: list[Op] = [Delete(network) if quiet else Put(going)]
            if not network.spec.ingress:
                await self._store.commit(ops)
                return
            await self._change(lambda: [*ops, Put(replace(self.cluster(), ingress_removed=True))])

    def network(self, ref: str) -> Network:
        """By id, name or id prefix."""
        return self.state.find_network(ref)

    # Tasks

    def task(self, ref: str) -> Task:
        """By id, name or id prefix."""
        named = next((task for task in self.state.tasks.values() if task.name == ref), None) if "." in ref else None
        return named or self.state.find_task(ref)

    def tasks(self) -> Sequence[Task]:
        return list(self.state.tasks.values())

    # Nodes

    def node(self, ref: str) -> Node:
        return self.state.find_node(ref)

    def nodes(self) -> list[Node]:
        return list(self.state.nodes.values())

    async def update_node(self, ref: str, version: int, spec: NodeSpec) -> Node:
        node = self.node(ref)
        managers = [each.id for each in self.state.nodes.values() if each.spec.role is Role.MANAGER]
        changed = edits.updated_node(node, version, spec, self._now(), is_last_manager=managers == [node.id])
        try:
            return await self._put(changed)
        except StaleView as err:
            raise OutOfSequence from err

    async def remove_node(self, ref: str, *, force: bool = False) -> None:
        """Refused for a node that is up (without force) and for managers. Its session ends at once."""
        ident = self.node(ref).id

        def remove() -> list[Op]:
            node = self.node(ident)
            edits.check_node_removal(node, force)
            return [Delete(node)]

        await self._change(remove)

    def locate_container(self, ref: str) -> str:
        """The id of the node that has this container (name, id, id prefix). NotFound, Conflict."""
        return self._nodes.locate_container(ref)

    # The cluster

    def cluster(self) -> Cluster:
        """NotAManager until the first start has made it."""
        if self.state.cluster is None:
            raise NotAManager
        return self.state.cluster

    async def update_cluster(
        self,
        version: int,
        spec: SwarmSpec,
        *,
        rotate_worker_token: bool = False,
        rotate_manager_token: bool = False,
    ) -> Cluster:
        changed = edits.updated_cluster(self.cluster(), version, spec, self._now())
        if rotate_worker_token:
            changed = replace(changed, worker_token=new_join_token(changed.ca_cert_pem))
        if rotate_manager_token:
            changed = replace(changed, manager_token=new_join_token(changed.ca_cert_pem))
        try:
            return await self._put(changed)
        except StaleView as err:
            raise OutOfSequence from err

    def join_tokens(self) -> JoinTokens:
        cluster = self.cluster()
        return JoinTokens(cluster.worker_token, cluster.manager_token)

    # Writing

    async def _put(self, record: _Written) -> _Written:
        stored = (await self._store.commit([Put(record)]))[0]
        assert type(stored) is type(record)
        return stored

    async def _change(self, make: Callable[[], list[Op]]) -> None:
        """Commit what `make` decides; if a record changed meanwhile, decide again."""
        for _ in range(ATTEMPTS):
            try:
                await self._store.commit(make())
            except StaleView:
                continue
            return
        raise Unavailable("the object keeps changing; try again")
