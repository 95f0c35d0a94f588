"""The next step of a task: states only grow, and a second look at the same view changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.container import ContainerCreate
from swarmlet.model.service import ContainerSpec, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_agent.engine.container import Container, ContainerState, Health
from swarmlet_agent.worker.decide import (
    IDLE,
    Become,
    Forget,
    Prepare,
    Start,
    Step,
    Stop,
    failed,
    next_step,
    recovered,
)

NOW = 1_000
TASK = Task(
    id="t1", service_id="s1", service_name="web", slot=1, node_id="n1",
    spec=TaskSpec(container_spec=ContainerSpec(image="busybox")),
)
AGENT_STATES = [state for state in TaskState if TaskState.ASSIGNED <= state <= TaskState.REJECTED]
DESIRED = [TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]

healths = st.none() | st.builds(Health, status=st.sampled_from(["starting", "healthy", "unhealthy"]))
container_states = st.builds(
    ContainerState,
    status=st.sampled_from(["created", "running", "paused", "restarting", "removing", "exited", "dead"]),
    exit_code=st.integers(0, 255),
    manually_stopped=st.booleans(),
    health=healths,
)


def container(state: ContainerState | None = None, **more: object) -> Container:
    return Container(
        id="c1", name=TASK.name, created_at=1, request=ContainerCreate(image="busybox"), image_id="sha256:0",
        image_ref="busybox", args=("sh",), state=state or ContainerState(**more),  # type: ignore[arg-type]
    )


containers = st.none() | st.builds(container, container_states)


def status(state: TaskState, **more: object) -> TaskStatus:
    return TaskStatus(state=state, **more)  # type: ignore[arg-type]


def step(state: TaskState, held: Container | None = None, desired: TaskState = TaskState.RUNNING) -> Step:
    task = replace(TASK, desired_state=desired)
    return next_step(task, status(state), held, released=False, now=NOW)


@given(st.sampled_from(AGENT_STATES), containers, st.sampled_from(DESIRED), st.booleans())
def test_states_only_grow(state: TaskState, held: Container | None, desired: TaskState, released: bool) -> None:
    task = replace(TASK, desired_state=desired)
    found = next_step(task, status(state), held, released=released, now=NOW)
    if isinstance(found, Become):
        assert found.status.state > state or (state is TaskState.RUNNING and found.status.unhealthy)
        assert found.status.state is not TaskState.REMOVE


@given(containers, st.sampled_from(DESIRED), st.booleans())
def test_saying_so_comes_to_an_end(held: Container | None, desired: TaskState, released: bool) -> None:
    task, now = replace(TASK, desired_state=desired), status(TaskState.ASSIGNED)
    for _ in range(10):
        found = next_step(task, now, held, released=released, now=NOW)
        if not isinstance(found, Become):
            return
        now = found.status
    raise AssertionError("still not at rest")


@given(st.sampled_from(AGENT_STATES), containers)
def test_an_unwanted_task_never_starts_anything(state: TaskState, held: Container | None) -> None:
    for desired in (TaskState.SHUTDOWN, TaskState.REMOVE):
        assert not isinstance(step(state, held, desired), Prepare | Start)
    found = next_step(TASK, status(state), held, released=True, now=NOW)
    assert isinstance(found, Stop | Forget)


@given(st.sampled_from([state for state in AGENT_STATES if state.is_terminal]), containers)
def test_what_has_ended_never_runs_again(state: TaskState, held: Container | None) -> None:
    assert step(state, held) == (Stop() if held is not None and held.is_running else IDLE)


def test_a_task_goes_from_assigned_to_running() -> None:
    assert step(TaskState.ASSIGNED) == Become(status(TaskState.ACCEPTED, message="accepted", at=NOW))
    assert step(TaskState.ACCEPTED) == Become(status(TaskState.PREPARING, message="preparing", at=NOW))
    assert step(TaskState.PREPARING) == Prepare()
    prepared = step(TaskState.PREPARING, container())
    assert isinstance(prepared, Become) and prepared.status.state is TaskState.READY
    assert prepared.status.container_id == "c1"
    assert step(TaskState.STARTING, container()) == Start()
    running = step(TaskState.STARTING, container(status="running", pid=7))
    assert isinstance(running, Become)
    assert (running.status.state, running.status.pid, running.status.running_at) == (TaskState.RUNNING, 7, NOW)


def test_a_recovered_task_runs_since_its_container_started() -> None:
    found = step(TaskState.STARTING, container(status="running", started_at=77))
    assert isinstance(found, Become)
    assert (found.status.at, found.status.running_at) == (77, 77)


def test_a_task_wanted_ready_waits_there() -> None:
    assert step(TaskState.READY, container(), TaskState.READY) == IDLE
    assert isinstance(step(TaskState.READY, container(), TaskState.RUNNING), Become)


def test_a_health_check_holds_running_back_and_ends_an_unhealthy_task() -> None:
    assert step(TaskState.STARTING, container(status="running", health=Health(status="starting"))) == IDLE
    healthy = step(TaskState.STARTING, container(status="running", health=Health(status="healthy")))
    assert isinstance(healthy, Become) and healthy.status.state is TaskState.RUNNING
    sick = Health(status="unhealthy")
    # Its clients leave first; a task that never had any just stops.
    running = container(status="running", health=sick)
    leaves = step(TaskState.RUNNING, running)
    assert leaves == Become(status(TaskState.RUNNING, unhealthy=True))
    assert next_step(TASK, leaves.status, running, released=False, now=NOW) == Stop()
    assert step(TaskState.STARTING, running) == Stop()
    ended = step(TaskState.RUNNING, container(status="exited", exit_code=0, manually_stopped=True, health=sick))
    assert isinstance(ended, Become) and ended.status.state is TaskState.FAILED
    assert "unhealthy container" in ended.status.err


@pytest.mark.parametrize(
    ("code", "error", "state", "err"),
    [
        (0, "", TaskState.COMPLETE, ""),
        (1, "", TaskState.FAILED, "task: non-zero exit (1)"),
        (137, "oom", TaskState.FAILED, "task: non-zero exit (137): oom"),
    ],
)
def test_an_exit_is_told_in_dockers_words(code: int, error: str, state: TaskState, err: str) -> None:
    found = step(TaskState.RUNNING, container(status="exited", exit_code=code, error=error, finished_at=5))
    assert isinstance(found, Become)
    assert (found.status.state, found.status.err, found.status.exit_code, found.status.at) == (state, err, code, 5)


def test_an_end_that_came_before_the_stop_keeps_its_own_state() -> None:
    by_itself = step(TaskState.RUNNING, container(status="exited", exit_code=3), TaskState.SHUTDOWN)
    assert isinstance(by_itself, Become) and by_itself.status.state is TaskState.FAILED
    stopped = container(status="exited", exit_code=143, manually_stopped=True)
    as_asked = step(TaskState.RUNNING, stopped, TaskState.SHUTDOWN)
    assert isinstance(as_asked, Become)
    assert (as_asked.status.state, as_asked.status.exit_code) == (TaskState.SHUTDOWN, 143)


def test_a_container_that_someone_removed_fails_its_task() -> None:
    found = step(TaskState.RUNNING, None)
    assert isinstance(found, Become)
    assert (found.status.state, found.status.err) == (TaskState.FAILED, "No such container: web.1.t1")


def test_an_error_rejects_before_starting_and_fails_from_then_on() -> None:
    assert failed(status(TaskState.PREPARING), "x", NOW).state is TaskState.REJECTED
    assert failed(status(TaskState.STARTING), "x", NOW).state is TaskState.FAILED


@given(containers)
def test_recovery_claims_no_more_than_the_container_shows(held: Container | None) -> None:
    found = recovered(TASK, held, NOW)
    assert found.state <= TaskState.STARTING
    if held is not None and held.state.status in ("running", "exited"):
        assert found.state is TaskState.STARTING
    if held is None:
        assert found.state is TaskState.ASSIGNED
