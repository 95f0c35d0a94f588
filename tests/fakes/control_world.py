"""A cluster in one process: real manager parts on an in-memory etcd, real agents' sessions and workers on engines
that only pretend, all of it over real TLS WebSockets on loopback."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fakes.networks_made import FakeNetworks
from msgspec.structs import replace

from swarmlet.engine_api.server import Server
from swarmlet.errors import Conflict, NotFound, NotModified
from swarmlet.model.cluster import DispatcherSpec, SwarmSpec
from swarmlet.model.common import Platform
from swarmlet.model.container import ContainerCreate, ImageConfig
from swarmlet.model.ids import new_hex_id
from swarmlet.model.node import NodeDescription, NodeResources
from swarmlet.model.service import ContainerSpec, ReplicatedMode, ServiceMode, ServiceSpec, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.template import NodeFacts
from swarmlet.tls import TlsIdentity, server_context
from swarmlet.wire.messages import ContainerRef
from swarmlet_agent.engine.container import Container, ContainerState, Health, SuppliedFile
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.images.types import Image, RegistryAuth
from swarmlet_agent.journal import Journal
from swarmlet_agent.session.buffer import StatusBuffer
from swarmlet_agent.session.identity import NodeIdentity, join
from swarmlet_agent.session.managers import ManagerList
from swarmlet_agent.session.session import AgentSession, NodePlace, NodeRemoved
from swarmlet_agent.worker.worker import TaskWorker
from swarmlet_manager.ca.authority import Authority
from swarmlet_manager.ca.routes import JoinRoutes
from swarmlet_manager.ca.vault import Vault
from swarmlet_manager.control.allocation import Allocation
from swarmlet_manager.control.commands import Control
from swarmlet_manager.control.reconcile import Reconcilers
from swarmlet_manager.dispatch.dispatcher import Dispatcher
from swarmlet_manager.leadership import Leading
from swarmlet_manager.restored import note_restore
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.memory import MemoryClient, MemoryEtcd
from swarmlet_manager.store.store import Store

#: Fast enough for tests, slow enough for a busy machine.
HEARTBEAT_NS = 500_000_000


class FakeEngine:
    """Containers that run until told otherwise."""

    def __init__(self) -> None:
        self.events = EventBus()
        self.containers: dict[str, Container] = {}
        self.start_error: Exception | None = None
        self.created: list[str] = []
        self.healthy_at_once = True
        self.supplies: dict[str, tuple[bytes, ...]] = {}
        self.stops: list[tuple[str, int | None]] = []

    async def create(
        self, name: str, request: ContainerCreate, *, supplied: Sequence[SuppliedFile] = ()
    ) -> tuple[Container, list[str]]:
        await asyncio.sleep(0)
        if name in self.containers:
            raise Conflict(f"the name {name} is in use")
        container = Container(
            id=new_hex_id(), name=name, created_at=time.time_ns(), request=request, image_id="sha256:0",
            image_ref=request.image, args=("sh",), supplied=tuple(supplied),
        )
        self.containers[name] = container
        self.created.append(name)
        self._emit(container, "create")
        return container, []

    async def supply(self, ref: str, contents: Sequence[bytes]) -> None:
        self.supplies[self.get(ref).name] = tuple(contents)

    def get(self, ref: str) -> Container:
        for container in self.containers.values():
            if ref in (container.name, container.id):
                return container
        raise NotFound("container", ref)

    def list(self) -> list[Container]:
        return list(self.containers.values())

    async def start_container(self, ref: str) -> None:
        container = self.get(ref)
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error
        check = container.request.healthcheck
        health = None if check is None else Health(status="healthy" if self.healthy_at_once else "starting")
        self.set_state(ref, ContainerState(status="running", pid=4711, started_at=time.time_ns(), health=health))
        self._emit(container, "start")

    async def stop(self, ref: str, timeout_s: int | None = None) -> None:
        container = self.get(ref)
        self.stops.append((container.name, timeout_s))
        if not container.is_running:
            raise NotModified
        await asyncio.sleep(0)
        self.exit(ref, 143, manually=True)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        container = self.get(ref)
        del self.containers[container.name]
        self._emit(container, "destroy")

    # What happens by itself

    def exit(self, ref: str, code: int, *, manually: bool = False) -> None:
        container = self.get(ref)
        state = replace(
            container.state, status="exited", pid=0, exit_code=code, finished_at=time.time_ns(),
            manually_stopped=manually,
        )
        self.set_state(ref, state)
        self._emit(container, "die")

    def set_health(self, ref: str, status: str) -> None:
        container = self.get(ref)
        self.set_state(ref, replace(container.state, health=Health(status=status)))
        self._emit(container, f"health_status: {status}")

    def set_state(self, ref: str, state: ContainerState) -> None:
        container = self.get(ref)
        self.containers[container.name] = replace(container, state=state)

    def _emit(self, container: Container, action: str) -> None:
        labels = {**container.request.labels, "name": container.name}
        self.events.publish("container", action, container.id, labels)


class FakeImages:
    def __init__(self, present: tuple[str, ...] = ("busybox",)) -> None:
        self.present = set(present)
        self.pulls: list[tuple[str, RegistryAuth | None]] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    def get(self, ref: str) -> Image:
        if ref not in self.present:
            raise NotFound("image", ref)
        return Image(
            id="sha256:0", config=ImageConfig(), layers=(), architecture="amd64", os="linux", created=0, size_bytes=0
        )

    async def pull(self, ref: str, *, auth: RegistryAuth | None = None) -> Image:
        self.pulls.append((ref, auth))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.present.add(ref)
        return self.get(ref)


@dataclass
class Manager:
    """One manager's parts, serving on a loopback port."""

    store: Store
    control: Control
    dispatcher: Dispatcher
    authority: Authority
    address: str
    stack: AsyncExitStack = field(repr=False)

    async def stop(self) -> None:
        await self.stack.aclose()


