"""Forgetting tasks: those told to go and gone, those that never ran, and history beyond the limit per slot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from swarmlet.model.cluster import OrchestrationSpec
from swarmlet.model.defaults import restart_max_attempts
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.state import Delete, State


def plan_reap(state: State, now: int, retention: int | None = None, services: Iterable[str] | None = None) -> Plan:
    """Task records to delete. `now` decides nothing yet: retention is a count.

    retention: tasks kept per slot, the running one included; None = the cluster's setting, negative = all.
    A service with a limit of restart attempts keeps attempts + 1, since they are counted from history.
    services: ids of the services to look at (what changed since the last pass); None = all tasks there are.
    """
    if retention is None:
        spec = OrchestrationSpec() if state.cluster is None else state.cluster.spec.orchestration
        retention = spec.task_history_retention_limit
    ids = {task.service_id for task in state.tasks.values()} if services is None else set(services)
    return Plan(ops=tuple(Delete(task) for ident in sorted(ids) for task in _reap_service(state, ident, retention)))


def is_gone(task: Task) -> bool:
    """True if nothing of it runs, nor ever will: it ended, or is to end and was given to no agent."""
    return task.status.state.is_terminal or (
        task.status.state < TaskState.ASSIGNED and task.desired_state > TaskState.RUNNING
    )


def _reap_service(state: State, service_id: str, retention: int) -> list[Task]:
    service = state.services.get(service_id)
    slots: defaultdict[tuple[int, str], list[Task]] = defaultdict(list)
    doomed: list[Task] = []
    for task in state.tasks_of_service(service_id):
        if not is_gone(task):
            slots[task.slot_key].append(task)
        elif _is_unwanted(state, task):
            doomed.append(task)
        else:
            slots[task.slot_key].append(task)
    for tasks in slots.values():
        # The rule of the newest task holds for all of its slot: it is the one whose attempts count.
        newest = max(tasks, key=_age)
        attempts = restart_max_attempts(service.spec.task_template if service else newest.spec)
        keep = attempts + 1 if attempts else retention
        if keep >= 0:
            doomed += _surplus(tasks, keep)
    return sorted(doomed, key=_age)


def _is_unwanted(state: State, task: Task) -> bool:
    """Told to go, without a service, without an agent, or a global task whose node has left the cluster."""
    if task.desired_state == TaskState.REMOVE or task.service_id not in state.services:
        return True
    if task.status.state < TaskState.ASSIGNED:
        return True
    return not task.slot and task.node_id not in state.nodes and task.desired_state > TaskState.RUNNING


def _surplus(tasks: list[Task], keep: int) -> list[Task]:
    """The oldest ended tasks that make the slot longer than `keep`. What runs, or is to run, is never among them.

    Nor is the newest one, even at a retention of 0: it says that a finished slot is not to be started again.
    """
    newest = max(tasks, key=_age)
    ended = sorted(
        (task for task in tasks if task is not newest and is_gone(task) and task.desired_state > TaskState.RUNNING),
        key=_age,
    )
    return ended[: max(0, len(tasks) - keep)]


def _age(task: Task) -> tuple[int, str]:
    return (task.created_at, task.id)
