"""Taking over what an agent says of a task: only forward, only about its own."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus

#: NEW and PENDING are the manager's, REMOVE is only ever desired, ORPHANED means nobody could ask the agent.
_AGENTS_STATES = range(TaskState.ASSIGNED, TaskState.REJECTED + 1)


def accept_report(task: Task, node_id: str, reported: TaskStatus, now: int) -> Task | None:
    """The task with the reported status, or None if there is nothing to write.

    Refused: another node's task, a state that lies behind the stored one, any change of a state that is final,
    and states an agent does not decide. A report equal to what is stored says nothing new. Times that decisions
    compare (running_at, applied_at) are taken from `now`, so that an agent's wrong clock moves no deadline.
    A state that is already stored keeps the time it was reached at: an agent that has just come back may know no
    better than now.
    """
    stored = task.status
    if task.node_id != node_id or reported.state not in _AGENTS_STATES or stored.state < TaskState.ASSIGNED:
        return None
    if reported.state < stored.state or (stored.state.is_terminal and reported.state != stored.state):
        return None
    ran = stored.running_at or (now if reported.running_at or reported.state == TaskState.RUNNING else 0)
    taken = replace(
        reported,
        at=stored.at if reported.state == stored.state and stored.at else reported.at,
        running_at=ran,
        applied_at=now if reported.state != stored.state else stored.applied_at,
        container_id=reported.container_id or stored.container_id,
    )
    return None if taken == stored else replace(task, status=taken, updated_at=now)
