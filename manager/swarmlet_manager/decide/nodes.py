"""What a node's change means for the tasks on it: lost nodes orphan them, changed nodes may no longer suit them.

Moving the tasks is not decided here: an ended task is replaced by its service's own plan.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.defaults import NODE_DOWN_ORPHAN_NS
from swarmlet.model.network import Lease
from swarmlet.model.node import Node
from swarmlet.model.service import Placement
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.decide import constraints
from swarmlet_manager.decide.plan import NOTHING, Plan
from swarmlet_manager.decide.resources import capacity_of, demand_of
from swarmlet_manager.state import Delete, Put, State


def is_lost(node: Node | None) -> bool:
    """True if nothing can be asked of it any more: removed, or down."""
    return node is None or node.state is NodeState.DOWN


def is_valid(node: Node | None) -> bool:
    """True if tasks may go on running there (SwarmKit: neither missing, nor down, nor drained)."""
    return node is not None and not is_lost(node) and node.spec.availability is not Availability.DRAIN


def takes_new_tasks(node: Node) -> bool:
    """The scheduler's ready filter."""
    return node.state is NodeState.READY and node.spec.availability is Availability.ACTIVE


def suits(placement: Placement | None, node: Node) -> bool:
    """Does the node satisfy the constraints? Ones that cannot be read (they were refused at create) suit nobody."""
    if placement is None or not placement.constraints:
        return True
    try:
        return constraints.matches_all(constraints.parse_all(placement.constraints), node)
    except InvalidArgument:
        return False


def plan_node(state: State, node_id: str, now: int) -> Plan:
    """Tasks and leases of one node that must end in the manager's books: orphaned with it, or rejected by it.

    A removed node's tasks are orphaned at once, those of a node that is down after 24 h: till then it may come
    back and say how they are. On an active node, tasks whose constraints no longer hold, or whose reservations
    no longer fit, are seen as REJECTED (SwarmKit's constraint enforcer).
    """
    node = state.nodes.get(node_id)
    tasks, leases = state.tasks_on_node(node_id), state.leases_on_node(node_id)
    if node is None:
        return _orphan(tasks, leases, now)
    if node.state is NodeState.DOWN:
        deadline = node.state_changed_at + NODE_DOWN_ORPHAN_NS
        if now >= deadline:
            return _orphan(tasks, leases, now)
        return Plan(wake_at=deadline) if leases or any(map(_may_progress, tasks)) else NOTHING
    if node.state is not NodeState.READY or node.spec.availability is not Availability.ACTIVE:
        return NOTHING
    misfits = _misfits(state, node, tasks)
    return Plan(ops=tuple(Put(_rejected(task, now)) for task in misfits)) if misfits else NOTHING


def _misfits(state: State, node: Node, tasks: Iterable[Task]) -> list[Task]:
    """Running tasks that do not belong there any more. The oldest ones are first to keep their reservations."""
    cpus, memory = capacity_of(node)
    described = bool(cpus or memory)  # an agent that has not said yet what it has must not cost anyone his place
    found = []
    for task in sorted(tasks, key=lambda task: (task.created_at, task.id)):
        if task.desired_state > TaskState.RUNNING or not _may_progress(task):
            continue
        service = state.services.get(task.service_id)
        placement = task.spec.placement if service is None else service.spec.task_template.placement
        wants = demand_of(task.spec)
        fits = wants.nano_cpus <= cpus and wants.memory_bytes <= memory
        if not suits(placement, node) or (described and any(wants) and not fits):
            found.append(task)
        else:
            cpus, memory = cpus - wants.nano_cpus, memory - wants.memory_bytes
    return found


def _may_progress(task: Task) -> bool:
    return TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING


def _orphan(tasks: Iterable[Task], leases: Iterable[Lease], now: int) -> Plan:
    lost = sorted(filter(_may_progress, tasks), key=lambda task: task.id)
    ended = tuple(Put(_ended(task, TaskState.ORPHANED, task.status.message, "", now)) for task in lost)
    # Its plain containers' addresses are free for others again.
    return Plan(ops=(*ended, *(Delete(lease) for lease in sorted(leases, key=lambda lease: lease.id))))


def _rejected(task: Task, now: int) -> Task:
    message, err = "task rejected by constraint enforcer", "assigned node no longer meets constraints"
    return _ended(task, TaskState.REJECTED, message, err, now)


def _ended(task: Task, state: TaskState, message: str, err: str, now: int) -> Task:
    status: TaskStatus = replace(task.status, state=state, message=message, err=err, at=now, applied_at=now)
    return replace(task, status=status, updated_at=now)
