"""The leader's loops: each asks a pure decision what to write, writes it, and looks again when anything changes.

All of them are level-triggered: a change in the store only says which keys to look at, and a periodic resync
of every key makes up for whatever was missed. They hold no truth; a new leader starts them on the state it has.
Addresses are another duty (`allocation.py`).

Two kinds of keys share a queue: `service <id>` (its orchestrator) and `node <id>` (orphans, constraint enforcer). The
scheduler, which looks at all pending tasks together, and the reaper of history have a loop each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from swarmlet.errors import StaleView, Unavailable
from swarmlet.log import get_logger
from swarmlet.loops import Backoff, Group, Pulse, WorkQueue, every, work
from swarmlet.model.cluster import Cluster
from swarmlet.model.ids import new_cluster_id
from swarmlet.model.network import Lease
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.control.writing import commit_plan
from swarmlet_manager.decide.nodes import plan_node
from swarmlet_manager.decide.orchestrate import plan_service
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.decide.reaper import plan_reap
from swarmlet_manager.decide.schedule import Scheduler
from swarmlet_manager.state import Change

log = get_logger(__name__)

#: Workers wait for commits most of the time; together they fill one transaction.
WORKERS = 8
DEADLINE_S = 30.0
RESYNC_S = 30.0
#: Pending tasks that appear in a burst are placed together: at once, then at most every so often.
SCHEDULE_SPACING_S = 0.01
REAP_SPACING_S = 0.25
RETRY_S = 0.05
FAILED_S = 1.0


class Key(NamedTuple):
    kind: str  # service, node
    id: str


class Reconcilers:
    """Orchestrators, scheduler, reaper and what nodes need: a duty of the leader."""

    def __init__(
        self,
        store: StorePort,
        *,
        now: Callable[[], int] = time.time_ns,
        new_id: Callable[[], str] = new_cluster_id,
    ) -> None:
        self._store = store
        self._now = now
        self._new_id = new_id
        self._queue: WorkQueue[Key] = WorkQueue()
        self._scheduler: Scheduler | None = None
        self._schedule = Pulse(SCHEDULE_SPACING_S)
        self._reap = Pulse(REAP_SPACING_S)
        self._reapable: set[str] = set()

    # A duty of the leader

    def begin(self, loops: Group) -> None:
        self._queue = WorkQueue()
        self._scheduler = None
        backoff: Backoff[Key] = Backoff(base=0.005, limit=5.0)
        for number in range(WORKERS):
            loops.start(
                work(
                    self._queue, self._handle, backoff, name="reconcile", deadline=DEADLINE_S,
                    expected=(StaleView, Unavailable),
                ),
                name=f"reconcile {number}",
            )
        loops.start(self._schedule_for_ever(), name="scheduler")
        loops.start(self._reap_for_ever(), name="reaper")
        loops.start(every(RESYNC_S, self._resync, name="resync"), name="resync")

    def end(self) -> None:
        self._queue.close()
        self._scheduler = None

    async def _resync(self) -> None:
        state = self._store.state
        for service_id in state.services:
            self._queue.add(Key("service", service_id))
        for service_id in {task.service_id for task in state.tasks.values()}:
            self._queue.add(Key("service", service_id))
            self._reapable.add(service_id)
        of_tasks = (task.node_id for task in state.tasks.values() if task.node_id)
        for node_id in {*state.nodes, *of_tasks, *(lease.node_id for lease in state.leases.values())}:
            self._queue.add(Key("node", node_id))
        self._schedule.beat()
        self._reap.beat()

    # What a change makes worth a look

    def changed(self, changes: Sequence[Change]) -> None:
        if self._scheduler is not None:
            self._scheduler.apply(changes)
        for change in changes:
            match change.record:
                case Service() as service:
                    self._queue.add(Key("service", service.id))
                    self._reapable.add(service.id)
                    self._reap.beat()
                case Task() as task:
                    self._task_changed(task, change)
                case Node() as node:
                    self._node_changed(node, change)
                case Lease() as lease:
                    if lease.node_id not in self._store.state.nodes:
                        self._queue.add(Key("node", lease.node_id))
                case Cluster():
                    self._reap.beat()

    def _task_changed(self, task: Task, change: Change) -> None:
        self._queue.add(Key("service", task.service_id))
        # A new task waits for a place, an ended one gives one back.
        if change.after is None or task.status.state.is_terminal or task.status.state < TaskState.ASSIGNED:
            self._schedule.beat()
            self._reapable.add(task.service_id)
            self._reap.beat()

    def _node_changed(self, node: Node, change: Change) -> None:
        if _same_for_decisions(change.before, change.after):
            return
        self._queue.add(Key("node", node.id))
        self._schedule.beat()
        state = self._store.state
        for task in state.tasks_on_node(node.id):
            self._queue.add(Key("service", task.service_id))
        for service in state.services.values():
            if service.spec.mode.global_ is not None or service.spec.mode.global_job is not None:
                self._queue.add(Key("service", service.id))

    # The loops

    async def _handle(self, key: Key) -> None:
        now = self._now()
        if key.kind == "service":
            plan = plan_service(self._store.state, key.id, now, self._new_id)
        else:
            plan = plan_node(self._store.state, key.id, now)
        await self._commit(plan)
        if plan.wake_at is not None:
            self._queue.add_after(key, max(0.0, (plan.wake_at - self._now()) / NS))

    async def _schedule_for_ever(self) -> None:
        """What was placed but not written, the scheduler takes back by itself in its next round."""
        loop = asyncio.get_running_loop()
        while True:
            await self._schedule.wait()
            try:
                if self._scheduler is None:
                    self._scheduler = Scheduler(self._store.state)
                plan = self._scheduler.schedule(self._now())
                await self._commit(plan)
                if plan.wake_at is not None:
                    loop.call_later(max(0.0, (plan.wake_at - self._now()) / NS), self._schedule.beat)
            except (StaleView, Unavailable) as err:
                log.debug("schedule again", reason=err)
                await asyncio.sleep(0 if isinstance(err, StaleView) else RETRY_S)
                self._schedule.beat()
            except Exception:
                log.exception("scheduling failed")
                self._scheduler = None
                await asyncio.sleep(FAILED_S)
                self._schedule.beat()

    async def _reap_for_ever(self) -> None:
        while True:
            await self._reap.wait()
            services, self._reapable = self._reapable, set()
            try:
                await self._commit(plan_reap(self._store.state, self._now(), services=services))
            except (StaleView, Unavailable) as err:
                log.debug("reap again", reason=err)
                self._reapable |= services
                self._reap.beat()
            except Exception:
                log.exception("reaping failed")

    async def _commit(self, plan: Plan) -> None:
        await commit_plan(self._store, plan)


def _same_for_decisions(before: object, after: object) -> bool:
    """True if nothing changed that places or moves tasks (a node's address, a new description of the same)."""
    if not isinstance(before, Node) or not isinstance(after, Node):
        return False
    return (before.spec, before.state, before.description, before.addr) == (
        after.spec, after.state, after.description, after.addr,
    )
