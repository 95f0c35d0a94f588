"""What runs only while this manager leads: it begins, ends, fails and is cancelled with nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from swarmlet.errors import Internal, Unavailable
from swarmlet.loops import Group
from swarmlet_manager.leadership import Leading
from swarmlet_manager.state import Change, Op, State, StoredRecord

pytestmark = pytest.mark.looptime


class FakeStore:
    """Leads when told to. What it tells of the leadership is told at once, as the store does."""

    def __init__(self) -> None:
        self.state = State()
        self.term = 0
        self.leader = False
        self._leading = asyncio.Event()
        self._told: list[Callable[[int | None], None]] = []
        self.subscribers: list[Callable[[Sequence[Change]], None]] = []

    async def commit(self, ops: Sequence[Op]) -> Sequence[StoredRecord]:
        raise AssertionError("nobody here writes")

    async def wait_for_leadership(self) -> int:
        await self._leading.wait()
        return self.term

    def subscribe(self, callback: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    def subscribe_leadership(self, callback: Callable[[int | None], None]) -> Callable[[], None]:
        self._told.append(callback)
        return lambda: self._told.remove(callback)

    @property
    def watched(self) -> bool:
        return bool(self._told)

    def win(self) -> None:
        self.term += 1
        self.leader = True
        self._leading.set()
        self._tell(self.term)

    def lose(self) -> None:
        self.leader = False
        self._leading.clear()
        self._tell(None)

    def change(self) -> None:
        for callback in tuple(self.subscribers):
            callback(())

    def _tell(self, term: int | None) -> None:
        for callback in tuple(self._told):
            callback(term)


class Noting:
    """A duty with one loop; notes what becomes of both, with its name."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes
        self.trouble: asyncio.Future[None] | None = None
        self.begin_error: Exception | None = None

    def begin(self, loops: Group) -> None:
        self._note("begins")
        if self.begin_error is not None:
            raise self.begin_error
        self.trouble = asyncio.get_running_loop().create_future()
        loops.start(self._loop(self.trouble), name=self.name)

    def changed(self, changes: Sequence[Change]) -> None:
        self._note("hears")

    def end(self) -> None:
        self._note("ends")

    async def _loop(self, trouble: asyncio.Future[None]) -> None:
        self._note("runs")
        try:
            await trouble
        finally:
            self._note("has run")

    def _note(self, what: str) -> None:
        self.notes.append(f"{self.name} {what}")


class Prepared:
    """The leader's first steps: they wait at the gate, and fail there as often as there are errors."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.errors: list[Exception] = []

    async def __call__(self) -> None:
        self.reached.set()
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)


class World:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.notes: list[str] = []
        self.prepared = Prepared()
        self.one, self.two = Noting("one", self.notes), Noting("two", self.notes)
        self.task = asyncio.create_task(Leading(self.store, self.prepared, (self.one, self.two)).run())

    async def settled(self) -> list[str]:
        """What has been noted since it was last asked, once nothing happens any more (in virtual time)."""
        await asyncio.sleep(60)
        notes, self.notes[:] = list(self.notes), []
        return notes


BEGINNING = ["one begins", "two begins", "one runs", "two runs"]
ENDS = ["two ends", "one ends"]


def ending(notes: Sequence[str]) -> list[str]:
    """The end's part in its order, after both loops have ended in any order."""
    assert sorted(notes[:2]) == ["one has run", "two has run"]
    return list(notes[2:])


@contextlib.asynccontextmanager
async def world(*, leads: bool = True) -> AsyncIterator[World]:
    """At the end nothing is left: neither subscriptions nor tasks."""
    made = World()
    await made.settled()
    if leads:
        made.store.win()
        assert await made.settled() == BEGINNING
    try:
        yield made
    finally:
        made.task.cancel()
        await asyncio.gather(made.task, return_exceptions=True)
    assert made.store.subscribers == []
    assert not made.store.watched
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nothing_runs_and_nothing_is_prepared_before_this_manager_leads() -> None:
    async with world(leads=False) as made:
        made.store.change()
        assert await made.settled() == []
        assert not made.prepared.reached.is_set()