async def start_manager(
    etcd: MemoryEtcd, port: int = 0, name: str = "m1", folder: Path | None = None
) -> Manager:
    """folder: where it keeps the key of secrets; None: a new one."""
    stack = AsyncExitStack()
    address = {"own": f"127.0.0.1:{port}"}
    store = Store(MemoryClient(etcd), Candidate(id=name, addr=f"127.0.0.1:{port}"))
    await store.start()
    stack.push_async_callback(store.stop)
    authority = Authority(store)
    allocation = Allocation(store)
    if folder is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="manager-")))
    vault = Vault(store, folder)
    dispatcher = Dispatcher(store, allocation, vault, leader_addr=lambda: address["own"])
    spec = SwarmSpec(dispatcher=DispatcherSpec(heartbeat_period=HEARTBEAT_NS))
    duties = (allocation, dispatcher, Reconcilers(store))

    async def prepare() -> None:
        await authority.ensure_cluster(spec)
        await vault.ensure()
        await note_restore(store, folder)

    leading = Leading(store, prepare, duties)
    task = asyncio.create_task(leading.run())

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await until(lambda: store.leader and (cluster := store.state.cluster) is not None and bool(cluster.data_key_digest))
    identity = TlsIdentity(authority.own_certificate(name, ["127.0.0.1"]), authority.ca_pem())
    server = Server([*JoinRoutes(authority, more_managers=False).routes(), *vault.routes(), *dispatcher.routes()])
    stack.push_async_callback(server.close)
    stack.push_async_callback(end)
    taken = await server.listen_tcp("127.0.0.1", port, server_context(identity, require_client=False))
    address["own"] = f"127.0.0.1:{taken}"
    return Manager(store, Control(store, dispatcher, vault), dispatcher, authority, address["own"], stack)


