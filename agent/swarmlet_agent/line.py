"""What runs while this host is a member of a cluster: the node port, the session, and the task worker.

The worker is started with the agent, also while no manager answers: tasks it knows from the journal go on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import platform
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from swarmlet.config import AgentSettings
from swarmlet.engine_api.guard import for_managers
from swarmlet.engine_api.router import Route
from swarmlet.engine_api.server import Server
from swarmlet.log import get_logger
from swarmlet.model.common import Platform
from swarmlet.model.node import EngineDescription, EnginePlugin, NodeDescription, NodeResources, TLSInfo
from swarmlet.model.task import TaskStatus
from swarmlet.model.template import NodeFacts
from swarmlet.pki import subject_and_key
from swarmlet.tls import server_context
from swarmlet.wire.messages import ContainerRef
from swarmlet.wire.networking import Networking
from swarmlet_agent.addresses import authority
from swarmlet_agent.engine.engine import Engine
from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.journal import Journal
from swarmlet_agent.net.bridge import BridgeNetworks
from swarmlet_agent.net.host_addresses import mtu_of, other_addresses
from swarmlet_agent.plugins import PLUGINS
from swarmlet_agent.session.buffer import StatusBuffer
from swarmlet_agent.session.identity import NodeIdentity
from swarmlet_agent.session.inventory import follow_containers
from swarmlet_agent.session.managers import ManagerList
from swarmlet_agent.session.session import AgentSession, NodePlace, NodeRemoved
from swarmlet_agent.worker.worker import TaskWorker

log = get_logger(__name__)

#: Leaving waits this long for the cluster's containers to end.
LEAVE_S = 60.0
#: Pause after a part of the line has failed in a way nobody thought of.
AGAIN_S = 2.0


class ClusterLine:
    """One per agent; `start` when the host becomes a member, `stop` when it leaves or the agent ends."""

    def __init__(
        self, engine: Engine, images: ImageStore, networks: BridgeNetworks, journal: Journal,
        settings: AgentSettings, *, hostname: str, release: str, node_routes: Callable[[], Sequence[Route]],
        address: Callable[[], str], data_address: Callable[[], str], manager_port: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._images = images
        self._networks = networks
        self._journal = journal
        self._settings = settings
        self._hostname = hostname
        self._version = release
        self._node_routes = node_routes
        self._address = address
        self._data_address = data_address
        self._manager_port = manager_port
        self._server: Server | None = None
        self._session: AgentSession | None = None
        self._worker: TaskWorker | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._error = ""

    @property
    def error(self) -> str:
        return self._error

    async def start(self, identity: NodeIdentity, managers: Sequence[str], *, is_manager: bool) -> None:
        settings, statuses = self._settings, StatusBuffer()
        self._error = ""
        tls = server_context(identity.tls, require_client=True)
        # The node port is open to managers of this cluster and no one else.
        server = self._server = Server(for_managers(self._node_routes()))
        await server.listen_tcp(self._address() or "0.0.0.0", settings.node_port, tls)
        session: AgentSession

        def report(task_id: str, status: TaskStatus) -> None:
            statuses.report(task_id, status)
            session.wake()

        facts = NodeFacts(identity.node_id, self._hostname, "linux", platform.machine())
        worker = TaskWorker(
            self._engine, self._images, self._journal, node=lambda: facts, report=report, forget=statuses.forget,
            networks=self._networks,
        )
        manager_addr = authority(self._address(), self._manager_port()) if is_manager else ""
        session = AgentSession(
            identity, data_dir=Path(settings.data_dir), journal=self._journal,
            managers=ManagerList(self._journal, managers),
            place=NodePlace(
                self._address(), settings.node_port, manager_addr, self._data_address(),
                mtu_of(self._data_address() or self._address()), self._other_addresses,
            ),
            describe=lambda: describe(
                settings, self._hostname, self._version, identity, self._networks.problems
            ),
            containers=self._containers, statuses=statuses, orders=worker,
            networks=self._networks.cluster,
        )
        self._session, self._worker = session, worker
        self._networks.leases.bind(session.leases)
        self._networks.bind_problems(session.description_changed)
        self._networks.cluster.ways.on_change = session.wake
        await worker.start()
        self._tasks = [
            asyncio.create_task(self._run(session), name="session"),
            asyncio.create_task(_again(session.renew_for_ever), name="certificate"),
            asyncio.create_task(_again(lambda: follow_containers(self._engine, session)), name="inventory"),
        ]

    async def ready(self) -> None:
        """Until the cluster has the node as ready."""
        if self._session is not None:
            await self._session.connected.wait()

    async def stop(self, *, forget: bool, back_soon: bool = False) -> None:
        if back_soon and self._session is not None:
            self._session.back_soon()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        self._networks.leases.bind(None)
        self._networks.bind_problems(lambda: None)
        if self._server is not None:
            await self._server.close()
        if self._worker is not None:
            if forget:
                await self._release(self._worker)
                await self._networks.leave_cluster()
                await self._networks.cluster.update(Networking(full=True), node_id="", underlay=self._address())
            await self._worker.close()
        if forget and self._session is not None:
            await self._session.managers.forget()
        self._server = self._session = self._worker = None

    async def _release(self, worker: TaskWorker) -> None:
        """Every task of the cluster ends here."""
        await worker.assign(full=True, tasks=(), removed=(), registry_auth={})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEAVE_S
        while worker.tasks:
            if loop.time() > deadline:
                log.warning("tasks are left over", tasks=len(worker.tasks))
                return
            await asyncio.sleep(0.05)

    def _other_addresses(self) -> tuple[str, ...]:
        return other_addresses((self._address(), self._data_address()), self._networks.subnets())

    async def _run(self, session: AgentSession) -> None:
        try:
            await _again(session.run)
        except NodeRemoved as err:
            self._error = str(err)
            await self._networks.leave_cluster()
            log.error("no longer a member of the cluster: leave it to join again", reason=err)

    def _containers(self) -> list[ContainerRef]:
        return [ContainerRef(id=container.id, name=container.name) for container in self._engine.list()]


async def _again(work: Callable[[], Awaitable[None]]) -> None:
    """A defect costs a pause, not the node its place in the cluster until somebody restarts the agent."""
    while True:
        try:
            return await work()
        except NodeRemoved:
            raise
        except Exception:
            log.exception("the cluster line failed and begins again", in_s=AGAIN_S)
            await asyncio.sleep(AGAIN_S)


def describe(
    settings: AgentSettings, hostname: str, release: str, identity: NodeIdentity, problems: tuple[str, ...] = ()
) -> NodeDescription:
    """This host as the scheduler and `docker node inspect` see it."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    subject, key = subject_and_key(identity.tls.ca_pem)
    return NodeDescription(
        hostname=hostname, problems=problems,
        platform=Platform(architecture=machine, os="linux"),
        resources=NodeResources(nano_cpus=len(os.sched_getaffinity(0)) * 1_000_000_000, memory_bytes=memory_total()),
        engine=EngineDescription(
            engine_version=release, labels=dict(settings.labels),
            plugins=tuple(EnginePlugin(type=kind, name=name) for kind, names in PLUGINS.items() for name in names),
        ),
        tls_info=TLSInfo(
            trust_root=identity.tls.ca_pem, cert_issuer_subject=_base64(subject), cert_issuer_public_key=_base64(key)
        ),
    )


def memory_total() -> int:
    """The host's memory in bytes (proc(5), meminfo)."""
    with open("/proc/meminfo") as file:
        return int(next(line for line in file if line.startswith("MemTotal:")).split()[1]) * 1024


def default_address(settings: AgentSettings) -> str:
    """The configured address, else that of the interface with the default route (IPv4's first); "" if there is none."""
    if settings.advertise_addr:
        return settings.advertise_addr
    # Documentation addresses: connecting a UDP socket sends nothing.
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((anywhere, 9))
            return str(probe.getsockname()[0])
    return ""


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
