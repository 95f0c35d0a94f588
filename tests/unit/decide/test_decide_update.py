"""Rolling updates, step by step."""

from __future__ import annotations

import pytest
from decide_make import Rig, make_node, make_service, make_task, make_template
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.service import EndpointSpec, PortConfig, Service, ServiceSpec, TaskRestartPolicy, UpdateConfig
from swarmlet.model.states import TaskState
from swarmlet.model.times import NS
from swarmlet_manager.control import edits
from swarmlet_manager.decide.dirty import is_dirty

NODES = [make_node(f"n{number}", labels={"zone": f"z{number}"}) for number in range(3)]


def with_image(spec: ServiceSpec, image: str) -> ServiceSpec:
    return replace(spec, task_template=make_template(image))


def running(replicas: int | None, update: UpdateConfig | None = None, rollback: UpdateConfig | None = None) -> Rig:
    """A service whose tasks all run since 0, with a new image asked for at 100 s."""
    service = make_service(replicas, update=update, rollback=rollback)
    count = len(NODES) if replicas is None else replicas
    tasks = [
        make_task(
            f"old{number}",
            service=service,
            slot=0 if replicas is None else number + 1,
            node=f"n{number % 3}",
        )
        for number in range(count)
    ]
    rig = Rig(*NODES, service, *tasks)
    rig.put(edits.updated_service(service, with_image(service.spec, "busybox:2"), (), b"", 100 * NS))
    return rig


def fresh(rig: Rig) -> list[str]:
    return [task.id for task in rig.active() if task.spec_version == rig.service().spec_version]


def test_one_slot_at_a_time_is_replaced_by_default_old_before_new() -> None:
    rig = running(3)
    rig.plan(now=100 * NS)
    status = rig.service().update_status
    assert (status.state, status.started_at, status.message, status.slots) == (
        "updating",
        100 * NS,
        "update in progress",
        3,
    )
    old, new = rig.tasks()[:2]
    assert (old.desired_state, new.desired_state, new.by_update) == (TaskState.SHUTDOWN, TaskState.READY, True)
    assert len(fresh(rig)) == 1

    rig.observe("old0", TaskState.SHUTDOWN, at=101 * NS)
    rig.plan(now=101 * NS)
    assert rig.tasks()[1].desired_state == TaskState.RUNNING and len(fresh(rig)) == 1
    rig.observe(rig.tasks()[1].id, TaskState.RUNNING, at=102 * NS, node="n0")
    rig.plan(now=102 * NS)
    assert len(fresh(rig)) == 2


def test_the_delay_lies_between_one_slot_and_the_next() -> None:
    rig = running(3, UpdateConfig(delay=20 * NS))
    rig.plan(now=100 * NS)
    rig.run_all(at=101 * NS)
    rig.plan(now=101 * NS)
    rig.run_all(at=101 * NS)
    plan = rig.plan(now=102 * NS)
    assert plan.wake_at == 121 * NS and len(fresh(rig)) == 1
    rig.plan(now=121 * NS)
    assert len(fresh(rig)) == 2


def test_start_first_keeps_the_old_task_until_the_new_one_runs() -> None:
    rig = running(2, UpdateConfig(order="start-first"))
    rig.plan(now=100 * NS)
    old, new = rig.tasks()[:2]
    assert (old.desired_state, new.desired_state) == (TaskState.RUNNING, TaskState.RUNNING)
    rig.observe(new.id, TaskState.RUNNING, at=101 * NS)
    rig.plan(now=101 * NS)
    assert rig.tasks()[0].desired_state == TaskState.SHUTDOWN


def test_a_start_first_slot_whose_new_task_fails_tries_again_beside_the_old_one() -> None:
    rig = running(1, UpdateConfig(order="start-first", failure_action="continue"))
    rig.plan(now=100 * NS)
    rig.observe(fresh(rig)[0], TaskState.FAILED, at=101 * NS)
    rig.plan(now=101 * NS)

    old, again = rig.active()
    assert (old.id, old.desired_state) == ("old0", TaskState.RUNNING)
    assert again.id in fresh(rig) and (again.desired_state, again.not_before) == (TaskState.READY, 106 * NS)


def test_a_start_first_slot_whose_new_task_may_not_be_restarted_is_given_up_and_serves_on() -> None:
    rig = running(1, UpdateConfig(order="start-first", failure_action="continue"))
    spec = rig.service().spec
    template = replace(spec.task_template, restart_policy=TaskRestartPolicy(condition="none"))
    rig.put(edits.updated_service(rig.service(), replace(spec, task_template=template), (), b"", 100 * NS))
    rig.plan(now=100 * NS)
    rig.observe(fresh(rig)[0], TaskState.FAILED, at=101 * NS)
    for now in (101, 102, 107, 200):
        rig.plan(now=now * NS)

    assert [task.id for task in rig.active()] == ["old0"] and len(rig.tasks()) == 2
    assert rig.service().update_status.state == "completed"

    rig.put(edits.updated_service(rig.service(), rig.service().spec, (), b"", 300 * NS))
    rig.plan(now=300 * NS)
    assert len(rig.active()) == 2, "asked for again, it is tried again"