@dataclass
class Agent:
    """One node: identity, engine, worker, session."""

    data_dir: Path
    identity: NodeIdentity
    engine: FakeEngine
    images: FakeImages
    hostname: str
    journal: Journal | None = None
    worker: TaskWorker | None = None
    session: AgentSession | None = None
    removed: bool = False
    problems: tuple[str, ...] = ()
    statuses: StatusBuffer = field(default_factory=StatusBuffer)
    networks: FakeNetworks = field(default_factory=FakeNetworks)
    _task: asyncio.Task[None] | None = None

    @property
    def node_id(self) -> str:
        return self.identity.node_id

    async def start(self, managers: tuple[str, ...]) -> None:
        self.journal = Journal(self.data_dir / "journal.db")
        self.statuses = StatusBuffer()
        facts = NodeFacts(self.node_id, self.hostname)

        def report(task_id: str, status: TaskStatus) -> None:
            self.statuses.report(task_id, status)
            if self.session is not None:
                self.session.wake()

        self.worker = TaskWorker(
            self.engine, self.images, self.journal, node=lambda: facts, report=report, forget=self.statuses.forget,
            networks=FakeNetworks(),
        )
        self.session = AgentSession(
            self.identity, data_dir=self.data_dir, journal=self.journal,
            managers=ManagerList(self.journal, managers), place=NodePlace("127.0.0.1", 1),
            describe=lambda: replace(describe(self.hostname), problems=self.problems),
            containers=lambda: [ContainerRef(id=one.id, name=one.name) for one in self.engine.list()],
            statuses=self.statuses, orders=self.worker, networks=self.networks,
        )
        await self.worker.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """The agent dies; its containers do not."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.worker is not None:
            await self.worker.close()
        if self.journal is not None:
            self.journal.close()
        self._task = self.worker = self.session = self.journal = None

    async def _run(self) -> None:
        assert self.session is not None
        try:
            await self.session.run()
        except NodeRemoved:
            self.removed = True


async def join_agent(manager: Manager, data_dir: Path, hostname: str) -> Agent:
    tokens = manager.control.join_tokens()
    identity = await join(data_dir, [manager.address], tokens.worker, hostname=hostname, addr="127.0.0.1")
    return Agent(data_dir, identity, FakeEngine(), FakeImages(), hostname)


@asynccontextmanager
async def cluster(folder: Path, agents: int = 3) -> AsyncIterator[tuple[MemoryEtcd, Manager, list[Agent]]]:
    """A manager and joined, connected agents."""
    etcd = MemoryEtcd()
    manager = await start_manager(etcd)
    nodes: list[Agent] = []
    try:
        for number in range(agents):
            agent = await join_agent(manager, folder / f"node-{number}", f"node-{number}")
            nodes.append(agent)
            await agent.start((manager.address,))
        await until(lambda: len(manager.dispatcher.connected) == agents)
        yield etcd, manager, nodes
    finally:
        for agent in nodes:
            await agent.stop()
        await manager.stop()
        etcd.close()


def describe(hostname: str) -> NodeDescription:
    return NodeDescription(
        hostname=hostname, platform=Platform(os="linux", architecture="x86_64"),
        resources=NodeResources(nano_cpus=4_000_000_000, memory_bytes=8 << 30),
    )


def service_spec(name: str = "web", replicas: int = 1, image: str = "busybox", **more: object) -> ServiceSpec:
    return ServiceSpec(
        name=name, mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)),
        task_template=TaskSpec(container_spec=ContainerSpec(image=image, **more)),  # type: ignore[arg-type]
    )


def tasks_in(manager: Manager, state: TaskState) -> list[Task]:
    return [task for task in manager.store.state.tasks.values() if task.status.state is state]


def running(manager: Manager) -> list[Task]:
    return [task for task in tasks_in(manager, TaskState.RUNNING) if task.desired_state is TaskState.RUNNING]


def by_node(tasks: list[Task]) -> Mapping[str, int]:
    return {node: sum(task.node_id == node for task in tasks) for node in {task.node_id for task in tasks}}


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits for a condition that has no event of its own."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
