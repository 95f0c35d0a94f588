"""Restarting: who is replaced when a task ends or loses its node, after which delay, and when not any more.

Nothing is remembered between passes. Attempts are counted from the slot's history, and a replacement waits as
desired READY (its image is pulled meanwhile) with the time it may start in its own record.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from swarmlet.model.defaults import restart_condition, restart_delay_ns, restart_max_attempts, restart_window_ns
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet_manager.decide.dirty import is_dirty
from swarmlet_manager.decide.draft import Draft, SlotKey, active, age
from swarmlet_manager.decide.nodes import is_lost, is_valid

#: A replacement waits no longer than this for the task before it to stop (SwarmKit's old-task timeout).
OLD_TASK_TIMEOUT_NS = 60 * NS
#: States a task ends in by itself; SHUTDOWN is an order obeyed, ORPHANED a node lost.
_ENDED_BY_ITSELF = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


def restart_ended(draft: Draft, key: SlotKey, tasks: Sequence[Task]) -> None:
    """Shut down each task of a slot that has ended or whose node is lost or drained, and replace the slot's last.

    A task that crashed is replaced after the restart delay. One that lost its node is replaced at once: the delay
    is there to slow down crash loops, and a lost node is none (SwarmKit waits the delay for downed nodes too).
    A global task without its node is not replaced: the node is its slot.
    """
    for task in active(tasks):
        ended = task.status.state.is_terminal
        node_gone = bool(task.node_id) and not is_valid(draft.nodes.get(task.node_id))
        if not ended and not node_gone:
            continue
        if not node_gone and draft.now < task.not_before:
            # It failed in its preparation, before its own turn: that pause is waited for, or a task that cannot even
            # be created would be followed as fast as nodes refuse (SwarmKit waits for the last delay too).
            draft.wake(task.not_before)
            continue
        draft.want(task, TaskState.SHUTDOWN)
        slot = draft.slot(key)
        if _is_replaced(draft, task, active(slot)) or (node_gone and not task.slot) or not may_restart(task, slot):
            continue
        delay = 0 if node_gone else restart_delay_ns(task.spec)
        draft.create(key, not_before=draft.now + delay)


def _is_replaced(draft: Draft, task: Task, others: Sequence[Task]) -> bool:
    """Others hold the slot already. A new task that fails beside the old one it should replace is followed, though."""
    if not others or _dirty(draft, task):
        return bool(others)
    return any(not _dirty(draft, other) for other in others)


def _dirty(draft: Draft, task: Task) -> bool:
    return is_dirty(draft.service, task, draft.nodes.get(task.node_id))


def may_restart(task: Task, slot: Sequence[Task]) -> bool:
    """Does the task's own restart policy let another one take its slot? slot: all its tasks, history included.

    none: never, not even when the node was lost (SwarmKit's rule). on-failure: not after COMPLETE. Attempts count
    from the first task of the same spec version; with a window, only those made within it before this one ended.
    """
    condition = restart_condition(task.spec)
    if condition == "none" or (condition == "on-failure" and task.status.state == TaskState.COMPLETE):
        return False
    limit = restart_max_attempts(task.spec)
    if not limit:
        return True
    window = restart_window_ns(task.spec)
    since = (task.status.applied_at or task.updated_at) - window if window else None
    same = sorted((other for other in slot if other.spec_version == task.spec_version), key=age)
    restarts = [
        after
        for before, after in pairwise(same)
        if age(after) <= age(task) and before.status.state in _ENDED_BY_ITSELF
    ]
    return sum(1 for made in restarts if since is None or made.created_at > since) < limit


def promote_ready(draft: Draft) -> None:
    """Let tasks that wait as READY run, once their delay is over and what they replace has stopped."""
    for task in [task for task in draft.tasks() if task.desired_state == TaskState.READY]:
        _promote(draft, task)


def _promote(draft: Draft, task: Task) -> None:
    if draft.now < task.not_before:
        draft.wake(task.not_before)
        return
    patience_ends = task.created_at + OLD_TASK_TIMEOUT_NS
    if draft.now < patience_ends and any(
        _still_stops(draft, other) for other in draft.everything_in(task.slot_key)
    ):
        draft.wake(patience_ends)
        return
    draft.want(task, TaskState.RUNNING)


def _still_stops(draft: Draft, task: Task) -> bool:
    """Told to end, but not ended yet, on a node that can still say so."""
    if task.desired_state <= TaskState.RUNNING or not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
        return False
    return not is_lost(draft.nodes.get(task.node_id))
