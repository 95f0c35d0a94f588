"""One endpoint's change on its way to many nodes: from the commit until every agent's networks have heard of it.

A manager on an in-memory etcd and agents' sessions, those of the tests, over real TLS WebSockets; all in one process
and on one core, so each agent is slowed down by all others. What an agent then does in its kernel is `names`' figure.
"""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from benchmarks.figures import Figure, median
from swarmlet.model.ids import new_cluster_id, new_hex_id
from swarmlet.model.network import Network, NetworkAttachment, NetworkCreate
from swarmlet.model.service import (
    ContainerSpec,
    EndpointSpec,
    NetworkAttachmentConfig,
    PortConfig,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.wire.contents import Content
from swarmlet.wire.networking import Networking
from swarmlet_manager.state import Change, Put

NODES, SERVICES, TASKS, CHANGES = 100, 100, 10, 40
#: Services that publish a port each, with `TASKS` tasks.
PORTS = 1000
_FAKES = Path(__file__).parent.parent / "tests"


def measure() -> list[Figure]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.fanout"], capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return [
        Figure(f"one endpoint's change, heard by {NODES} nodes", found["clock"], "ms", bound=100, n=CHANGES),
        Figure("   by the first of them", found["first"], "ms", n=CHANGES),
        Figure("   processor time of all", found["cpu"], "ms", n=CHANGES),
        Figure(f"one task's change among {PORTS} ports x {TASKS}", found["mesh clock"], "ms", bound=100, n=CHANGES),
        Figure("   by the first of them", found["mesh first"], "ms", n=CHANGES),
        Figure("   processor time of all", found["mesh cpu"], "ms", n=CHANGES),
        Figure("   bytes to each node", found["mesh bytes"], "B", n=CHANGES),
    ]


class Orders:
    """A task worker that does nothing."""

    def supplied(self, items: Sequence[Content]) -> None:
        return

    async def assign(
        self, *, full: bool, tasks: Sequence[Task], removed: Sequence[str], registry_auth: Mapping[str, str],
        unneeded: Sequence[str] = (),
    ) -> None:
        return


class Watch:
    """Who has heard, and when. due: those that have not."""

    def __init__(self) -> None:
        self.wanted = ""
        self.due = 0
        self.times: list[float] = []
        self.done = asyncio.Event()
        self.committed = 0.0
        self.bytes = 0

    def expect(self, wanted: str) -> None:
        """wanted: the id of a task, or the name of the service whose port is to be another one."""
        self.wanted, self.due, self.times = wanted, NODES, []
        self.done.clear()

    def changed(self, changes: Sequence[Change]) -> None:
        if any(
            self.wanted in (change.record.id, change.record.service_name)
            for change in changes if isinstance(change.record, Task)
        ):
            self.committed = time.perf_counter()

    def heard(self, news: Networking) -> None:
        ports = news.mesh_news.ports if news.mesh_news is not None else ()
        if ports:
            self.bytes = len(msgspec.msgpack.encode(news))
        if any(info.id == self.wanted for info in news.endpoints) or any(port.service == self.wanted for port in ports):
            self.times.append(time.perf_counter())
            self.due -= 1
            if not self.due:
                self.done.set()


def records(node_ids: Sequence[str]) -> list[Network | Service | Task]:
    """A network whose tasks are spread over all nodes."""
    spec = NetworkCreate(name="app", driver="overlay")
    found: list[Network | Service | Task] = [
        Network(id=new_cluster_id(), spec=spec, subnet="10.20.0.0/16", gateway="10.20.0.1", vni=4097)
    ]
    network_id = found[0].id
    template = TaskSpec(
        container_spec=ContainerSpec(image="busybox"), networks=(NetworkAttachmentConfig(target=network_id),)
    )
    for number in range(SERVICES):
        service = Service(
            id=new_cluster_id(),
            spec=ServiceSpec(
                name=f"web{number}", task_template=template, endpoint_spec=EndpointSpec(mode="vip"),
                mode=ServiceMode(replicated=ReplicatedMode(replicas=TASKS)),
            ),
            vips=(NetworkAttachment(network_id=network_id, address=f"10.20.200.{number + 1}/16"),),
        )
        found.append(service)
        for slot in range(1, TASKS + 1):
            place = number * TASKS + slot
            address = NetworkAttachment(network_id=network_id, address=f"10.20.{1 + place // 250}.{place % 250 + 1}/16")
            found.append(Task(
                id=new_cluster_id(), service_id=service.id, service_name=service.spec.name, slot=slot,
                node_id=node_ids[place % len(node_ids)], spec=template, networks=(address,),
                status=TaskStatus(state=TaskState.RUNNING),
            ))
    return found


