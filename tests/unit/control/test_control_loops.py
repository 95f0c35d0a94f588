"""Queues that merge, pauses that grow, pulses, periods: in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.loops import Backoff, Group, KeyedLocks, Pulse, Runner, WorkQueue, every, work

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


@given(st.integers(0, 200), st.floats(0.001, 1), st.floats(1, 60), st.randoms(use_true_random=False))
def test_a_pause_never_passes_its_bound_and_forgetting_makes_it_short_again(
    failures: int, base: float, limit: float, rng: random.Random
) -> None:
    backoff: Backoff[str] = Backoff(base, limit, rng=rng)
    for number in range(failures):
        assert 0 <= backoff.next("k") <= min(limit, base * 2**number)
    backoff.forget("k")
    assert backoff.next("k") <= base


async def test_adds_of_one_key_merge_and_a_held_key_comes_again_only_after_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a")
    queue.add("b")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert await queue.get() == "b"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(1)
    assert not waiting.done()
    queue.done("a")
    assert await waiting == "a"
    assert len(queue) == 0


async def test_the_earlier_of_two_delays_holds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    began = now()
    queue.add_after("a", 5)
    queue.add_after("a", 2)
    queue.add_after("a", 9)
    assert await queue.get() == "a"
    assert now() - began == pytest.approx(2, abs=0.01)
    queue.done("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(20):
            await queue.get()


async def test_one_keys_trouble_delays_that_key_alone() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: list[tuple[str, float]] = []

    async def handle(key: str) -> None:
        seen.append((key, now()))
        if key == "bad" and len(seen) < 5:
            raise RuntimeError("no")

    backoff: Backoff[str] = Backoff(1.0, 1.0, floor=1.0)
    worker = asyncio.create_task(work(queue, handle, backoff, name="test", deadline=5))
    queue.add("bad")
    queue.add("good")
    await asyncio.sleep(0.5)
    assert [key for key, _ in seen] == ["bad", "good"]
    await asyncio.sleep(10)
    assert [key for key, _ in seen].count("bad") == 4
    assert backoff.failures("bad") == 0
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    queue.close()


async def test_a_handler_that_hangs_is_given_up_at_its_deadline() -> None:
    queue: WorkQueue[str] = WorkQueue()
    tries: list[float] = []

    async def handle(_key: str) -> None:
        tries.append(now())
        await asyncio.sleep(1000)

    worker = asyncio.create_task(work(queue, handle, Backoff(1.0, 1.0, floor=1.0), name="test", deadline=3))
    queue.add("k")
    await asyncio.sleep(10)
    assert len(tries) >= 2
    assert tries[1] - tries[0] == pytest.approx(4, abs=0.1)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    queue.close()


async def test_a_pulse_lets_the_first_through_at_once_and_spaces_the_rest() -> None:
    pulse = Pulse(0.5)
    returned: list[float] = []

    async def listen() -> None:
        while True:
            await pulse.wait()
            returned.append(now())

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0)
    began = now()
    for _ in range(20):
        pulse.beat()
        await asyncio.sleep(0.1)
    await asyncio.sleep(5)
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    assert returned[0] - began < 0.01
    assert all(later - earlier >= 0.499 for earlier, later in itertools.pairwise(returned))
    assert returned[-1] >= began + 1.9  # the last beat is not lost


async def test_a_period_goes_on_after_a_failure_and_leaves_out_what_it_missed() -> None:
    starts: list[float] = []

    async def step() -> None:
        starts.append(now())
        if len(starts) == 1:
            raise RuntimeError("no")
        if len(starts) == 2:
            await asyncio.sleep(3.5)

    began = now()
    task = asyncio.create_task(every(1, step, name="test"))
    await asyncio.sleep(6.9)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [round(start - began, 1) for start in starts] == [0.0, 1.0, 4.5, 5.5, 6.5]


async def test_a_runner_never_handles_a_key_twice_at_once_and_misses_no_poke() -> None:
    active: set[str] = set()
    handled: list[str] = []

    async def handle(key: str) -> None:
        assert key not in active
        active.add(key)
        await asyncio.sleep(1)
        active.discard(key)
        handled.append(key)

    runner: Runner[str] = Runner(handle, name="test")
    for _ in range(5):
        runner.poke("a")
    runner.poke("b")
    await asyncio.sleep(0.5)
    assert active == {"a", "b"}
    runner.poke("a")
    await asyncio.sleep(5)
    assert handled.count("a") == 2
    assert handled.count("b") == 1
    await runner.close()


async def test_a_runners_failure_is_tried_again_and_closing_ends_what_runs() -> None:
    tries: list[float] = []

    async def handle(_key: str) -> None:
        tries.append(now())
        raise RuntimeError("no")

    runner: Runner[str] = Runner(handle, name="test", backoff=Backoff(1, 1, floor=1))
    runner.poke("k")
    await asyncio.sleep(3.5)
    assert len(tries) == 4
    await runner.close()
    await asyncio.sleep(10)
    assert len(tries) == 4


@pytest.mark.looptime(False)  # its failure would be to go round for ever
async def test_a_runner_closes_although_something_was_poked_just_now() -> None:
    began: list[str] = []

    async def handle(key: str) -> None:
        began.append(key)

    runner: Runner[str] = Runner(handle, name="test")
    runner.poke("a")
    async with asyncio.timeout(5):
        await runner.close()  # cancels it before its first step
    assert not began


async def test_locks_of_one_key_exclude_each_other_and_are_forgotten() -> None:
    locks: KeyedLocks[str] = KeyedLocks()
    order: list[str] = []

    async def hold(key: str, name: str) -> None:
        async with locks.hold(key):
            order.append(f"{name} in")
            await asyncio.sleep(1)
            order.append(f"{name} out")

    await asyncio.gather(hold("k", "one"), hold("k", "two"), hold("other", "three"))
    assert order.index("one out") < order.index("two in")
    assert order.index("three in") < order.index("one out")
    assert not locks._locks


async def test_a_group_tells_of_its_first_failure_and_ends_the_others() -> None:
    group = Group()
    ended: list[str] = []

    async def stay() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("stay")

    async def fail() -> None:
        await asyncio.sleep(1)
        raise RuntimeError("no")

    group.start(stay(), name="stay")
    group.start(fail(), name="fail")
    with pytest.raises(RuntimeError, match="no"):
        await group.wait()
    await group.close()
    assert ended == ["stay"]
    assert len(group) == 0
