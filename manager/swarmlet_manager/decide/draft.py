"""The working copy one plan is made on: each step sees what the steps before it have changed.

It lives inside a single call of a decision; only its writes leave it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec.structs import replace

from swarmlet.model.node import Node
from swarmlet.model.service import PortConfig, Service, ServiceSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.decide import allocate
from swarmlet_manager.decide.plan import Plan, earliest
from swarmlet_manager.state import Delete, Op, Put

#: What at most one running task should hold: (slot, "") or, for global services, (0, node id).
SlotKey = tuple[int, str]


class Draft:
    """Tasks of one service, to be changed; nodes, to be looked at."""

    def __init__(
        self,
        service: Service,
        tasks: Iterable[Task],
        nodes: Mapping[str, Node],
        now: int,
        new_id: Callable[[], str],
        ports_for: Callable[[ServiceSpec], tuple[PortConfig, ...]],
    ) -> None:
        """ports_for: resolves the published ports of a spec, should the service have to go back to it."""
        self.service = service
        self.nodes = nodes
        self.now = now
        self.ports_for = ports_for
        self.notes: list[str] = []
        self._service_before = service
        self._new_id = new_id
        self._before: dict[str, Task] = {}
        self._slots: defaultdict[SlotKey, dict[str, Task]] = defaultdict(dict)
        self._wake_at: int | None = None
        for task in sorted(tasks, key=age):
            self._before[task.id] = task
            self._slots[task.slot_key][task.id] = task

    def tasks(self) -> Iterator[Task]:
        """All tasks as they would be now; the oldest first within each slot."""
        for tasks in self._slots.values():
            yield from tasks.values()

    def slots(self) -> dict[SlotKey, list[Task]]:
        """Tasks by slot, the oldest first; those told to REMOVE are out of it."""
        return {key: found for key in self._slots if (found := self.slot(key))}

    def slot(self, key: SlotKey) -> list[Task]:
        """One slot of `slots()`."""
        return [task for task in self.everything_in(key) if task.desired_state != TaskState.REMOVE]

    def everything_in(self, key: SlotKey) -> list[Task]:
        """One slot with those tasks, too, that are only waited for until they have stopped."""
        return list(self._slots[key].values()) if key in self._slots else []

    def create(
        self, key: SlotKey, desired: TaskState = TaskState.READY, not_before: int = 0, by_update: bool = False
    ) -> Task:
        """A new task of the service's present spec in this slot. READY: it is promoted once it may run."""
        slot, node_id = key
        task = Task(
            id=self._new_id(),
            service_id=self.service.id,
            service_name=self.service.spec.name,
            slot=slot,
            node_id=node_id,
            spec=self.service.spec.task_template,
            spec_version=self.service.spec_version,
            ports=self.service.ports,
            desired_state=desired,
            status=allocate.initial_status(self.service.spec.task_template, self.service.ports, self.now),
            created_at=self.now,
            updated_at=self.now,
            not_before=not_before,
            by_update=by_update,
        )
        self._slots[key][task.id] = task
        return task

    def want(self, task: Task, desired: TaskState) -> None:
        """Set what is wanted of a task. It only ever grows: who is to go stays so."""
        slot = self._slots[task.slot_key]
        current = slot[task.id]
        if current.desired_state < desired:
            slot[task.id] = replace(current, desired_state=desired, updated_at=self.now)

    def forget(self, task: Task) -> None:
        """Delete the record if nothing of the task can be running, else tell the agent to remove it."""
        slot = self._slots[task.slot_key]
        state = slot[task.id].status.state
        if state.is_terminal or state < TaskState.ASSIGNED:
            del slot[task.id]
        else:
            self.want(task, TaskState.REMOVE)

    def wake(self, at: int) -> None:
        self._wake_at = earliest(self._wake_at, at)

    def plan(self) -> Plan:
        """What has changed, as writes: the service first, then slot by slot, so that a slot's tasks stay together."""
        ops: list[Op] = []
        if self.service is not self._service_before:
            ops.append(Put(replace(self.service, updated_at=self.now)))
        after = {task.id: task for task in self.tasks()}
        ops += [Delete(task) for task in self._before.values() if task.id not in after]
        ops += [Put(task) for task in after.values() if task is not self._before.get(task.id)]
        return Plan(ops=tuple(ops), wake_at=self._wake_at, notes=tuple(self.notes))


def age(task: Task) -> tuple[int, str]:
    """Sort key: the oldest first, ties by id."""
    return (task.created_at, task.id)


def active(tasks: Iterable[Task]) -> list[Task]:
    """The tasks that are meant to run, whether they do or not."""
    return [task for task in tasks if task.desired_state <= TaskState.RUNNING]