def published_records(node_ids: Sequence[str]) -> list[Network | Service | Task]:
    """Services of the routing mesh, whose tasks are spread over all nodes."""
    spec = NetworkCreate(name="ingress", driver="overlay", ingress=True)
    found: list[Network | Service | Task] = [
        Network(id=new_cluster_id(), spec=spec, subnet="10.30.0.0/16", gateway="10.30.0.1", vni=4098)
    ]
    network_id = found[0].id
    for number in range(PORTS):
        ports = (PortConfig(protocol="tcp", target_port=80, published_port=10000 + number, publish_mode="ingress"),)
        spec_of = ServiceSpec(
            name=f"public{number}", task_template=TaskSpec(container_spec=ContainerSpec(image="busybox")),
            endpoint_spec=EndpointSpec(mode="vip", ports=ports),
            mode=ServiceMode(replicated=ReplicatedMode(replicas=TASKS)),
        )
        vip = NetworkAttachment(network_id=network_id, address=f"10.30.{200 + number // 250}.{number % 250 + 1}/16")
        service = Service(id=new_cluster_id(), spec=spec_of, ports=ports, vips=(vip,))
        found.append(service)
        for slot in range(TASKS):
            place = number * TASKS + slot
            address = NetworkAttachment(network_id=network_id, address=f"10.30.{1 + place // 250}.{place % 250 + 1}/16")
            found.append(Task(
                id=new_cluster_id(), service_id=service.id, service_name=service.spec.name, slot=slot + 1,
                node_id=node_ids[place % len(node_ids)], spec=spec_of.task_template, networks=(address,), ports=ports,
                status=TaskStatus(state=TaskState.RUNNING),
            ))
    return found


async def _measured(folder: Path) -> dict[str, float]:
    from fakes.control_world import (  # type: ignore[import-not-found]
        FakeNetworks,
        describe,
        join_agent,
        start_manager,
        until,
    )

    from swarmlet_agent.journal import Journal
    from swarmlet_agent.session.buffer import StatusBuffer
    from swarmlet_agent.session.managers import ManagerList
    from swarmlet_agent.session.session import AgentSession, NodePlace
    from swarmlet_manager.store.memory import MemoryEtcd

    watch = Watch()

    class Listening(FakeNetworks):  # type: ignore[misc]
        async def update(self, news: Networking, *, node_id: str, underlay: str) -> None:
            watch.heard(news)

    async with AsyncExitStack() as stack:
        etcd = MemoryEtcd()
        stack.callback(etcd.close)
        manager = await start_manager(etcd)
        stack.push_async_callback(manager.stop)
        node_ids = []
        for number in range(NODES):
            agent = await join_agent(manager, folder / f"node-{number}", f"node-{number}")
            node_ids.append(agent.node_id)
            description = describe(f"node-{number}")
            journal = Journal(folder / f"node-{number}" / "journal.db")
            stack.callback(journal.close)
            session = AgentSession(
                agent.identity, data_dir=agent.data_dir, journal=journal, containers=list,
                managers=ManagerList(journal, (manager.address,)), place=NodePlace(f"127.0.1.{number + 1}", 1),
                describe=functools.partial(replace, description), statuses=StatusBuffer(), orders=Orders(),
                networks=Listening(),
            )
            running = asyncio.create_task(session.run())
            stack.push_async_callback(asyncio.wait, [running])
            stack.callback(running.cancel)
        await until(lambda: len(manager.dispatcher.connected) == NODES, 60)
        known = records(node_ids)
        for start in range(0, len(known), 50):
            await manager.store.commit([Put(record) for record in known[start : start + 50]])
        await asyncio.sleep(3)  # everybody has been told everything; nothing more is under way
        manager.store.subscribe(watch.changed)
        tasks = [record for record in known if isinstance(record, Task)]
        found = await _changes(manager, watch, tasks, lambda task: task.id)
        network, *published = published_records(node_ids)
        await manager.store.commit([Put(network)])
        # Whole services (to one without its tasks some would be given), slowly: this process is all hosts at once.
        for start in range(0, len(published), 10 * (1 + TASKS)):
            await manager.store.commit([Put(record) for record in published[start : start + 10 * (1 + TASKS)]])
            await asyncio.sleep(0.2)
        await asyncio.sleep(5)
        tasks = [record for record in published if isinstance(record, Task)][:: 7 * TASKS]
        mesh = await _changes(manager, watch, tasks, lambda task: task.service_name)
        return found | {f"mesh {name}": value for name, value in mesh.items()} | {"mesh bytes": watch.bytes}


async def _changes(
    manager: Any, watch: Watch, tasks: Sequence[Task], wanted: Callable[[Task], str]
) -> dict[str, float]:
    clock, first, cpu = [], [], []
    for turn in range(CHANGES):
        task = manager.store.state.tasks[tasks[turn].id]
        watch.expect(wanted(task))
        used = time.process_time()
        # Its container's short id is one of its names; who is unhealthy serves nobody.
        status = replace(task.status, container_id=new_hex_id(), unhealthy=bool(task.ports))
        await manager.store.commit([Put(replace(task, status=status))])
        async with asyncio.timeout(20):
            await watch.done.wait()
        clock.append((max(watch.times) - watch.committed) * 1e3)
        first.append((min(watch.times) - watch.committed) * 1e3)
        cpu.append((time.process_time() - used) * 1e3)
        await asyncio.sleep(0.2)
    return {"clock": median(clock), "first": median(first), "cpu": median(cpu)}


def _child() -> None:
    sys.path.insert(0, str(_FAKES))
    with tempfile.TemporaryDirectory(prefix="fanout-bench-") as folder:
        print(json.dumps(asyncio.run(_measured(Path(folder)))))


if __name__ == "__main__":
    _child()
