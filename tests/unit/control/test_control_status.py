"""Reports on their way into the store: nothing an agent says may harm another, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from swarmlet.errors import InvalidArgument, StaleView, Unavailable
from swarmlet.model.service import TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.dispatch.status import MAX_TEXT, StatusCollector
from swarmlet_manager.state import Op, Put, State

pytestmark = pytest.mark.looptime


class Store:
    """A store that fails as it is told."""

    def __init__(self) -> None:
        self.state = State()
        self.leader, self.term = True, 1
        self.failures: list[Exception] = []
        self.poison = ""
        self.commits = 0
        for number in range(10):
            self.state.apply(
                Put(
                    Task(
                        id=f"t{number}", service_id="s", node_id="n1", spec=TaskSpec(),
                        status=TaskStatus(state=TaskState.ASSIGNED),
                    )
                )
            )

    async def commit(self, ops: Sequence[Op]) -> Sequence[Task]:
        self.commits += 1
        await asyncio.sleep(0.001)
        if self.failures:
            raise self.failures.pop(0)
        if any(op.record.id == self.poison for op in ops):
            raise InvalidArgument("a record cannot be stored")
        for op in ops:
            self.state.apply(op)
        return [op.record for op in ops]  # type: ignore[misc]

    def subscribe(self, _callback: object) -> object:
        raise AssertionError("not used here")

    def seen(self, ident: str) -> TaskState:
        return self.state.tasks[ident].status.state


class Session:
    def __init__(self, node_id: str = "n1") -> None:
        self.node_id = node_id
        self.acknowledged: list[int] = []

    def acknowledge(self, seq: int) -> None:
        self.acknowledged.append(seq)


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def collector(store: Store) -> AsyncIterator[StatusCollector]:
    made = StatusCollector(store, lambda: 1)  # type: ignore[arg-type]
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def running(*idents: str, **more: object) -> list[tuple[str, TaskStatus]]:
    return [(ident, TaskStatus(state=TaskState.RUNNING, **more)) for ident in idents]  # type: ignore[arg-type]


async def test_a_burst_is_written_in_few_commits_and_acknowledged_after(
    store: Store, collector: StatusCollector
) -> None:
    session = Session()
    for seq in range(1, 11):
        collector.add(session, seq, running(f"t{seq - 1}"))
    await asyncio.sleep(1)
    assert all(store.seen(f"t{number}") is TaskState.RUNNING for number in range(10))
    assert session.acknowledged[-1] == 10
    assert store.commits <= 2


async def test_nothing_is_acknowledged_before_it_is_stored(store: Store, collector: StatusCollector) -> None:
    store.failures = [Unavailable("no leader"), StaleView("changed"), Unavailable("no leader")]
    session = Session()
    collector.add(session, 1, running("t1"))
    await asyncio.sleep(0.1)
    assert not session.acknowledged
    await asyncio.sleep(2)
    assert session.acknowledged == [1]
    assert store.seen("t1") is TaskState.RUNNING


async def test_a_node_speaks_only_for_itself(store: Store, collector: StatusCollector) -> None:
    liar = Session("n2")
    collector.add(liar, 1, running("t1", "unheard-of"))
    await asyncio.sleep(1)
    assert store.seen("t1") is TaskState.ASSIGNED
    assert liar.acknowledged == [1]
    assert not collector._pending


async def test_a_report_that_cannot_be_stored_stops_no_other(store: Store, collector: StatusCollector) -> None:
    store.poison = "t3"
    session = Session()
    collector.add(session, 1, running(*(f"t{number}" for number in range(10))))
    await asyncio.sleep(1)
    assert [store.seen(f"t{number}") is TaskState.RUNNING for number in range(10)] == [n != 3 for n in range(10)]
    assert session.acknowledged == [1]


async def test_a_late_older_report_changes_nothing(store: Store, collector: StatusCollector) -> None:
    session = Session()
    collector.add(session, 1, [("t1", TaskStatus(state=TaskState.FAILED, err="boom"))])
    await asyncio.sleep(0.5)
    collector.add(session, 2, running("t1"))
    await asyncio.sleep(0.5)
    assert store.seen("t1") is TaskState.FAILED
    assert session.acknowledged == [1, 2]


async def test_endless_texts_are_cut(store: Store, collector: StatusCollector) -> None:
    collector.add(Session(), 1, running("t1", err="x" * (1 << 20)))
    await asyncio.sleep(0.5)
    assert len(store.state.tasks["t1"].status.err) == MAX_TEXT
