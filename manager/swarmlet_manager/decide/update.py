"""Rolling updates and rollbacks: which slots are outdated, how many are replaced at once, and when it is over.

All of it is read from task records and the service's update status; no pass remembers another. A slot is in
flight from the creation of its new task (`by_update`) until that task has reached RUNNING (or ended) and the delay
after it is over. Rules: SwarmKit's updater.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.defaults import update_monitor_ns, update_parallelism
from swarmlet.model.service import Service, UpdateConfig, UpdateStatus
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet_manager.decide.dirty import is_dirty as is_dirty  # callers outside ask for it here
from swarmlet_manager.decide.draft import Draft, SlotKey, active
from swarmlet_manager.decide.slots import current_tasks

_IN_PROGRESS = ("updating", "rollback_started")
_PAUSED = ("paused", "rollback_paused")
_FAILED = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


def roll(draft: Draft, keys: Sequence[SlotKey]) -> None:
    """One step of the update of these slots, if there is anything to update. May change draft.service.

    A paused update does nothing but end what it had begun: tasks that overlap (start-first).
    """
    for key, tasks in draft.slots().items():  # on paused nodes, too: an overlap is not what was asked to be kept
        if len(tasks) > 1:
            _end_overlap(draft, key)
    slots = {key: current_tasks(draft, key) for key in keys}
    dirty = [key for key, tasks in slots.items() if len(tasks) > 1 or any(_dirty(draft, task) for task in tasks)]
    status = draft.service.update_status or UpdateStatus()
    if status.state:
        dirty = [key for key in dirty if not _given_up(draft, key, slots[key], status)]
    if status.state in _PAUSED or not (dirty or status.state in _IN_PROGRESS):
        return
    if status.state not in _IN_PROGRESS:
        status = UpdateStatus(state="updating", started_at=draft.now, message="update in progress")
    if dirty and not status.slots:
        status = replace(status, slots=len(dirty))
    if status != draft.service.update_status:
        draft.service = replace(draft.service, update_status=status)
    if _stopped_by_failures(draft, status):
        return
    flights = [flight for key in slots if (flight := _flight(draft, key, status)) is not None]
    if dirty:
        _replace_more(draft, slots, dirty, flights)
    else:
        _complete(draft, status, flights)


def _dirty(draft: Draft, task: Task) -> bool:
    return is_dirty(draft.service, task, draft.nodes.get(task.node_id))


def _config(service: Service, status: UpdateStatus) -> UpdateConfig:
    """The update's or the rollback's configuration, whichever is going on."""
    spec = service.spec
    chosen = spec.rollback_config if status.state == "rollback_started" else spec.update_config
    return chosen or UpdateConfig()


def _end_overlap(draft: Draft, key: SlotKey) -> None:
    """Leave one task to a slot once it has an up-to-date one that runs (start-first), or has two of those."""
    running = active(draft.slot(key))
    if len(running) < 2:
        return
    clean = [task for task in running if not _dirty(draft, task)]
    serving = [task for task in clean if task.status.state == TaskState.RUNNING]
    for task in running:
        surplus = task is not serving[0] if serving else task in clean[1:]
        if surplus:
            draft.want(task, TaskState.SHUTDOWN)


def _given_up(draft: Draft, key: SlotKey, tasks: Sequence[Task], status: UpdateStatus) -> bool:
    """Replaced by this update already, in vain (start-first): the old task serves on, and nothing follows the new."""
    return all(_dirty(draft, task) for task in tasks) and any(
        _is_ours(draft, task, status) for task in draft.slot(key)
    )


@dataclass(frozen=True, slots=True)
class _Flight:
    """A slot this update has begun to replace. settled_at: when its new task had run or ended, ns; None = not yet."""

    key: SlotKey
    settled_at: int | None


def _flight(draft: Draft, key: SlotKey, status: UpdateStatus) -> _Flight | None:
    tasks = draft.slot(key)
    ours = [task for task in tasks if _is_ours(draft, task, status)]
    if not ours:
        return None
    # A restart of the new task counts as well: the first may have lost its node before it could run.
    clean = [task for task in tasks if task.created_at >= ours[0].created_at and not _dirty(draft, task)]
    reached = [at for task in clean if (at := _reached_at(task)) is not None]
    if not reached and not active(clean):
        reached = [max(task.updated_at for task in clean)]
    return _Flight(key, min(reached) if reached else None)


def _is_ours(draft: Draft, task: Task, status: UpdateStatus) -> bool:
    """Made by the update that is going on."""
    return task.by_update and task.spec_version == draft.service.spec_version and task.created_at >= status.started_at


def _reached_at(task: Task) -> int | None:
    """When the task was first seen RUNNING, or else had ended; None before that."""
    if task.status.running_at:
        return task.status.running_at
    return task.status.applied_at or task.updated_at if task.status.state >= TaskState.RUNNING else None


def _monitor_ns(config: UpdateConfig) -> int:
    """How long a new task is watched; longer than the delay, so that a failure stops the update in time."""
    monitor = update_monitor_ns(config)
    return config.delay + NS if config.delay >= monitor else monitor


def _stopped_by_failures(draft: Draft, status: UpdateStatus) -> bool:
    """Pause or roll back if too many of the update's own tasks ended before, or soon after, they ran."""
    config = _config(draft.service, status)
    if config.failure_action == "continue":
        return False
    monitor = _monitor_ns(config)
    failed = [task for task in draft.tasks() if _is_ours(draft, task, status) and _has_failed(task, monitor)]
    if not failed or len(failed) / max(1, status.slots) <= config.max_failure_ratio:
        return False
    last = max(failed, key=lambda task: (task.status.applied_at, task.id))
    cause = f"due to failure or early termination of task {last.id}"
    if status.state == "rollback_started":
        _pause(draft, status, "rollback_paused", f"rollback paused {cause}")
    elif config.failure_action == "rollback":
        _roll_back(draft, status, cause)
    else:
        _pause(draft, status, "paused", f"update paused {cause}")
    return True


