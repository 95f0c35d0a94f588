"""The store on the in-memory etcd: what callers may rely on, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest

from swarmlet.errors import Internal, StaleView, Unavailable
from swarmlet.model.cluster import Cluster
from swarmlet.model.node import Node
from swarmlet.model.service import ContainerSpec, Service, ServiceSpec, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet_manager.state import Change, Delete, Put
from swarmlet_manager.store.election import Candidate, NotLeader
from swarmlet_manager.store.kv import ClusterChanged, NoSpace, PutKey, TooLarge, WatchBatch
from swarmlet_manager.store.memory import Faults, MemoryClient, MemoryEtcd
from swarmlet_manager.store.mirror import Resync
from swarmlet_manager.store.store import Store
from swarmlet_manager.store.writer import Limits

pytestmark = pytest.mark.looptime

SPEC = TaskSpec(container_spec=ContainerSpec(image="busybox", env=("A=1",)))


def service(ident: str = "s1", name: str = "web") -> Service:
    return Service(id=ident, spec=ServiceSpec(name=name, task_template=SPEC))


def task(ident: str, slot: int = 1, service_id: str = "s1", **more: object) -> Task:
    return msgspec.structs.replace(
        Task(id=ident, service_id=service_id, service_name="web", slot=slot, spec=SPEC, spec_version=1), **more
    )


@pytest.fixture
async def etcd() -> AsyncIterator[MemoryEtcd]:
    server = MemoryEtcd()
    yield server
    server.close()


@asynccontextmanager
async def running(
    etcd: MemoryEtcd, name: str = "m1", faults: Faults | None = None, limits: Limits | None = None
) -> AsyncIterator[Store]:
    client = MemoryClient(etcd, faults)
    store = Store(client, Candidate(id=name, addr=f"{name}:2377"), rng=random.Random(1), limits=limits)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


async def settled(store: Store, revision: int) -> None:
    async with asyncio.timeout(5):
        while store.state.revision < revision:
            await asyncio.sleep(0.01)


async def test_a_commit_stamps_versions_and_shows_in_the_state(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        made = await store.commit([Put(service()), Put(task("t1")), Put(Node(id="n1")), Put(Cluster(id="c"))])
        assert len({record.version for record in made}) == 1
        assert made[0].version > 0
        assert store.state.services["s1"] is made[0]
        assert store.state.tasks["t1"] is made[1]
        again = await store.commit([Put(msgspec.structs.replace(made[2], state=NodeState.READY))])
        assert again[0].version > made[2].version
        assert store.state.nodes["n1"].state is NodeState.READY
        assert store.state.cluster == made[3]


async def test_a_write_decided_on_an_old_version_is_refused_and_changes_nothing(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        (old,) = await store.commit([Put(service())])
        await store.commit([Put(old)])
        with pytest.raises(StaleView):
            await store.commit([Put(Node(id="n1")), Put(old)])
        with pytest.raises(StaleView):
            await store.commit([Delete(old)])
        with pytest.raises(StaleView):
            await store.commit([Put(service())])
        with pytest.raises(StaleView):
            await store.commit([Delete(Node(id="n9", version=3))])
        assert "n1" not in store.state.nodes


async def test_only_one_of_two_writers_with_the_same_view_wins(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        (read,) = await store.commit([Put(service())])
        outcomes = await asyncio.gather(*(store.commit([Put(read)]) for _ in range(3)), return_exceptions=True)
        assert sorted(type(o).__name__ for o in outcomes) == ["StaleView", "StaleView", "tuple"]


async def test_what_queues_up_meanwhile_rides_in_one_transaction(etcd: MemoryEtcd) -> None:
    async with running(etcd, faults=Faults(delay_s=(0.05, 0.05))) as store:
        await store.wait_for_leadership()
        before = etcd.revision
        first = asyncio.create_task(store.commit([Put(task("t0", slot=500))]))
        await asyncio.sleep(0.01)
        await asyncio.gather(*(store.commit([Put(task(f"t{n}", slot=n))]) for n in range(1, 200)))
        await first
        assert etcd.revision == before + 2
        assert len(store.state.tasks) == 200


async def test_one_bad_write_does_not_fail_its_neighbours(etcd: MemoryEtcd) -> None:
    async with running(etcd, faults=Faults(delay_s=(0.05, 0.05)), limits=Limits(hard_bytes=20_000)) as store:
        await store.wait_for_leadership()
        huge = msgspec.structs.replace(service("huge", "huge"), update_status=None, previous_spec=None)
        huge = msgspec.structs.replace(huge, spec=ServiceSpec(name="huge", labels={"x": "y" * 30_000}))
        impossible = msgspec.structs.replace(task("odd"), created_at=1 << 70)
        slashed = Node(id="a/b")
        good = [store.commit([Put(Node(id=f"n{n}"))]) for n in range(5)]
        bad = [store.commit([Put(record)]) for record in (huge, impossible, slashed)]
        outcomes = await asyncio.gather(*good, *bad, return_exceptions=True)
        assert all(isinstance(outcome, tuple) for outcome in outcomes[:5])
        assert isinstance(outcomes[5], TooLarge)
        assert all(isinstance(outcome, Exception) for outcome in outcomes[5:])
        assert set(store.state.nodes) == {f"n{n}" for n in range(5)}


async def test_more_keys_than_a_transaction_holds_are_split_between_callers_but_never_within_one(
    etcd: MemoryEtcd,
) -> None:
    async with running(etcd, faults=Faults(delay_s=(0.05, 0.05)), limits=Limits(keys=10)) as store:
        await store.wait_for_leadership()
        await asyncio.gather(*(store.commit([Put(Node(id=f"n{n}")), Put(Node(id=f"o{n}"))]) for n in range(20)))
        assert len(store.state.nodes) == 40
        with pytest.raises(TooLarge):
            await store.commit([Put(Node(id=f"p{n}")) for n in range(11)])
        assert len(store.state.nodes) == 40


async def test_a_follower_sees_the_same_and_is_told_in_order(etcd: MemoryEtcd) -> None:
    async with running(etcd, "m1") as leader:
        await leader.wait_for_leadership()
        async with running(etcd, "m2") as follower:
            told: list[Change] = []
            unsubscribe = follower.subscribe(told.extend)
            made = await leader.commit([Put(service()), Put(task("t1")), Put(task("t2", 2)), Put(task("t3", 70))])
            await leader.commit([Delete(made[1]), Put(msgspec.structs.replace(made[2], node_id="n1"))])
            await settled(follower, leader.state.revision)
            assert dict(follower.state.tasks) == dict(leader.state.tasks)
            assert dict(follower.state.services) == dict(leader.state.services)
            assert [(c.before is None, c.after is None, c.record.id) for c in told] == [
                (True, False, "s1"),
                (True, False, "t1"),
                (True, False, "t2"),
                (True, False, "t3"),
                (False, True, "t1"),
                (False, False, "t2"),
            ]
            assert not follower.leader
            assert follower.leader_info is not None
            assert follower.leader_info.addr == "m1:2377"
            with pytest.raises(NotLeader, match="m1:2377"):
                await follower.commit([Put(Node(id="n1"))])
            unsubscribe()
            await leader.commit([Put(Node(id="n1"))])
            await settled(follower, leader.state.revision)
            assert len(told) == 6


async def test_a_leader_that_has_lost_etcd_does_not_send_anyone_to_itself(etcd: MemoryEtcd) -> None:
    faults = Faults()
    async with running(etcd, faults=faults) as store:
        await store.wait_for_leadership()
        faults.cut = True
        async with asyncio.timeout(30):
            while store.leader:
                await asyncio.sleep(0.05)
        with pytest.raises(NotLeader, match="there is none at the moment"):
            await store.commit([Put(Node(id="n1"))])
        faults.cut = False


async def test_a_restarted_manager_loads_what_was_acknowledged_and_shares_equal_specs(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        await store.commit([Put(service()), *(Put(task(f"t{n}", slot=n)) for n in range(1, 200)), Put(task("g", 0))])
        expected = dict(store.state.tasks)
    batches: list[Sequence[Change]] = []
    store = Store(MemoryClient(etcd), Candidate(id="m2"))
    store.subscribe(batches.append)
    await store.start()
    assert dict(store.state.tasks) == expected
    specs = {id(t.spec) for t in store.state.tasks.values()}
    assert specs == {id(store.state.services["s1"].spec.task_template)}
    assert isinstance(batches[0], Resync)
    assert len(batches[0]) == 201
    await store.stop()


async def test_a_task_keeps_its_block_and_an_empty_block_leaves_no_key(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        made = await store.commit([Put(task("a", 1)), Put(task("b", 63)), Put(task("c", 64)), Put(task("g", 0))])
        keys = [kv.key for kv in etcd.read(b"/swarmlet/tasks/", b"/swarmlet/tasks0").kvs]
        assert len(keys) == 3
        placed = [Put(msgspec.structs.replace(record, node_id="n1")) for record in made]
        made = await store.commit(placed)
        assert [kv.key for kv in etcd.read(b"/swarmlet/tasks/", b"/swarmlet/tasks0").kvs] == keys
        await store.commit([Delete(record) for record in made])
        assert etcd.read(b"/swarmlet/tasks/", b"/swarmlet/tasks0").kvs == ()
        assert store.state.tasks == {}


async def test_a_subscriber_that_fails_harms_nobody_else(etcd: MemoryEtcd) -> None:
    def broken(changes: Sequence[Change]) -> None:
        raise ValueError("mine")

    async with running(etcd) as store:
        await store.wait_for_leadership()
        store.subscribe(broken)
        told: list[Change] = []
        store.subscribe(told.extend)
        await store.commit([Put(Node(id="n1"))])
        assert len(told) == 1


async def test_a_resigning_leader_is_followed_at_once_and_a_dead_one_after_its_ttl(etcd: MemoryEtcd) -> None:
    loop = asyncio.get_running_loop()
    faults = Faults()
    async with running(etcd, "m2", faults) as second:
        await second.wait_for_leadership()
        async with running(etcd, "m3") as third:
            terms: list[int | None] = []
            second.subscribe_leadership(terms.append)
            first_term = second.term
            faults.cut = True
            started = loop.time()
            await third.wait_for_leadership()
            assert 2.0 <= loop.time() - started <= 3.5
            assert third.term > first_term
            assert not second.leader
            assert terms == [None]
            faults.cut = False
            second._kv.nudge()  # type: ignore[attr-defined]
            await asyncio.sleep(5)
            assert second.term == third.term
        started = loop.time()
        await second.wait_for_leadership()
        assert loop.time() - started < 0.1
        assert terms[-1] == second.term


class LateWatch(MemoryClient):
    """What its watches have to tell comes in one batch, as etcd's do that begin behind its present revision."""

    async def watch(self, key: bytes, end: bytes = b"", *, revision: int) -> AsyncGenerator[WatchBatch, None]:
        await asyncio.sleep(0.1)
        async with aclosing(super().watch(key, end, revision=revision)) as batches:
            async for batch in batches:
                yield batch


