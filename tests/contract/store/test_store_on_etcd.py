"""The store on a real etcd that is killed, frozen and refused under load."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from swarmlet.errors import SwarmletError, Unavailable
from swarmlet.model.node import Node
from swarmlet.model.service import ContainerSpec, TaskSpec
from swarmlet.model.task import Task
from swarmlet_manager.state import Put, StoredRecord
from swarmlet_manager.store.election import LEASE_TTL_S, Candidate
from swarmlet_manager.store.etcd.binary import MAX_TXN_OPS, EtcdSettings
from swarmlet_manager.store.etcd.client import EtcdClient
from swarmlet_manager.store.etcd.server import EtcdServer
from swarmlet_manager.store.store import Store
from swarmlet_manager.store.writer import Limits

pytestmark = pytest.mark.etcd

SPEC = TaskSpec(container_spec=ContainerSpec(image="busybox"))
#: The time of a lease in a test that must not wait for it: neither for its end nor for the look that comes once in it.
TOO_LATE_S = 60
LIMITS = Limits(keys=MAX_TXN_OPS - 2, hard_bytes=7 << 20)


@asynccontextmanager
async def running(endpoints: tuple[str, ...], name: str = "m1", ttl_s: int = LEASE_TTL_S) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        client = EtcdClient(endpoints)
        stack.push_async_callback(client.close)
        store = Store(client, Candidate(id=name, addr=f"{name}:2377"), limits=LIMITS, ttl_s=ttl_s)
        await store.start()
        stack.push_async_callback(store.stop)
        yield store


@pytest.fixture
async def server(etcd_dir: Path) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(EtcdSettings(data_dir=etcd_dir, name="m1"))
    await server.start()
    yield server
    await server.stop()


async def first_leader(*stores: Store) -> tuple[Store, ...]:
    """The one that is elected, and then the others."""
    waiting = [asyncio.create_task(store.wait_for_leadership()) for store in stores]
    async with asyncio.timeout(30):
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    return tuple(sorted(stores, key=lambda store: not store.leader))


class Load:
    """Writers that commit until told to stop, and remember what was acknowledged."""

    def __init__(self, store: Store, writers: int = 16) -> None:
        self._store = store
        self._stop = False
        self.acknowledged: dict[str, int] = {}
        self.attempted: dict[str, int] = {}
        self.refused = 0
        self._tasks = [asyncio.create_task(self._write(f"w{number}")) for number in range(writers)]

    async def get_going(self, writes: int) -> None:
        """Until so many more are acknowledged, and one of every writer."""
        before = sum(self.acknowledged.values())
        async with asyncio.timeout(30):
            while sum(self.acknowledged.values()) < before + writes or len(self.acknowledged) < len(self._tasks):
                await asyncio.sleep(0.02)

    async def finish(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _write(self, name: str) -> None:
        """One record, counted up: `created_at` holds the count."""
        while not self._stop:
            current = self._store.state.nodes.get(name) or Node(id=name)
            count = current.created_at + 1
            self.attempted[name] = count
            try:
                await self._store.commit([Put(msgspec.structs.replace(current, created_at=count))])
                self.acknowledged[name] = count
            except SwarmletError:
                self.refused += 1
                await asyncio.sleep(0.02)


async def stored(endpoints: tuple[str, ...]) -> dict[str, int]:
    """What a manager that starts now would read."""
    client = EtcdClient(endpoints)
    store = Store(client, Candidate(id="reader"))
    await store.start()
    found = {node.id: node.created_at for node in store.state.nodes.values()}
    await store.stop()
    await client.close()
    return found


async def test_kill_9_of_etcd_under_load_loses_nothing_acknowledged(server: EtcdServer) -> None:
    async with running(server.endpoints) as store:
        await store.wait_for_leadership()
        load = Load(store)
        for _ in range(3):
            await load.get_going(100)
            assert server.pid
            os.kill(server.pid, signal.SIGKILL)
            before = dict(load.acknowledged)
            async with asyncio.timeout(30):
                while load.acknowledged == before:
                    await asyncio.sleep(0.05)
        await load.finish()
        found = await stored(server.endpoints)
        async with asyncio.timeout(30):  # the watch may still bring what was written and not confirmed
            while {node.id: node.created_at for node in store.state.nodes.values()} != found:
                await asyncio.sleep(0.05)
    for name, count in load.acknowledged.items():
        assert count <= found[name] <= load.attempted[name]


async def test_a_frozen_etcd_delays_writes_and_loses_none(server: EtcdServer) -> None:
    async with running(server.endpoints) as store:
        await store.wait_for_leadership()
        load = Load(store)
        await load.get_going(50)
        assert server.pid
        os.kill(server.pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            while store.leader:
                await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await store.commit([Put(Node(id="x"))])
        os.kill(server.pid, signal.SIGCONT)
        async with asyncio.timeout(30):
            await store.wait_for_leadership()
        await load.get_going(1)
        await load.finish()
        assert store.healthy()
    found = await stored(server.endpoints)
    for name, count in load.acknowledged.items():
        assert count <= found[name] <= load.attempted[name]


async def test_a_manager_takes_over_at_once_and_a_deposed_leader_is_fenced(server: EtcdServer) -> None:
    async with (
        running(server.endpoints, "m1", ttl_s=TOO_LATE_S) as first,
        running(server.endpoints, "m2", ttl_s=TOO_LATE_S) as second,
    ):
        leader, follower = await first_leader(first, second)
        assert not follower.leader
        (node,) = await leader.commit([Put(Node(id="n1"))])
        writer = leader._writer
        assert writer is not None
        # Its lease ends behind its back; what it still sends must not be written.
        lease = leader._election.leadership
        assert lease is not None
        await follower._kv.lease_revoke(lease.lease)
        stale = asyncio.create_task(writer.commit([Put(msgspec.structs.replace(node, message="old"))], 5))
        async with asyncio.timeout(TOO_LATE_S / 2):  # by the news of its end, not by the time of its lease
            await follower.wait_for_leadership()
        assert follower.term > lease.term
        with pytest.raises(Unavailable):
            await stale
        await follower.commit([Put(msgspec.structs.replace(follower.state.nodes["n1"], message="new"))])
        async with asyncio.timeout(30):
            while leader.state.nodes["n1"].message != "new":
                await asyncio.sleep(0.01)
        assert not leader.leader


async def test_ten_thousand_tasks_are_written_followed_and_loaded(server: EtcdServer) -> None:
    async with running(server.endpoints, "m1") as first, running(server.endpoints, "m2") as second:
        leader, follower = await first_leader(first, second)
        made: list[StoredRecord] = []
        for service in range(10):
            tasks = [
                Task(id=f"t{service}.{slot}", service_id=f"s{service}", slot=slot, spec=SPEC, node_id=f"n{slot % 50}")
                for slot in range(1, 1001)
            ]
            made += await leader.commit([Put(task) for task in tasks])
        assert len(made) == 10_000
        async with asyncio.timeout(30):
            while follower.state.revision < leader.state.revision:
                await asyncio.sleep(0.01)
        assert dict(follower.state.tasks) == dict(leader.state.tasks)
    async with running(server.endpoints, "m3") as third:
        assert {task.id: task for task in third.state.tasks.values()} == {record.id: record for record in made}
        assert len({id(task.spec) for task in third.state.tasks.values()}) == 1


async def test_a_restored_backup_is_another_cluster_and_is_followed(server: EtcdServer, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    async with running(server.endpoints) as store:
        await store.wait_for_leadership()
        (node,) = await store.commit([Put(Node(id="n1", message="then"))])
        client = store._kv
        assert isinstance(client, EtcdClient)
        with backup.open("wb") as file:
            async for piece in client.snapshot():
                file.write(piece)
        for number in range(3):
            (node,) = await store.commit([Put(msgspec.structs.replace(node, message=f"later {number}"))])
        before = store._cluster_id
        await server.stop()
        await asyncio.to_thread(_restore, backup, server)
        again = EtcdServer(EtcdSettings(data_dir=Path(server.endpoints[0].removeprefix("unix:")).parent, name="m1"))
        await again.start()
        try:
            async with asyncio.timeout(30):
                while store.state.nodes["n1"].message != "then" or not store.leader:
                    await asyncio.sleep(0.05)
            assert store._cluster_id != before
            await store.commit([Put(msgspec.structs.replace(store.state.nodes["n1"], message="on"))])
            assert store.state.nodes["n1"].message == "on"
        finally:
            await store.stop()
            await again.stop()


def _restore(backup: Path, server: EtcdServer) -> None:
    """As an operator does it, with a cluster token of its own."""
    data = Path(server.endpoints[0].removeprefix("unix:")).parent / "data"
    data.rename(data.with_name("data.old"))
    tool = shutil.which("etcdutl") or "etcdctl"
    subprocess.run(
        [
            *(tool, "snapshot", "restore", str(backup), "--name=m1", f"--data-dir={data}"),
            *("--initial-cluster=m1=unix://peer:0", "--initial-advertise-peer-urls=unix://peer:0"),
            "--initial-cluster-token=restored",
        ],
        check=True,
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        timeout=30,
    )


@pytest.fixture
async def trio(three_members: list[EtcdSettings]) -> AsyncIterator[list[EtcdServer]]:
    """Three members of one cluster, each reachable through its own socket."""
    servers = [EtcdServer(each) for each in three_members]
    # None serves before two are there.
    await asyncio.gather(*(server.start() for server in servers))
    yield servers
    for server in servers:
        if server.pid:
            os.kill(server.pid, signal.SIGCONT)
    await asyncio.gather(*(server.stop() for server in servers))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_loss_of_the_member_that_serves_us_is_bridged(trio: list[EtcdServer], number: signal.Signals) -> None:
    endpoints = tuple(endpoint for server in trio for endpoint in server.endpoints)
    async with running(endpoints) as store:
        async with asyncio.timeout(30):
            await store.wait_for_leadership()
        load = Load(store)
        await load.get_going(100)
        client = store._kv
        assert isinstance(client, EtcdClient)
        serving = trio[client._channels._current]
        assert serving.pid
        os.kill(serving.pid, number)
        before = dict(load.acknowledged)
        async with asyncio.timeout(30):  # a frozen member stays so until it is over
            while any(load.acknowledged.get(name) == count for name, count in before.items()):
                await asyncio.sleep(0.02)
        if number is signal.SIGSTOP:
            os.kill(serving.pid, signal.SIGCONT)
        await load.finish()
    found = await stored(endpoints)
    for name, count in load.acknowledged.items():
        assert count <= found[name] <= load.attempted[name]