def _has_failed(task: Task, monitor_ns: int) -> bool:
    if task.status.state not in _FAILED or task.desired_state == TaskState.REMOVE:
        return False
    ended_at = task.status.applied_at or task.updated_at
    return not task.status.running_at or ended_at - task.status.running_at < monitor_ns


def _pause(draft: Draft, status: UpdateStatus, state: str, message: str) -> None:
    draft.service = replace(draft.service, update_status=replace(status, state=state, message=message))
    draft.notes.append(message)


def _roll_back(draft: Draft, status: UpdateStatus, cause: str) -> None:
    """Swap in the previous spec. What that spec runs counts as a new version, so attempts start afresh."""
    service = draft.service
    if service.previous_spec is None:
        _pause(draft, status, "paused", f"update paused {cause}; there is no previous spec to roll back to")
        return
    try:
        ports = draft.ports_for(service.previous_spec)
    except InvalidArgument as err:
        _pause(draft, status, "paused", f"update paused {cause}; it cannot be rolled back: {err}")
        return
    message = f"update rolled back {cause}"
    draft.service = replace(
        service,
        spec=service.previous_spec,
        # Not the number it had: the next update must not get that of the tasks that have just failed.
        spec_version=max(service.spec_version, service.previous_spec_version) + 1,
        previous_spec=None,
        previous_spec_version=0,
        sealed_auth=service.previous_sealed_auth,
        previous_sealed_auth=b"",
        ports=ports,
        update_status=UpdateStatus(state="rollback_started", started_at=draft.now, message=message),
    )
    draft.notes.append(message)


def _replace_more(
    draft: Draft, slots: dict[SlotKey, list[Task]], dirty: Sequence[SlotKey], flights: Sequence[_Flight]
) -> None:
    """Begin as many outdated slots as the parallelism leaves room for."""
    assert draft.service.update_status is not None
    config = _config(draft.service, draft.service.update_status)
    busy = 0
    for flight in flights:
        if flight.settled_at is None:
            busy += 1
        elif flight.settled_at + config.delay > draft.now:
            busy += 1
            draft.wake(flight.settled_at + config.delay)
    parallelism = update_parallelism(config) or len(slots)
    # A slot that has an up-to-date task is only waited for: its old one ends when the new one runs.
    waiting = [key for key in dirty if all(_dirty(draft, task) for task in slots[key])]
    for key in waiting[: max(0, parallelism - busy)]:
        old = active(slots[key])
        if config.order == "start-first":
            draft.create(key, TaskState.RUNNING, by_update=True)
            continue
        for task in old:
            draft.want(task, TaskState.SHUTDOWN)
        draft.create(key, by_update=True)


def _complete(draft: Draft, status: UpdateStatus, flights: Sequence[_Flight]) -> None:
    """Declare the end once nothing is outdated and the last new task has been watched for long enough."""
    settled = [flight.settled_at for flight in flights if flight.settled_at is not None]
    if len(settled) < len(flights):
        return
    if settled:
        watched_until = max(settled) + _monitor_ns(_config(draft.service, status))
        if watched_until > draft.now:
            draft.wake(watched_until)
            return
    state, message = (
        ("rollback_completed", "rollback completed")
        if status.state == "rollback_started"
        else ("completed", "update completed")
    )
    done = replace(status, state=state, message=message, completed_at=draft.now)
    draft.service = replace(draft.service, update_status=done)