async def test_late_news_of_the_last_leaders_end_does_not_depose_the_next(etcd: MemoryEtcd) -> None:
    async with running(etcd, "m1") as first:
        await first.wait_for_leadership()
        second = Store(LateWatch(etcd), Candidate(id="m2", addr="m2:2377"))
        await second.start()
        etcd.lease_revoke(next(iter(etcd._leases)))
        term = await second.wait_for_leadership()
        for number in range(20):
            await second.commit([Put(Node(id=f"n{number}"))])
        assert second.term == term
        await second.stop()


async def test_a_deposed_leader_that_does_not_know_it_writes_nothing(etcd: MemoryEtcd) -> None:
    async with running(etcd, "m1") as first:
        await first.wait_for_leadership()
        (node,) = await first.commit([Put(Node(id="n1"))])
        # Its election is frozen (as by SIGSTOP); its writer is not.
        lease = next(iter(etcd._leases))
        client = first._kv
        assert isinstance(client, MemoryClient)
        client.faults.cut = True
        pending = asyncio.create_task(first.commit([Put(msgspec.structs.replace(node, message="old"))]))
        await asyncio.sleep(0)
        etcd.lease_revoke(lease)
        async with running(etcd, "m2") as second:
            await second.wait_for_leadership()
            await second.commit([Put(msgspec.structs.replace(second.state.nodes["n1"], message="new"))])
            client.faults.cut = False
            client.nudge()
            with pytest.raises(Unavailable):
                await pending
            await settled(first, second.state.revision)
            assert first.state.nodes["n1"].message == "new"