async def test_duties_begin_in_order_once_all_is_prepared_and_hear_of_changes() -> None:
    async with world(leads=False) as made:
        made.prepared.gate.clear()
        made.store.win()
        await made.prepared.reached.wait()
        made.store.change()
        assert await made.settled() == []
        made.prepared.gate.set()
        assert await made.settled() == BEGINNING
        made.store.change()
        assert made.notes == ["one hears", "two hears"]


async def test_with_the_leadership_loops_end_first_then_the_duties_in_reverse() -> None:
    async with world() as made:
        made.store.lose()
        assert ending(await made.settled()) == ENDS
        made.store.change()
        assert await made.settled() == []
        assert not made.task.done()


async def test_duties_begin_again_with_the_next_term() -> None:
    async with world() as made:
        made.store.lose()
        await made.settled()
        made.store.win()
        assert await made.settled() == BEGINNING


async def test_a_leadership_lost_and_won_in_one_moment_ends_and_begins_the_duties() -> None:
    async with world() as made:
        made.store.lose()
        made.store.win()
        notes = await made.settled()
        assert ending(notes[:4]) == ENDS
        assert notes[4:] == BEGINNING


async def test_a_loop_that_fails_ends_the_other_duties_and_is_raised() -> None:
    async with world() as made:
        assert made.one.trouble is not None
        made.one.trouble.set_exception(RuntimeError("broken"))
        assert ending(await made.settled()) == ENDS
        with pytest.raises(RuntimeError, match="broken"):
            await made.task


async def test_what_fails_because_the_leadership_is_lost_is_no_failure() -> None:
    async with world() as made:
        assert made.two.trouble is not None
        made.store.lose()
        made.two.trouble.set_exception(Unavailable("not the leader"))
        assert ending(await made.settled()) == ENDS
        made.store.win()
        assert await made.settled() == BEGINNING


async def test_a_duty_that_cannot_begin_is_raised_and_those_begun_end() -> None:
    async with world(leads=False) as made:
        made.two.begin_error = Internal("cannot")
        made.store.win()
        assert await made.settled() == ["one begins", "two begins", *ENDS]  # its loop had not had its first step
        with pytest.raises(Internal, match="cannot"):
            await made.task


async def test_first_steps_that_fail_while_leading_are_raised() -> None:
    async with world(leads=False) as made:
        made.prepared.errors = [Unavailable("etcd has not confirmed the write")]
        made.store.win()
        assert await made.settled() == []
        with pytest.raises(Unavailable, match="etcd"):
            await made.task


@pytest.mark.parametrize("errors", [[], [Unavailable("not the leader")]], ids=["done all the same", "refused"])
async def test_a_leadership_lost_during_the_first_steps_begins_no_duty(errors: list[Exception]) -> None:
    async with world(leads=False) as made:
        made.prepared.gate.clear()
        made.store.win()
        await made.prepared.reached.wait()
        made.store.lose()
        made.prepared.errors = list(errors)
        made.prepared.gate.set()
        assert await made.settled() == []
        made.store.win()
        assert await made.settled() == BEGINNING


async def test_first_steps_refused_by_a_lost_leadership_are_taken_again_if_it_is_won_again_meanwhile() -> None:
    async with world(leads=False) as made:
        made.prepared.gate.clear()
        made.store.win()
        await made.prepared.reached.wait()
        made.store.lose()
        made.store.win()
        made.prepared.errors = [Unavailable("not the leader")]
        made.prepared.gate.set()
        assert await made.settled() == BEGINNING


async def test_cancelling_ends_the_duties_before_it_is_done() -> None:
    async with world() as made:
        made.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await made.task
        assert ending(made.notes) == ENDS


async def test_cancelling_the_first_steps_begins_nothing() -> None:
    async with world(leads=False) as made:
        made.prepared.gate.clear()
        made.store.win()
        await made.prepared.reached.wait()
        made.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await made.task
        assert made.notes == []
