"""Who holds a slot, and how slots are given up and filled: replicated and global services."""

from __future__ import annotations

from collections.abc import Sequence

from swarmlet.model.defaults import replicas
from swarmlet.model.states import Availability, TaskState
from swarmlet.model.task import Task
from swarmlet_manager.decide.draft import Draft, SlotKey, active, age
from swarmlet_manager.decide.nodes import is_valid, suits
from swarmlet_manager.decide.restart import may_restart, restart_ended

_ROLLING_BACK = "rollback_started"


def reconcile_replicated(draft: Draft) -> list[SlotKey]:
    """Bring a replicated service to its number of slots. Returns the slots that rolling updates are about.

    Surplus slots go first, so that none of them is restarted in vain; the lowest free numbers are filled.
    """
    wanted = replicas(draft.service)
    slots = draft.slots()
    held = {key: tasks for key, tasks in slots.items() if _current(draft, tasks)}
    for key in _surplus(draft, held, wanted):
        for task in held.pop(key):
            draft.forget(task)
        slots.pop(key)
    for key, tasks in list(held.items()):
        restart_ended(draft, key, tasks)
        if not current_tasks(draft, key):
            del held[key]
    keys = sorted(held)
    slot = 0
    while len(keys) < wanted:
        slot += 1
        if (slot, "") not in held:
            draft.create((slot, ""))
            keys.append((slot, ""))
    taken = set(keys)
    for key, tasks in slots.items():
        if key not in taken:  # nothing of it is to run any more, nor came back: its history goes with it
            for task in tasks:
                draft.forget(task)
    return sorted(keys)


def reconcile_global(draft: Draft) -> list[SlotKey]:
    """One task on each node that fits. Returns the slots (nodes) that rolling updates are about.

    Fits: known, neither down nor drained, constraints met. A paused node keeps what it has: nothing is added
    and nothing updated there. Where a node stops fitting, its task is shut down.
    """
    placement = draft.service.spec.task_template.placement
    slots = draft.slots()
    for key, tasks in slots.items():
        node = draft.nodes.get(key[1])
        if node is not None and is_valid(node) and suits(placement, node):
            restart_ended(draft, key, tasks)
        else:
            for task in active(tasks):
                draft.want(task, TaskState.SHUTDOWN)
    keys: list[SlotKey] = []
    for node_id in sorted(draft.nodes):
        node = draft.nodes[node_id]
        if not is_valid(node) or node.spec.availability is Availability.PAUSE or not suits(placement, node):
            continue
        key = (0, node_id)
        if not _current(draft, draft.slot(key)):
            draft.create(key)
        keys.append(key)
    return keys


def current_tasks(draft: Draft, key: SlotKey) -> list[Task]:
    """The tasks that hold a slot: those meant to run, or the last one if its policy lets nothing follow it."""
    return _current(draft, draft.slot(key))


def _current(draft: Draft, tasks: Sequence[Task]) -> list[Task]:
    """A slot whose last task ended for good stays taken, until an update finds it outdated (SwarmKit).

    Not during a rollback: that brings the service back to a whole state, finished slots included.
    """
    running = active(tasks)
    if running or not tasks:
        return running
    # One that never got to any agent says nothing about what the slot has done.
    newest = max((task for task in tasks if task.status.state >= TaskState.ASSIGNED), key=age, default=tasks[-1])
    update = draft.service.update_status
    if update is not None and update.state == _ROLLING_BACK:
        return []
    return [] if may_restart(newest, tasks) else [newest]


def _surplus(draft: Draft, held: dict[SlotKey, list[Task]], wanted: int) -> list[SlotKey]:
    """The slots to give up, SwarmKit's order: unassigned or doubled ones, then the highest copy on each node.

    Within a node, slots that do not run and high slot numbers count as the later copies.
    """
    if len(held) <= wanted:
        return []

    def is_idle(key: SlotKey) -> bool:
        return not any(task.status.state == TaskState.RUNNING for task in held[key])

    copies: dict[str, int] = {}
    ranked: list[tuple[float, int, SlotKey]] = []
    for position, key in enumerate(sorted(held, key=lambda key: (is_idle(key), key))):
        current = _current(draft, held[key])
        rank = float("inf")
        if len(current) == 1 and current[0].node_id:
            node_id = current[0].node_id
            rank = copies[node_id] = copies.get(node_id, 0) + 1
        ranked.append((rank, position, key))
    return [key for _, _, key in sorted(ranked)[wanted:]]
