"""The next step of one task on this node: a pure function of what is wanted, what was reported, and what is there.

States only grow. An error before STARTING makes a task REJECTED, later FAILED (SwarmKit, agent/exec/controller.go);
the words of `err` are dockerd's. Looking twice at the same view gives the same step, so an agent that was killed
between a step and its record just looks again.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_agent.engine.container import Container
from swarmlet_agent.worker.convert import published


@dataclass(frozen=True, slots=True)
class Become:
    """Nothing to do but to say so: the task has reached this status."""

    status: TaskStatus


@dataclass(frozen=True, slots=True)
class Prepare:
    """Pull the image if it is not here, and create the container."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start the container."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the container, with the task's grace period."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the container and all that is known of the task."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Wait until something changes."""


Step = Become | Prepare | Start | Stop | Forget | Idle
IDLE = Idle()


def next_step(task: Task, status: TaskStatus, container: Container | None, *, released: bool, now: int) -> Step:
    """status: what was last reported; container: the engine's record of the task's container, None = there is none;
    released: the manager has dropped the task's record."""
    runs = container is not None and container.is_running
    if released:
        return Stop() if runs else Forget()
    if status.state.is_terminal:
        return Stop() if runs else IDLE
    if task.desired_state >= TaskState.SHUTDOWN:
        return _towards_shutdown(status, container, now)
    match status.state:
        case TaskState.ASSIGNED:
            return _become(status, TaskState.ACCEPTED, "accepted", now)
        case TaskState.ACCEPTED:
            return _become(status, TaskState.PREPARING, "preparing", now)
        case TaskState.PREPARING:
            if container is None:
                return Prepare()
            return _become(replace(status, container_id=container.id), TaskState.READY, "prepared", now)
        case TaskState.READY:
            if task.desired_state < TaskState.RUNNING:
                return IDLE
            return _become(status, TaskState.STARTING, "starting", now)
        case TaskState.STARTING | TaskState.RUNNING:
            return _while_running(task, status, container, now)
        case _:
            return IDLE


def _while_running(task: Task, status: TaskStatus, container: Container | None, now: int) -> Step:
    if container is None or container.state.status in ("removing", "dead"):
        return Become(failed(status, f"No such container: {task.name}", now))
    if container.state.status == "created":
        # Seen RUNNING it cannot be "created" again, unless by hands that made it anew under the same name.
        return Start()
    if not container.is_running:
        return Become(ended(status, container, now))
    health = container.state.health
    if health is not None and health.status == "unhealthy":
        if status.state is TaskState.RUNNING and not status.unhealthy:
            return Become(replace(status, unhealthy=True))  # first nobody is sent to it any more
        return Stop()
    if status.state is TaskState.RUNNING:
        return IDLE
    if health is not None and health.status == "starting":
        return IDLE  # not running for its clients until the first probe has passed
    ports = published(container.ports, task.ports)
    # Without a health check it runs since its start, also in the eyes of an agent that came back later.
    since = (container.state.started_at if health is None else 0) or now
    running = replace(status, container_id=container.id, pid=container.state.pid, ports=ports, running_at=since)
    return _become(running, TaskState.RUNNING, "started", since)


def _towards_shutdown(status: TaskStatus, container: Container | None, now: int) -> Step:
    if container is not None and container.is_running:
        return Stop()
    if container is not None and container.state.status == "exited" and not container.state.manually_stopped:
        return Become(ended(status, container, now))  # it was over before anyone asked
    code = 0 if container is None else container.state.exit_code
    return _become(replace(status, pid=0, exit_code=code, ports=()), TaskState.SHUTDOWN, "shutdown", now)


def ended(status: TaskStatus, container: Container, now: int) -> TaskStatus:
    """COMPLETE or FAILED, for a container that is not running any more."""
    state = container.state
    unhealthy = state.health is not None and state.health.status == "unhealthy"
    final = replace(
        status, container_id=container.id, pid=0, exit_code=state.exit_code, ports=(), at=state.finished_at or now,
        unhealthy=False,
    )
    if unhealthy:
        return replace(
            final, state=TaskState.FAILED, message="started",
            err=f"task: non-zero exit ({state.exit_code}): dockerexec: unhealthy container",
        )
    if state.exit_code == 0:
        return replace(final, state=TaskState.COMPLETE, message="finished", err="")
    detail = f": {state.error}" if state.error else ""
    return replace(
        final, state=TaskState.FAILED, message="started", err=f"task: non-zero exit ({state.exit_code}){detail}"
    )


def failed(status: TaskStatus, err: str, now: int) -> TaskStatus:
    """REJECTED before STARTING, FAILED from then on; the message keeps saying how far it came."""
    state = TaskState.REJECTED if status.state < TaskState.STARTING else TaskState.FAILED
    return replace(status, state=state, err=err, at=now, pid=0, ports=(), unhealthy=False)


def recovered(task: Task, container: Container | None, now: int) -> TaskStatus:
    """The status of a task whose own was only in a dead agent's memory: as far as its container shows it came."""
    if container is None or container.state.status in ("removing", "dead"):
        return TaskStatus(state=TaskState.ASSIGNED, at=now)
    status = TaskStatus(state=TaskState.READY, at=now, message="prepared", container_id=container.id)
    if container.state.status == "created":
        return status
    return replace(status, state=TaskState.STARTING, message="starting")


def _become(status: TaskStatus, state: TaskState, message: str, now: int) -> Become:
    return Become(replace(status, state=state, message=message, err="", at=now, unhealthy=False))
