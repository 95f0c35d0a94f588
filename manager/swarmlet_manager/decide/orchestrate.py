"""Everything that is to be done for one service: its slots, restarts, rolling update, and its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from swarmlet.model.service import Service, ServiceSpec
from swarmlet.model.states import TaskState
from swarmlet_manager.decide import allocate
from swarmlet_manager.decide.draft import Draft
from swarmlet_manager.decide.nodes import is_lost
from swarmlet_manager.decide.plan import NOTHING, Plan
from swarmlet_manager.decide.restart import promote_ready
from swarmlet_manager.decide.slots import reconcile_global, reconcile_replicated
from swarmlet_manager.decide.update import roll
from swarmlet_manager.state import Delete, State


def plan_service(state: State, service_id: str, now: int, new_id: Callable[[], str]) -> Plan:
    """Writes that bring one service closer to its spec; applied, a second pass at the same time returns none.

    A service that is being removed, or whose record is gone, has its tasks told to REMOVE.
    """
    service = state.services.get(service_id)
    if service is None or service.pending_delete:
        return _plan_removal(state, service_id, service, now, new_id)
    draft = Draft(
        service,
        state.tasks_of_service(service_id),
        state.nodes,
        now,
        new_id,
        partial(allocate.plan_ports, state, service_id),
    )
    reconcile = _reconciler(service)
    # A rollback changes the spec, replicas included, so everything is looked at once more. It is never itself
    # rolled back, so two rounds are enough.
    for _ in range(2):
        spec_version = draft.service.spec_version
        roll(draft, reconcile(draft))
        if draft.service.spec_version == spec_version:
            break
    promote_ready(draft)
    return draft.plan()


def _reconciler(service: Service) -> Callable[[Draft], list[tuple[int, str]]]:
    """Jobs are refused when they are created, so what is not global is replicated."""
    return reconcile_global if service.spec.mode.global_ is not None else reconcile_replicated


def _plan_removal(state: State, service_id: str, service: Service | None, now: int, new_id: Callable[[], str]) -> Plan:
    """End all tasks; the record goes with the last of them.

    A task on a lost node cannot say that it has ended. It is not waited for: it stays, told to REMOVE, until its
    node returns and obeys or is given up, and the service's name is free meanwhile.
    """
    tasks = list(state.tasks_of_service(service_id))
    if not tasks and service is None:
        return NOTHING
    stand_in = service or Service(id=service_id, spec=ServiceSpec())
    draft = Draft(stand_in, tasks, state.nodes, now, new_id, lambda spec: ())
    for task in tasks:
        draft.forget(task)
    waited_for = [
        task
        for task in draft.tasks()
        if task.status.state <= TaskState.RUNNING and not is_lost(state.nodes.get(task.node_id))
    ]
    plan = draft.plan()
    if service is None or waited_for:
        return plan
    return Plan(ops=(*plan.ops, Delete(service)))