async def test_a_lost_answer_is_asked_for_again_and_written_once(etcd: MemoryEtcd) -> None:
    faults = Faults()
    async with running(etcd, "m1", faults) as store:
        await store.wait_for_leadership()
        faults.rng, faults.lose_reply = random.Random(3), 0.4
        seen: list[Change] = []
        store.subscribe(seen.extend)
        made = 0
        for n in range(30):
            try:
                await store.commit([Put(Node(id=f"n{n}"))], timeout_s=60)
                made += 1
            except Unavailable:
                await store.wait_for_leadership()
        faults.lose_reply = 0.0
        assert made > 5
        assert len({change.record.id for change in seen}) == len(seen)


async def test_a_commit_that_etcd_does_not_confirm_ends_in_bounded_time(etcd: MemoryEtcd) -> None:
    loop = asyncio.get_running_loop()
    faults = Faults()
    async with running(etcd, "m1", faults) as store:
        await store.wait_for_leadership()
        faults.cut = True
        started = loop.time()
        with pytest.raises(Unavailable):
            await store.commit([Put(Node(id="n1"))], timeout_s=1.5)
        assert loop.time() - started == pytest.approx(1.5, abs=0.1)
        assert store.healthy()
        await asyncio.sleep(10)
        assert not store.healthy()
        assert not store.leader


