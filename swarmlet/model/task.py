"""Tasks: one attempt at running one replica of a service on one node. Never restarted, never moved."""

from __future__ import annotations

from swarmlet.model.base import Record
from swarmlet.model.network import NetworkAttachment
from swarmlet.model.service import PortConfig, TaskSpec
from swarmlet.model.states import TaskState


class TaskStatus(Record, frozen=True, kw_only=True):
    """The agent's word (until ASSIGNED, the manager's). `message` is what is going on, `err` why it failed.

    at: when the state was reached, ns. exit_code only says something in a terminal state.
    """

    state: TaskState = TaskState.NEW
    at: int = 0
    message: str = ""
    err: str = ""
    container_id: str = ""
    pid: int = 0
    exit_code: int = 0
    ports: tuple[PortConfig, ...] = ()  # host-mode ports as really published
    #: When the task first reached RUNNING, ns; 0 = it never did. Update monitoring and restart windows need it.
    #: On the manager's clock, like every time that decisions compare.
    running_at: int = 0
    #: When the manager took this status over, ns, on its own clock (`at` is the agent's); 0 = not yet.
    applied_at: int = 0
    #: It runs, but its health check has failed for good: no more clients are sent to it while it is stopped.
    unhealthy: bool = False


class Task(Record, frozen=True, kw_only=True):
    """A stored task. slot counts from 1 for replicated services and is 0 for global ones (node_id is the slot).

    `spec` and `service_name` are copies from the service at the task's creation: records of one
    (service, spec_version) share one spec object in memory, and are stored with one copy per block.
    """

    id: str
    service_id: str
    service_name: str = ""
    slot: int = 0
    node_id: str = ""
    spec: TaskSpec
    spec_version: int = 0
    ports: tuple[PortConfig, ...] = ()
    desired_state: TaskState = TaskState.RUNNING
    status: TaskStatus = TaskStatus()
    created_at: int = 0
    updated_at: int = 0
    version: int = 0
    job_iteration: int = 0
    #: While desired is READY: the earliest time, ns, at which it may become RUNNING (restart delay).
    not_before: int = 0
    #: Made by a rolling update (not by scaling, nor as a restart): its failure counts against that update.
    by_update: bool = False
    #: Its address in each of the cluster's networks it is on, once the allocator has given them.
    networks: tuple[NetworkAttachment, ...] = ()

    @property
    def name(self) -> str:
        """`service.slot.id`, for global services `service.node.id`: also the container's name."""
        return f"{self.service_name}.{self.slot or self.node_id}.{self.id}"

    @property
    def slot_key(self) -> tuple[int, str]:
        """What at most one running task should hold: the slot, or for global services the node."""
        return (self.slot, "") if self.slot else (0, self.node_id)

    @property
    def is_active(self) -> bool:
        """True while it is meant to run and has not ended: it holds its slot and its node's resources."""
        return self.desired_state <= TaskState.RUNNING and self.status.state <= TaskState.RUNNING
