"""The store on a real etcd of its own: what packing tasks and committing in groups is worth, and what it costs.

Floors are the plain way on the same etcd in the same run: one transaction per write, one key per task.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.figures import Figure, median
from swarmlet.model.ids import new_cluster_id
from swarmlet.model.node import Node
from swarmlet.model.service import ContainerSpec, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.state import Put
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.etcd.binary import MAX_TXN_OPS, EtcdSettings
from swarmlet_manager.store.etcd.client import EtcdClient
from swarmlet_manager.store.etcd.server import EtcdServer
from swarmlet_manager.store.kv import PutKey
from swarmlet_manager.store.store import Store
from swarmlet_manager.store.writer import Limits

TASKS = 100_000
SLOTS = 1_000
WRITERS = 64
EACH = 60
SINGLE = 300
LIMITS = Limits(keys=MAX_TXN_OPS - 2, hard_bytes=7 << 20)


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="store-bench-") as folder:
        return asyncio.run(_measure(EtcdSettings(data_dir=Path(folder) / "etcd", name="bench")))


async def _measure(settings: EtcdSettings) -> list[Figure]:
    server = EtcdServer(settings)
    await server.start()
    try:
        client = EtcdClient(server.endpoints)
        try:
            figures = [*await _commits(client), *await _tasks(client)]
        finally:
            await client.close()
        return [*figures, *await _memory(server.endpoints[0])]
    finally:
        await server.stop()


async def _commits(client: EtcdClient) -> list[Figure]:
    async with _leading(client) as store:
        value = msgspec.msgpack.encode(Node(id=new_cluster_id(), message="x" * 150))

        async def commit() -> None:
            await store.commit([Put(Node(id=new_cluster_id(), message="x" * 150))])

        async def put() -> None:
            await client.txn([], [PutKey(b"/plain/" + new_cluster_id().encode(), value)])

        one, plain_one = await _latency(commit), await _latency(put)
        many, plain_many = await _crowd(commit), await _crowd(put)
    return [
        Figure("commit of one record, p50", one * 1e3, "ms", plain_one * 1e3, "bare put", 3.0, SINGLE),
        Figure(
            f"commit, {WRITERS} writers at once: per record",
            many * 1e6,
            "us",
            plain_many * 1e6,
            "one transaction each",
            0.5,
            WRITERS * EACH,
        ),
        Figure(f"commits per second, {WRITERS} writers", 1 / many, "/s", 1 / plain_many, "one transaction each"),
    ]


async def _tasks(client: EtcdClient) -> list[Figure]:
    tasks = _some_tasks()
    async with _leading(client) as store:
        began = time.perf_counter()
        for first in range(0, TASKS, 10 * SLOTS):
            await store.commit([Put(task) for task in tasks[first : first + 10 * SLOTS]], timeout_s=60)
        written = time.perf_counter() - began
    began = time.perf_counter()
    encoded = [(b"/plain-tasks/" + task.id.encode(), msgspec.msgpack.encode(task)) for task in tasks]
    for first in range(0, TASKS, 1000):
        await client.txn([], [PutKey(key, value) for key, value in encoded[first : first + 1000]])
    plain_written = time.perf_counter() - began
    endpoint = client.endpoints[0]
    packed, plain = await _best(_PACKED_LOAD, endpoint), await _best(_PLAIN_LOAD, endpoint)
    assert packed["tasks"] == plain["tasks"] == TASKS
    return [
        Figure(f"write {TASKS} tasks", written, "s", plain_written, "a key per task, 1000 per transaction", 1.0),
        Figure(f"load {TASKS} tasks", packed["s"], "s", plain["s"], "a key per task, pages of 10,000", 1.0),
        Figure(f"load {TASKS} tasks, CPU of the manager", packed["cpu_s"], "s", bound=1.0),
        Figure(
            "memory per task, indexed",
            packed["kib"] * 1024 / TASKS,
            "B",
            plain["kib"] * 1024 / TASKS,
            "records that share nothing",
            1.0,
        ),
    ]


async def _memory(endpoint: str) -> list[Figure]:
    """PSS of a process that does nothing but lead an empty cluster."""
    bare = await asyncio.to_thread(_run_program, _BARE, endpoint)
    full = await asyncio.to_thread(_run_program, _IDLE_LEADER, endpoint)
    return [Figure("PSS of a leader with an empty state", full["kib"] / 1024, "MB", bare["kib"] / 1024, "aiohttp")]


async def _best(program: str, endpoint: str) -> dict[str, float]:
    """Of three: other work on the machine only ever slows it down."""
    return min([await asyncio.to_thread(_run_program, program, endpoint) for _ in range(3)], key=lambda run: run["s"])


def _run_program(text: str, endpoint: str) -> dict[str, float]:
    """In a process of its own: memory is not to be had back from one that held more before."""
    done = subprocess.run(
        [sys.executable, "-c", text, endpoint], check=True, stdout=subprocess.PIPE, text=True, timeout=120
    )
    return msgspec.json.decode(done.stdout, type=dict[str, float])


_PRELUDE = """
import asyncio, gc, json, sys, time
import aiohttp, msgspec
def kib(field):
    return int(next(line for line in open("/proc/self/smaps_rollup") if line.startswith(field)).split()[1])