async def test_a_cancelled_caller_does_not_stop_the_line(etcd: MemoryEtcd) -> None:
    async with running(etcd, "m1", Faults(delay_s=(0.05, 0.05))) as store:
        await store.wait_for_leadership()
        first = asyncio.create_task(store.commit([Put(Node(id="n1"))]))
        second = asyncio.create_task(store.commit([Put(Node(id="n2"))]))
        third = asyncio.create_task(store.commit([Put(Node(id="n3"))]))
        await asyncio.sleep(0.01)
        second.cancel()
        await first
        await third
        assert "n3" in store.state.nodes


async def test_lost_history_is_read_anew_as_differences(etcd: MemoryEtcd) -> None:
    faults = Faults()
    async with running(etcd, "m1") as leader:
        await leader.wait_for_leadership()
        kept, gone = await leader.commit([Put(Node(id="kept")), Put(Node(id="gone"))])
        async with running(etcd, "m2", faults) as follower:
            faults.cut = True
            await asyncio.sleep(0.5)
            await leader.commit([Delete(gone), Put(Node(id="new"))])
            etcd.compact(etcd.revision)
            batches: list[Sequence[Change]] = []
            follower.subscribe(batches.append)
            before = follower.state.nodes["kept"]
            faults.cut = False
            follower._kv.nudge()  # type: ignore[attr-defined]
            await settled(follower, leader.state.revision)
            assert [type(batch) for batch in batches] == [Resync]
            assert [(c.after is None, c.record.id) for c in batches[0]] == [(True, "gone"), (False, "new")]
            assert follower.state.nodes["kept"] is before
            del kept


