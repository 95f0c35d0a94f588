"""What the cluster's API needs of the rest of the manager, as it uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swarmlet.model.cluster import Cluster, SwarmSpec
from swarmlet.model.dependency import ConfigSpec, Dependency, Kind, SecretSpec
from swarmlet.model.network import Network, NetworkCreate
from swarmlet.model.node import Node, NodeSpec
from swarmlet.model.service import Service, ServiceSpec
from swarmlet.model.task import Task
from swarmlet_manager.state import State


class Tokens(Protocol):
    @property
    def worker(self) -> str: ...

    @property
    def manager(self) -> str: ...


class Depended(Protocol):
    """`control.dependencies.Dependencies`: secrets and configs."""

    def all(self, kind: Kind) -> list[Dependency]: ...

    def get(self, kind: Kind, ref: str) -> Dependency: ...

    def data(self, record: Dependency) -> bytes: ...

    async def create(self, kind: Kind, spec: SecretSpec | ConfigSpec) -> Dependency: ...

    async def update(self, kind: Kind, ref: str, version: int, spec: SecretSpec | ConfigSpec) -> Dependency: ...

    async def remove(self, kind: Kind, ref: str) -> None: ...


class Commands(Protocol):
    """`control.Control`: reads from memory; a command that returns is in etcd."""

    @property
    def state(self) -> State: ...

    @property
    def dependencies(self) -> Depended: ...

    async def create_service(self, spec: ServiceSpec, registry_auth: str = "") -> Service: ...

    async def update_service(
        self,
        ref: str,
        version: int,
        spec: ServiceSpec | None,
        *,
        rollback: bool = False,
        registry_auth: str = "",
        registry_auth_from: str = "spec",
    ) -> Service: ...

    async def remove_service(self, ref: str) -> None: ...

    def service(self, ref: str) -> Service: ...

    def services(self) -> list[Service]: ...

    async def create_network(self, spec: NetworkCreate) -> Network: ...

    @property
    def ingress_is_due(self) -> bool:
        """The routing mesh has no network yet, and gets one when it is needed."""
        ...

    async def remove_network(self, ref: str) -> None: ...

    def network(self, ref: str) -> Network: ...

    def task(self, ref: str) -> Task: ...

    def tasks(self) -> Sequence[Task]: ...

    def node(self, ref: str) -> Node: ...

    def nodes(self) -> list[Node]: ...

    async def update_node(self, ref: str, version: int, spec: NodeSpec) -> Node: ...

    async def remove_node(self, ref: str, *, force: bool = False) -> None: ...

    def locate_container(self, ref: str) -> str: ...

    def cluster(self) -> Cluster: ...

    async def update_cluster(
        self, version: int, spec: SwarmSpec, *, rotate_worker_token: bool = False, rotate_manager_token: bool = False
    ) -> Cluster: ...

    def join_tokens(self) -> Tokens: ...


class Place(Protocol):
    """Where this manager is: which node it runs on, and which node leads."""

    @property
    def node_id(self) -> str:
        """This host's node, "" before it has joined its own cluster."""
        ...

    @property
    def leader_node_id(self) -> str: ...
