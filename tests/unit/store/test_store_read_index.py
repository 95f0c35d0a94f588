"""Many readers, few questions, and never an answer that is older than its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from swarmlet.errors import Unavailable
from swarmlet.model.node import Node
from swarmlet_manager.state import Put
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.memory import Faults, MemoryClient, MemoryEtcd
from swarmlet_manager.store.readindex import ReadIndex
from swarmlet_manager.store.store import Store

pytestmark = pytest.mark.looptime


class Clock:
    """The revision of the last write, told 10 ms after it was looked up."""

    def __init__(self) -> None:
        self.revision = 1
        self.asked = 0
        self.fails = False

    async def ask(self) -> int:
        self.asked += 1
        seen = self.revision
        await asyncio.sleep(0.01)
        if self.fails:
            raise Unavailable("no")
        return seen


async def test_readers_at_once_share_two_questions() -> None:
    clock = Clock()
    index = ReadIndex(clock.ask)

    assert await asyncio.gather(*(index.read() for _ in range(100))) == [1] * 100

    assert clock.asked == 2


async def test_a_reader_that_comes_after_a_write_gets_an_answer_that_knows_it() -> None:
    clock = Clock()
    index = ReadIndex(clock.ask)
    answers = []

    async def reader(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        before = clock.revision
        answers.append(await index.read() >= before)

    async def writer() -> None:
        for _ in range(200):
            await asyncio.sleep(0.0007)
            clock.revision += 1

    await asyncio.gather(writer(), *(reader(number * 0.0003) for number in range(400)))

    assert answers == [True] * 400
    assert clock.asked < 40


async def test_a_failure_is_for_those_who_waited_for_it_and_the_next_ask_anew() -> None:
    clock = Clock()
    index = ReadIndex(clock.ask)
    clock.fails = True
    first, second = asyncio.ensure_future(index.read()), asyncio.ensure_future(index.read())
    with pytest.raises(Unavailable):
        await first
    clock.fails = False

    assert await second == 1
    assert await index.read() == 1


async def test_a_reader_that_goes_away_takes_nothing_from_the_others() -> None:
    index = ReadIndex(Clock().ask)
    readers = [asyncio.ensure_future(index.read()) for _ in range(3)]
    await asyncio.sleep(0.005)
    readers[0].cancel()

    assert await asyncio.gather(*readers[1:]) == [1, 1]


# The store's own reads


@pytest.fixture
async def etcd() -> AsyncIterator[MemoryEtcd]:
    server = MemoryEtcd()
    yield server
    server.close()


async def test_a_follower_catches_up_with_what_the_leader_has_acknowledged(etcd: MemoryEtcd) -> None:
    leader = Store(MemoryClient(etcd), Candidate(id="m1", addr="m1:2377"))
    late = Faults(delay_s=(0.05, 0.2))
    follower = Store(MemoryClient(etcd, late), Candidate(id="m2", addr="m2:2377"))
    await leader.start()
    await leader.wait_for_leadership()
    await follower.start()
    try:
        for number in range(20):
            await leader.commit([Put(Node(id=f"n{number}"))])
            await follower.catch_up()
            assert f"n{number}" in follower.state.nodes
    finally:
        await follower.stop()
        await leader.stop()


async def test_a_manager_without_etcd_says_that_it_cannot_tell(etcd: MemoryEtcd) -> None:
    faults = Faults()
    store = Store(MemoryClient(etcd, faults), Candidate(id="m1", addr="m1:2377"))
    await store.start()
    try:
        await store.wait_for_leadership()
        faults.cut = True
        while store.leader:
            await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await store.catch_up(1.0)
    finally:
        faults.cut = False
        await store.stop()