def test_an_old_task_that_crashes_beside_its_starting_successor_gets_no_other() -> None:
    rig = running(1, UpdateConfig(order="start-first"))
    rig.plan(now=100 * NS)
    rig.observe("old0", TaskState.FAILED, at=101 * NS)
    rig.plan(now=101 * NS)

    assert len(rig.active()) == 1 and len(fresh(rig)) == 1


def test_it_is_complete_once_the_last_new_task_has_been_watched() -> None:
    rig = running(1)
    rig.plan(now=100 * NS)
    rig.run_all(at=101 * NS)
    rig.plan(now=101 * NS)
    rig.run_all(at=102 * NS)
    assert rig.plan(now=102 * NS).wake_at == 107 * NS
    assert rig.service().update_status.state == "updating"
    rig.plan(now=107 * NS)

    status = rig.service().update_status
    assert (status.state, status.message, status.completed_at) == ("completed", "update completed", 107 * NS)


def fail_the_new_task(rig: Rig, after: int, state: TaskState = TaskState.FAILED) -> None:
    rig.plan(now=100 * NS)
    rig.run_all(at=101 * NS)
    rig.plan(now=101 * NS)
    if after:
        rig.run_all(at=102 * NS)
    rig.observe(fresh(rig)[0], state, at=102 * NS + after)
    rig.plan(now=102 * NS + after)


@pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.REJECTED, TaskState.COMPLETE])
def test_a_failure_before_running_pauses_the_update(state: TaskState) -> None:
    rig = running(3)
    fail_the_new_task(rig, after=0, state=state)

    status = rig.service().update_status
    failed = next(task for task in rig.tasks() if task.status.state == state)
    assert status.state == "paused"
    assert status.message == f"update paused due to failure or early termination of task {failed.id}"
    rig.plan(now=10_000 * NS)
    assert rig.service().update_status.state == "paused" and len(fresh(rig)) == 1


@pytest.mark.parametrize(("after", "state"), [(5 * NS - 1, "paused"), (5 * NS, "updating")])
def test_a_failure_counts_only_within_the_monitoring_time(after: int, state: str) -> None:
    rig = running(3)
    fail_the_new_task(rig, after)

    assert rig.service().update_status.state == state


@pytest.mark.parametrize(("replicas", "state"), [(5, "updating"), (4, "updating"), (3, "paused")])
def test_failures_up_to_the_ratio_are_borne(replicas: int, state: str) -> None:
    rig = running(replicas, UpdateConfig(max_failure_ratio=0.25))
    fail_the_new_task(rig, after=0)

    assert rig.service().update_status.state == state


def test_failures_of_restarts_and_of_a_former_update_do_not_count() -> None:
    rig = running(3, UpdateConfig(max_failure_ratio=0.4))
    fail_the_new_task(rig, after=0)
    again = next(task for task in rig.active() if task.desired_state == TaskState.READY and not task.by_update)
    rig.plan(now=again.not_before)
    rig.observe(again.id, TaskState.FAILED, at=120 * NS)
    rig.plan(now=120 * NS)
    assert rig.service().update_status.state == "updating"

    spec = rig.service().spec
    rig.put(edits.updated_service(rig.service(), with_image(spec, "busybox:3"), (), b"", 130 * NS))
    rig.plan(now=130 * NS)
    assert rig.service().update_status.state == "updating"


def test_a_failure_rolls_back_to_the_previous_spec_and_a_second_one_pauses_that() -> None:
    rig = running(3, UpdateConfig(failure_action="rollback"))
    before = rig.service().previous_spec
    fail_the_new_task(rig, after=0)

    service = rig.service()
    assert service.spec == before and service.previous_spec is None and service.spec_version == 3
    assert service.update_status.state == "rollback_started"
    assert service.update_status.message.startswith("update rolled back due to failure or early termination of task")
    back = [task for task in rig.active() if task.spec_version == 3]
    assert len(back) == 1 and back[0].spec == before.task_template
    rig.run_all(at=110 * NS)
    rig.observe(back[0].id, TaskState.FAILED, at=111 * NS)
    rig.plan(now=111 * NS)

    status = rig.service().update_status
    assert status.state == "rollback_paused"
    assert status.message == f"rollback paused due to failure or early termination of task {back[0].id}"


