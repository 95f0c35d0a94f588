"""Three managers on one etcd in virtual time, with faults drawn from a seed: what must hold whatever happens.

A failing run names its seed; the same seed replays it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from swarmlet.errors import SwarmletError
from swarmlet.model.node import Node
from swarmlet.model.service import TaskSpec
from swarmlet.model.task import Task
from swarmlet_manager.state import Change, Delete, Put
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.keys import Keys, identity
from swarmlet_manager.store.kv import Compare, CreatedAt, HasValue, PutKey, Request, TxnResult
from swarmlet_manager.store.memory import Faults, MemoryClient, MemoryEtcd
from swarmlet_manager.store.store import Store

pytestmark = pytest.mark.looptime(noop_cycles=0)  # nothing here waits for the real world

KEYS = Keys()
MANAGERS = 3
COUNTERS = 6
TROUBLE_S = 40.0
HEALED_S = 12.0


class Watched(MemoryEtcd):
    """Notes every write of the sequence, with the leader of that moment; `blind_to` leaves compares out."""

    def __init__(self, blind_to: type[Compare] | None = None) -> None:
        super().__init__()
        self.blind_to = blind_to
        self.sequences: list[bytes] = []
        self.faults: list[str] = []

    def txn(self, compares: Sequence[Compare], success: Sequence[Request], failure: Sequence[Request]) -> TxnResult:
        campaign = any(isinstance(request, PutKey) and request.key == KEYS.leader for request in success)
        kept = [c for c in compares if campaign or self.blind_to is None or not isinstance(c, self.blind_to)]
        result = super().txn(kept, success, failure)
        written = [request.value for request in success if isinstance(request, PutKey) and request.key == KEYS.wseq]
        if result.succeeded and written:
            self._note(written[0])
        return result

    def _note(self, sequence: bytes) -> None:
        lease = int(sequence.split(b":")[0], 16)
        leader = self._range(KEYS.leader, b"")
        if not leader or leader[0].lease != lease:
            self.faults.append(f"{sequence!r} was written by a manager that does not lead")
        if sequence in self.sequences:
            self.faults.append(f"{sequence!r} was written twice")
        self.sequences.append(sequence)


@dataclass
class Run:
    """One seed: what was tried, what was acknowledged, and what was wrong."""

    seed: int
    etcd: Watched
    attempted: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    answered: set[tuple[str, int]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(f"seed {self.seed}: {what}")


class Replica:
    """What a subscriber makes of the changes alone; must equal the store's state at any time."""

    def __init__(self, run: Run, store: Store) -> None:
        self.run, self.store = run, store
        self.records: dict[object, object] = {}
        store.subscribe(self.on_changes)

    def on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            known = self.records.get(identity(change.record))
            self.run.check(known == change.before, f"a gap before {change}")
            if change.after is None:
                self.records.pop(identity(change.record), None)
            else:
                self.records[identity(change.record)] = change.after


async def simulate(seed: int, blind_to: type[Compare] | None = None) -> Run:
    rng = random.Random(seed)
    etcd = Watched(blind_to)
    run = Run(seed, etcd)
    faults = [Faults(rng=random.Random(rng.random())) for _ in range(MANAGERS)]
    clients = [MemoryClient(etcd, each) for each in faults]
    stores = [
        Store(client, Candidate(id=f"m{number}"), rng=random.Random(rng.random()))
        for number, client in enumerate(clients)
    ]
    replicas = [Replica(run, store) for store in stores]
    for store in stores:
        await store.start()
    writers = [
        asyncio.create_task(write(run, store, f"c{number}", random.Random(rng.random())))
        for store in stores
        for number in range(COUNTERS)
    ]
    await trouble(rng, faults, clients, etcd)
    for each, client in zip(faults, clients, strict=True):
        each.cut, each.lose_request, each.lose_reply, each.late, each.delay_s = False, 0.0, 0.0, 0.0, (0.0, 0.01)
        client.nudge()
    await asyncio.sleep(HEALED_S)
    run.check(sum(store.leader for store in stores) == 1, "not exactly one leader after healing")
    run.stopping = True
    await asyncio.gather(*writers)
    await asyncio.sleep(1)
    await judge(run, stores, replicas)
    for store in stores:
        await store.stop()
    etcd.close()
    return run


