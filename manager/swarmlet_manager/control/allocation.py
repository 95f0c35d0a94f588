"""The leader's allocator at work: addresses for tasks and services as the state asks for them, and for plain
containers as agents do.

One loop has the books, so that no address is given twice: what one round decides is written before the next begins.
What was given but not written is forgotten with the allocator; a new one is made of what is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmlet.engine_api.errors import status_of
from swarmlet.errors import Internal, StaleView, SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.loops import Group, Pulse, every
from swarmlet.model.network import Lease, Network
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk, LeasesHeld, LeasesLost
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.control.writing import commit_plan
from swarmlet_manager.decide.addresses import Allocator
from swarmlet_manager.decide.leases import plan_ask, plan_held
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.state import Change, Op

log = get_logger(__name__)

#: What appears in a burst is decided together: at once, then at most every so often.
SPACING_S = 0.01
RESYNC_S = 30.0
RETRY_S = 0.05
FAILED_S = 1.0

Said = LeaseAsk | LeasesHeld
Answer = LeaseAnswer | LeasesLost | None


@dataclass(frozen=True, slots=True)
class _Work:
    """Something an agent said. done is cancelled if nobody waits for the answer any more."""

    node_id: str
    said: Said
    done: asyncio.Future[Answer]


class Allocation:
    """A duty of the leader. What agents say of one node is taken in the order in which it was said."""

    def __init__(self, store: StorePort, *, now: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._now = now
        self._books: Allocator | None = None
        self._pulse = Pulse(SPACING_S)
        #: Bounded by who puts something in: each session waits for so many answers at most.
        self._queue: deque[_Work] = deque()

    # A duty of the leader

    def begin(self, loops: Group) -> None:
        self._books = None
        loops.start(self._run(), name="allocator")
        loops.start(every(RESYNC_S, self._look_again, name="resync addresses"), name="resync addresses")

    def changed(self, changes: Sequence[Change]) -> None:
        if self._books is not None:
            self._books.apply(changes)
        if any(_concerns(change) for change in changes):
            self._pulse.beat()

    def end(self) -> None:
        self._books = None
        waiting, self._queue = self._queue, deque()
        for work in waiting:
            _fail(work, Unavailable("this manager is not the leader any more"))

    # Agents' wishes

    def submit(self, node_id: str, said: Said) -> asyncio.Future[Answer]:
        """The answer, once what it tells is in the store. Unavailable if this manager stops leading."""
        work = _Work(node_id, said, asyncio.get_running_loop().create_future())
        self._queue.append(work)
        self._pulse.beat()
        return work.done

    async def _look_again(self) -> None:
        self._pulse.beat()

    async def _run(self) -> None:
        while True:
            await self._pulse.wait()
            batch = self._take()
            try:
                await self._round(batch)
            except (StaleView, Unavailable) as err:
                log.debug("allocate again", reason=err)
                self._books = None
                self._queue.extendleft(reversed(batch))
                await asyncio.sleep(0 if isinstance(err, StaleView) else RETRY_S)
                self._pulse.beat()
            except Exception:
                log.exception("allocating addresses failed")
                self._books = None
                for work in batch:
                    _fail(work, Internal("allocating an address failed: see the manager's log"))
                await asyncio.sleep(FAILED_S)
                self._pulse.beat()
            except BaseException:  # leadership is over
                self._queue.extendleft(reversed(batch))
                raise
            if self._queue:
                self._pulse.beat()

    def _take(self) -> list[_Work]:
        """What was said first of each node: asks for one endpoint each, or one statement. What follows is decided on
        what that has changed."""
        batch: list[_Work] = []
        rest: deque[_Work] = deque()
        asked: defaultdict[str, set[str]] = defaultdict(set)
        closed: set[str] = set()
        for work in self._queue:
            if work.done.done():
                continue
            node, said = work.node_id, work.said
            ident = said.id if isinstance(said, LeaseAsk) else ""
            if node in closed or ident in asked[node] or (asked[node] and not ident):
                rest.append(work)
                closed.add(node)
                continue
            batch.append(work)
            asked[node].add(ident)
            if not ident:
                closed.add(node)
        self._queue = rest
        return batch

    async def _round(self, batch: Sequence[_Work]) -> None:
        if self._books is None:
            self._books = Allocator(self._store.state)
        now = self._now()
        ops: list[Op] = []
        answers: list[tuple[_Work, Answer]] = []
        for work in batch:
            decided, answer = self._decide(self._books, work, now)
            ops += decided
            answers.append((work, answer))
        await commit_plan(self._store, Plan(ops=(*ops, *self._books.plan(now).ops)))
        for work, answer in answers:
            if not work.done.done():
                work.done.set_result(answer)

    def _decide(self, books: Allocator, work: _Work, now: int) -> tuple[Sequence[Op], Answer]:
        state, said = self._store.state, work.said
        if isinstance(said, LeasesHeld):
            stated = plan_held(
                state, books, work.node_id, said.held, full=said.full, asking=said.asking, released=said.released
            )
            return stated.ops, LeasesLost(ids=stated.lost) if stated.lost else None
        wanted = Lease(
            id=said.id, network_id="", node_id=work.node_id, container_id=said.container_id,
            container_name=said.container_name, address=said.address, address6=said.address6, names=said.names,
            mac=said.mac, created_at=now,
        )
        try:
            granted = plan_ask(state, books, said.network, wanted, said.prefer, said.prefer6)
        except SwarmletError as err:
            return (), LeaseAnswer(id=said.id, status=status_of(err), message=str(err))
        return granted.ops, LeaseAnswer(id=said.id, lease=granted.lease, network=granted.network.name)


def _concerns(change: Change) -> bool:
    """Whether somebody may want an address, or one may have come free."""
    match change.record:
        case Task() as task:
            return change.after is None or task.status.state.is_terminal or task.status.state < TaskState.ASSIGNED
        case Node() as node:
            before = change.before
            return not node.number or not isinstance(before, Node) or before.ways != node.ways
        case Service() | Network() | Lease():
            return True
        case _:
            return False


def _fail(work: _Work, error: SwarmletError) -> None:
    if not work.done.done():
        work.done.set_exception(error)