def test_without_a_previous_spec_a_rollback_is_a_pause_that_says_why() -> None:
    rig = running(1, UpdateConfig(failure_action="rollback"))
    rig.put(replace(rig.service(), previous_spec=None))
    fail_the_new_task(rig, after=0)

    assert rig.service().update_status.state == "paused"
    assert "no previous spec" in rig.service().update_status.message


def test_a_rollback_asked_for_goes_there_and_back() -> None:
    rig = running(2, UpdateConfig(parallelism=0))
    first, second = rig.service().previous_spec, rig.service().spec
    there = edits.rolled_back_service(rig.service(), (), 200 * NS)
    assert there.spec == first and there.update_status.message == "manually requested rollback"
    assert edits.rolled_back_service(there, (), 300 * NS).spec == second

    rig.put(there)
    rig.plan(now=200 * NS)
    assert rig.service().update_status.state == "rollback_completed"
    assert [task.id for task in rig.active()] == ["old0", "old1"]


def test_scaling_is_no_update() -> None:
    service = make_service(2)
    mode = replace(service.spec.mode, replicated=replace(service.spec.mode.replicated, replicas=4))
    scaled = edits.updated_service(service, replace(service.spec, mode=mode), (), b"", NS)

    assert scaled.spec_version == service.spec_version
    rig = Rig(*NODES, scaled, make_task("a", service=service), make_task("b", slot=2, service=service))
    rig.plan(now=NS)
    assert rig.service().update_status is None and len(rig.active()) == 4


def test_a_global_service_is_updated_node_by_node() -> None:
    rig = running(None)
    rig.plan(now=100 * NS)
    assert len(fresh(rig)) == 1
    now = 100
    while rig.service().update_status.state == "updating":
        now += 1
        assert now < 200
        rig.run_all(at=now * NS)
        rig.plan(now=now * NS)

    assert sorted(task.node_id for task in rig.active()) == ["n0", "n1", "n2"]
    assert len(fresh(rig)) == 3


def changed(service: Service, **template: object) -> Service:
    spec = replace(service.spec, task_template=replace(service.spec.task_template, **template))
    return edits.updated_service(service, spec, (), b"", NS)


def test_only_what_a_task_runs_makes_it_outdated() -> None:
    service = make_service(1)
    task = make_task("a", service=service, node="n1")
    placement = service.spec.task_template.placement

    assert not is_dirty(service, task, NODES[1])
    assert is_dirty(changed(service, force_update=1), task, NODES[1])
    assert not is_dirty(changed(service, placement=replace(placement, max_replicas=5)), task, NODES[1])
    fits = changed(service, placement=replace(placement, constraints=("node.labels.zone == z1",)))
    assert not is_dirty(fits, task, NODES[1])
    assert is_dirty(fits, task, NODES[2])
    assert is_dirty(fits, task, None), "a task without a node has none that could satisfy the new constraints"
    ports = (PortConfig(target_port=80, published_port=8080, publish_mode="host"),)
    publishing = replace(service.spec, endpoint_spec=EndpointSpec(ports=ports))
    assert is_dirty(edits.updated_service(service, publishing, ports, b"", NS), task, NODES[1])


@given(
    replicas=st.integers(1, 6),
    parallelism=st.integers(0, 3),
    order=st.sampled_from(["stop-first", "start-first"]),
    delay=st.integers(0, 3),
    order_of_answers=st.randoms(use_true_random=False),
)
def test_an_update_ends_and_never_takes_down_more_than_it_may(
    replicas: int, parallelism: int, order: str, delay: int, order_of_answers: object
) -> None:
    rig = running(replicas, UpdateConfig(parallelism=parallelism, order=order, delay=delay * NS))
    now = 100 * NS
    for _ in range(200):
        rig.plan(now=now)
        serving = [
            task for task in rig.tasks()
            if task.status.state == TaskState.RUNNING and task.desired_state == TaskState.RUNNING
        ]
        at_once = parallelism or replicas
        assert len(serving) >= (replicas if order == "start-first" else max(0, replicas - at_once))
        assert len(rig.active()) <= replicas + (at_once if order == "start-first" else 0)
        if rig.service().update_status.state == "completed":
            break
        open_orders = [
            task for task in rig.tasks()
            if ((task.desired_state == TaskState.RUNNING) and task.status.state < TaskState.RUNNING)
            or (task.desired_state > TaskState.RUNNING and task.status.state <= TaskState.RUNNING)
        ]
        if open_orders:
            task = order_of_answers.choice(open_orders)
            up = task.desired_state == TaskState.RUNNING
            rig.observe(task.id, TaskState.RUNNING if up else TaskState.SHUTDOWN, at=now)
        now += NS // 2

    assert rig.service().update_status.state == "completed"
    assert len(fresh(rig)) == replicas == len(rig.active())