def result(began, cpu, before, tasks):
    took, used = time.perf_counter() - began, time.process_time() - cpu
    gc.collect()
    print(json.dumps({"s": took, "cpu_s": used, "kib": kib("Pss_Anon:") - before, "tasks": tasks}))
"""
_BARE = _PRELUDE + """
print(json.dumps({"kib": kib("Pss:")}))
"""
_WITH_STORE = _PRELUDE + """
from swarmlet_manager.state import Put, State
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.etcd.client import EtcdClient
from swarmlet_manager.store.store import Store
from swarmlet_manager.store.kv import prefix_end
from swarmlet.model.task import Task
async def main():
    client = EtcdClient([sys.argv[1]])
    await client.status()
    await work(client)
    await client.close()
"""
_IDLE_LEADER = _WITH_STORE + """
async def work(client):
    store = Store(client, Candidate(id="m"), prefix=b"/empty/")
    await store.start()
    await store.wait_for_leadership()
    await asyncio.sleep(2)
    print(json.dumps({"kib": kib("Pss:")}))
    await store.stop()
asyncio.run(main())
"""
_PACKED_LOAD = _WITH_STORE + """
async def work(client):
    began, cpu, before = time.perf_counter(), time.process_time(), kib("Pss_Anon:")
    store = Store(client, Candidate(id="reader"))
    await store.start()
    result(began, cpu, before, len(store.state.tasks))
    await store.stop()
asyncio.run(main())
"""
_PLAIN_LOAD = _WITH_STORE + """
async def work(client):
    began, cpu, before = time.perf_counter(), time.process_time(), kib("Pss_Anon:")
    state, start, revision, more = State(), b"/plain-tasks/", 0, True
    while more:
        page = await client.read(start, b"/plain-tasks0", revision=revision, limit=10_000, timeout_s=60)
        revision, more, start = page.revision, page.more, page.kvs[-1].key + b"\\0"
        for kv in page.kvs:
            state.apply(Put(msgspec.msgpack.decode(kv.value, type=Task)))
    page = kv = None
    result(began, cpu, before, len(state.tasks))
asyncio.run(main())
"""


@asynccontextmanager
async def _leading(client: EtcdClient) -> AsyncIterator[Store]:
    store = Store(client, Candidate(id="bench"), limits=LIMITS)
    await store.start()
    await store.wait_for_leadership()
    try:
        yield store
    finally:
        await store.stop()


async def _latency(work: Callable[[], Awaitable[None]]) -> float:
    times = []
    for _ in range(SINGLE):
        began = time.perf_counter()
        await work()
        times.append(time.perf_counter() - began)
    return median(times)


async def _crowd(work: Callable[[], Awaitable[None]]) -> float:
    """Seconds per operation with many writers at once, best of three."""

    async def writer() -> None:
        for _ in range(EACH):
            await work()

    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        rounds.append((time.perf_counter() - began) / (WRITERS * EACH))
    return min(rounds)


def _some_tasks() -> list[Task]:
    tasks = []
    nodes = [new_cluster_id() for _ in range(1000)]
    for number in range(TASKS // SLOTS):
        spec = TaskSpec(container_spec=ContainerSpec(image=f"registry.example/app{number}:1", env=("A=1", "B=2")))
        service = new_cluster_id()
        tasks += [
            Task(
                id=new_cluster_id(),
                service_id=service,
                service_name=f"app{number}",
                slot=slot,
                node_id=nodes[slot % len(nodes)],
                spec=spec,
                spec_version=1,
                status=TaskStatus(state=TaskState.RUNNING, at=1, message="started", container_id="c" * 64, pid=slot),
            )
            for slot in range(1, SLOTS + 1)
        ]
    return tasks