async def test_a_restored_backup_is_followed_even_though_it_goes_back(etcd: MemoryEtcd) -> None:
    async with running(etcd, "m1") as store:
        await store.wait_for_leadership()
        (node,) = await store.commit([Put(Node(id="n1", message="then"))])
        backup = etcd.backup()
        for number in range(5):
            (node,) = await store.commit([Put(msgspec.structs.replace(node, message=f"later {number}"))])
        etcd.restore(backup, cluster_id=2)
        await asyncio.sleep(10)
        assert store.state.nodes["n1"].message == "then"
        await store.wait_for_leadership()
        await store.commit([Put(msgspec.structs.replace(store.state.nodes["n1"], message="on"))])
        assert store.state.nodes["n1"].message == "on"


class SlowToNotice(MemoryClient):
    """Its watches find out late that etcd has another history."""

    async def watch(self, key: bytes, end: bytes = b"", *, revision: int) -> AsyncGenerator[WatchBatch, None]:
        async with aclosing(super().watch(key, end, revision=revision)) as batches:
            try:
                async for batch in batches:
                    yield batch
            except ClusterChanged:
                await asyncio.sleep(8)
                raise


async def test_who_is_elected_in_a_restored_cluster_does_not_lead_by_what_was_before(etcd: MemoryEtcd) -> None:
    client = SlowToNotice(etcd)
    store = Store(client, Candidate(id="m1", addr="m1:2377"), rng=random.Random(1))
    await store.start()
    await store.wait_for_leadership()
    (node,) = await store.commit([Put(Node(id="n1", message="then"))])
    backup = etcd.backup()
    for number in range(50):
        (node,) = await store.commit([Put(msgspec.structs.replace(node, message=f"later {number}"))])
    client.faults.cut = True
    etcd.restore(backup, cluster_id=2)
    await asyncio.sleep(5)
    assert not store.leader
    client.faults.cut = False
    client.nudge()
    await store.wait_for_leadership()
    assert store.term < 50
    assert store.state.nodes["n1"].message == "then"
    await store.stop()


async def test_who_steps_down_leads_no_more(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        store.step_down()
        assert not store.leader
        with pytest.raises(NotLeader):
            await store.commit([Put(Node(id="n1"))])
        await store.wait_for_leadership()


async def test_the_state_of_a_later_version_is_refused(etcd: MemoryEtcd) -> None:
    etcd.txn([], [PutKey(b"/swarmlet/schema", b"99")], [])
    with pytest.raises(Internal, match="later version"):
        await Store(MemoryClient(etcd), Candidate(id="m1")).start()


async def test_an_unreachable_etcd_is_reported_at_start(etcd: MemoryEtcd) -> None:
    store = Store(MemoryClient(etcd, Faults(cut=True)), Candidate(id="m1"))
    with pytest.raises(Unavailable):
        await store.start(timeout_s=3)


async def test_the_leader_compacts_old_history_and_ticks(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        made = await store.commit([Put(task("t1"))])
        await store.commit([Put(msgspec.structs.replace(made[0], desired_state=TaskState.SHUTDOWN))])
        at = etcd.revision
        await asyncio.sleep(20 * 60)
        assert etcd.revision > at + 10
        assert at <= etcd.compacted < etcd.revision - 5
        assert store.leader


async def test_an_etcd_out_of_space_refuses_writes_clearly_and_serves_again_once_it_has_some(etcd: MemoryEtcd) -> None:
    async with running(etcd) as store:
        await store.wait_for_leadership()
        etcd.full = True
        with pytest.raises(NoSpace):
            await store.commit([Put(Node(id="n1"))])
        assert store.leader
        assert "n1" not in store.state.nodes
        etcd.full = False
        await store.commit([Put(Node(id="n1"))])
        assert "n1" in store.state.nodes
