"""Which tasks an agent is told of (SwarmKit's dispatcher): all that were ever assigned to it and have a record.

Ended tasks stay among them: their containers are kept, for logs and inspection, until the task's record goes.
What an agent itself has reported is not sent back to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.state import Change, State


@dataclass(frozen=True, slots=True)
class Increment:
    """What changed for one agent. removed: ids of tasks to forget, with all that is left of them."""

    tasks: tuple[Task, ...] = ()
    removed: tuple[str, ...] = ()


def assignments_for(state: State, node_id: str) -> tuple[Task, ...]:
    """The full set for one node, by id."""
    return tuple(sorted(filter(_is_assigned, state.tasks_on_node(node_id)), key=lambda task: task.id))


def diff(changes: Iterable[Change], node_id: str) -> Increment:
    """What these changes mean for one node."""
    return diff_by_node(changes).get(node_id, Increment())


def diff_by_node(changes: Iterable[Change]) -> dict[str, Increment]:
    """What these changes mean for each node they touch; the newest word on each task, in order of change."""
    wanted: defaultdict[str, dict[str, Task | None]] = defaultdict(dict)
    for change in changes:
        before, after = change.before, change.after
        if isinstance(before, Task) and before.node_id and (after is None or _moved(before, after)):
            _tell(wanted[before.node_id], before.id, None)
        if isinstance(after, Task) and _is_assigned(after):
            known = isinstance(before, Task) and _is_assigned(before) and not _moved(before, after)
            if not known or (isinstance(before, Task) and _orders_differ(before, after)):
                _tell(wanted[after.node_id], after.id, after)
    return {
        node_id: Increment(
            tuple(task for task in tasks.values() if task is not None),
            tuple(task_id for task_id, task in tasks.items() if task is None),
        )
        for node_id, tasks in wanted.items()
    }


def _tell(tasks: dict[str, Task | None], task_id: str, task: Task | None) -> None:
    tasks.pop(task_id, None)
    tasks[task_id] = task


def _is_assigned(task: Task) -> bool:
    return bool(task.node_id) and task.status.state >= TaskState.ASSIGNED


def _moved(before: Task, after: object) -> bool:
    return isinstance(after, Task) and before.node_id != after.node_id


def _orders_differ(before: Task, after: Task) -> bool:
    """Did anything change besides the agent's own word and the bookkeeping of writes?"""
    if before.desired_state != after.desired_state:
        return True
    same = replace(before, status=after.status, version=after.version, updated_at=after.updated_at)
    return same != after