async def trouble(rng: random.Random, faults: list[Faults], clients: list[MemoryClient], etcd: Watched) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + TROUBLE_S
    while loop.time() < until:
        victim = rng.randrange(MANAGERS)
        each = faults[victim]
        match rng.randrange(6):
            case 0:
                each.cut = not each.cut
                clients[victim].nudge()
            case 1:
                each.lose_request, each.lose_reply = rng.choice([0.0, 0.2]), rng.choice([0.0, 0.2])
            case 2:
                each.late = rng.choice([0.0, 0.2])
            case 3:
                each.delay_s = rng.choice([(0.0, 0.005), (0.0, 0.05), (0.05, 0.5)])
            case 4 if etcd._leases:
                etcd.lease_revoke(rng.choice(sorted(etcd._leases)))
            case 5 if etcd.revision - 5 > etcd.compacted:
                etcd.compact(etcd.revision - rng.randrange(5))
        await asyncio.sleep(rng.uniform(0.2, 3))


async def write(run: Run, store: Store, name: str, rng: random.Random) -> None:
    """Counts a task's created_at up; the managers' writers of one name take turns as leadership moves."""
    while not run.stopping:
        current = store.state.tasks.get(name) or Task(id=name, service_id="s", slot=1, spec=TaskSpec())
        count = current.created_at + 1
        try:
            if store.leader:
                run.attempted[name] = max(run.attempted.get(name, 0), count)
            ops = [Put(msgspec.structs.replace(current, created_at=count))]
            if rng.random() < 0.3:  # the same transaction makes or removes a node: both or none
                other = store.state.nodes.get(name)
                ops.append(Delete(other) if other else Put(Node(id=name)))  # type: ignore[arg-type]
            await store.commit(ops, timeout_s=rng.choice([0.2, 2.0, 10.0]))
            # The answer may come after that of a later write by the next leader, but never to two writers.
            run.check((name, count) not in run.answered, f"{name}: {count} was acknowledged twice")
            run.answered.add((name, count))
            run.acknowledged[name] = max(run.acknowledged.get(name, 0), count)
        except SwarmletError:
            await asyncio.sleep(rng.uniform(0.05, 0.5))
        await asyncio.sleep(rng.uniform(0, 0.4))


async def judge(run: Run, stores: list[Store], replicas: list[Replica]) -> None:
    etcd = run.etcd
    run.wrong += [f"seed {run.seed}: {fault}" for fault in etcd.faults]
    fresh = Store(MemoryClient(etcd), Candidate(id="judge"))
    await fresh.start()
    await fresh.stop()
    stored = fresh.state
    for name, count in run.acknowledged.items():
        found = stored.tasks[name].created_at if name in stored.tasks else 0
        run.check(count <= found <= run.attempted[name], f"{name}: {found} is stored, {count} was acknowledged")
    for store, replica in zip(stores, replicas, strict=True):
        run.check(dict(store.state.tasks) == dict(stored.tasks), "a manager's tasks are not what is stored")
        run.check(dict(store.state.nodes) == dict(stored.nodes), "a manager's nodes are not what is stored")
        run.check(
            replica.records == {identity(r): r for r in (*stored.tasks.values(), *stored.nodes.values())},
            "a subscriber's picture is not what is stored",
        )
    run.check(len(run.acknowledged) == COUNTERS, "some writer never got through")


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_fails_nothing_acknowledged_is_lost_and_only_leaders_write(seed: int) -> None:
    assert (await simulate(seed)).wrong == []


async def test_the_same_seed_runs_the_same_way() -> None:
    first, second = await simulate(7), await simulate(7)
    assert first.etcd.sequences == second.etcd.sequences
    assert first.acknowledged == second.acknowledged


@pytest.mark.parametrize("guard", [CreatedAt, HasValue])
async def test_the_simulation_notices_when_a_guard_is_missing(guard: type[Compare]) -> None:
    wrong: list[str] = []
    for seed in range(30):
        wrong += (await simulate(seed, blind_to=guard)).wrong
        if wrong:
            return
    pytest.fail(f"30 runs without {guard.__name__} and nothing was wrong")
