"""What one agent has been told, and what it must be told next: pure bookkeeping of one session.

An agent gets every task on its node from ASSIGNED on, ended ones included for as long as they have a record
(their containers are kept for logs and inspection); a task's spec never changes, so only its desired state
is news. Orphaned tasks are no longer the node's: it is told to remove them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.state import State


class Feed:
    """One session's view. `note` what may have changed, then `take` what to send."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self._told: dict[str, TaskState] = {}
        self._dirty: set[str] = set()
        self._full = True

    def note(self, task_id: str) -> None:
        self._dirty.add(task_id)

    @property
    def pending(self) -> bool:
        return self._full or bool(self._dirty)

    def take(
        self, state: State, held: Callable[[str], bool] = lambda task_id: False
    ) -> tuple[bool, list[Task], list[str]]:
        """(full, tasks new or with another desired state, ids to remove); what was taken counts as told.

        held: whether the agent may not hear yet that a task is to stop. Such a task is to be noted again later.
        """
        if self._full:
            tasks = [
                replace(task, desired_state=TaskState.RUNNING) if held(task.id) else task
                for task in state.tasks_on_node(self.node_id) if belongs(task, self.node_id)
            ]
            self._told = {task.id: task.desired_state for task in tasks}
            self._full = False
            self._dirty.clear()
            return True, [_lean(task) for task in tasks], []
        changed, removed = self._changes(state, [ident for ident in self._dirty if not held(ident)])
        self._dirty.clear()
        return False, changed, removed

    def _changes(self, state: State, ids: Iterable[str]) -> tuple[list[Task], list[str]]:
        changed: list[Task] = []
        removed: list[str] = []
        for ident in ids:
            task = state.tasks.get(ident)
            if task is None or not belongs(task, self.node_id):
                if self._told.pop(ident, None) is not None:
                    removed.append(ident)
            elif self._told.get(ident) is not task.desired_state:
                self._told[ident] = task.desired_state
                changed.append(_lean(task))
        return changed, removed


def belongs(task: Task, node_id: str) -> bool:
    """Whether the node's agent should know this task."""
    state = task.status.state
    return task.node_id == node_id and state >= TaskState.ASSIGNED and state is not TaskState.ORPHANED


def _lean(task: Task) -> Task:
    """The agent only needs to know how far the manager has seen the task come."""
    return replace(task, status=replace(task.status, message="", err="", ports=()), version=0)
