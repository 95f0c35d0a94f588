"""Slots, restarts and the end of services: what one plan does, and that a second one has nothing left."""

from __future__ import annotations

import pytest
from decide_make import Rig, id_maker, make_node, make_service, make_state, make_task, make_template
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.service import Service, TaskRestartPolicy
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet_manager.decide.orchestrate import plan_service
from swarmlet_manager.state import Delete, Put

NODES = [make_node(f"n{number}") for number in range(3)]
OBSERVED = [state for state in TaskState if state != TaskState.REMOVE]
DESIRED = [TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]


def with_count(service: Service, count: int) -> Service:
    mode = replace(service.spec.mode, replicated=replace(service.spec.mode.replicated, replicas=count))
    return replace(service, spec=replace(service.spec, mode=mode))


def test_a_new_service_gets_one_pending_task_in_each_slot_from_one() -> None:
    rig = Rig(*NODES, make_service(3))
    rig.plan()

    assert [(task.slot, task.desired_state, task.status.state) for task in rig.tasks()] == [
        (slot, TaskState.RUNNING, TaskState.PENDING) for slot in (1, 2, 3)
    ]
    assert {task.name for task in rig.tasks()} == {f"web.{task.slot}.{task.id}" for task in rig.tasks()}


def test_scaling_up_fills_the_lowest_free_slots() -> None:
    service = make_service(4)
    rig = Rig(*NODES, service, make_task("a", slot=2, service=service), make_task("b", slot=5, service=service))
    rig.plan()

    assert [task.slot for task in rig.tasks()] == [1, 2, 3, 5]


def test_scaling_down_takes_the_later_copies_on_a_node_and_then_high_slots() -> None:
    service = make_service(2)
    tasks = [
        make_task("a", slot=1, node="n0", service=service),
        make_task("b", slot=2, node="n0", service=service),
        make_task("c", slot=3, node="n0", service=service),
        make_task("d", slot=4, node="n1", service=service),
    ]
    rig = Rig(*NODES, service, *tasks)
    rig.plan()

    assert [task.slot for task in rig.active()] == [1, 4]
    assert {task.desired_state for task in rig.tasks() if task.slot in (2, 3)} == {TaskState.REMOVE}


def test_scaling_down_takes_slots_without_a_node_first_and_forgets_those_at_once() -> None:
    service = make_service(2)
    tasks = [
        make_task("a", slot=1, node="", state=TaskState.PENDING, service=service),
        make_task("b", slot=2, node="n0", service=service),
        make_task("c", slot=3, node="n1", service=service),
    ]
    rig = Rig(*NODES, service, *tasks)
    rig.plan()

    assert [task.id for task in rig.tasks()] == ["b", "c"]


def test_a_crashed_task_is_shut_down_and_its_successor_waits_for_the_delay() -> None:
    rig = Rig(*NODES, make_service(1), make_task("old", service=make_service(1)))
    rig.observe("old", TaskState.FAILED, at=10 * NS)
    plan = rig.plan(now=10 * NS)

    old, new = rig.tasks()
    assert old.desired_state == TaskState.SHUTDOWN
    assert (new.desired_state, new.not_before, plan.wake_at) == (TaskState.READY, 15 * NS, 15 * NS)

    assert rig.plan(now=15 * NS - 1).wake_at == 15 * NS
    rig.plan(now=15 * NS)
    assert rig.tasks()[1].desired_state == TaskState.RUNNING


def test_a_successor_that_is_rejected_while_it_waits_is_followed_no_earlier_than_its_own_turn() -> None:
    rig = Rig(*NODES, make_service(1), make_task("old", service=make_service(1)))
    rig.observe("old", TaskState.REJECTED, at=10 * NS)
    rig.plan(now=10 * NS)
    second = rig.tasks()[1]
    rig.observe(second.id, TaskState.REJECTED, at=11 * NS)

    assert rig.plan(now=11 * NS).wake_at == 15 * NS
    assert len(rig.tasks()) == 2

    rig.plan(now=15 * NS)
    assert [task.desired_state for task in rig.tasks()] == [TaskState.SHUTDOWN, TaskState.SHUTDOWN, TaskState.READY]
    assert rig.tasks()[2].not_before == 20 * NS


@pytest.mark.parametrize(
    "lost",
    [None, make_node("n1", state=NodeState.DOWN)],
    ids=["removed", "down"],
)
def test_a_task_whose_node_is_lost_is_replaced_at_once(lost: object) -> None:
    service = make_service(1)
    rig = Rig(make_node("n0"), service, make_task("old", node="n1", service=service))
    if lost is not None:
        rig.put(lost)
    rig.plan(now=NS)

    old, new = rig.tasks()
    assert (old.desired_state, new.desired_state) == (TaskState.SHUTDOWN, TaskState.RUNNING)


def test_a_task_on_a_drained_node_is_replaced_once_it_has_stopped_or_a_minute_later() -> None:
    service = make_service(1)
    drained = make_node("n1", availability=Availability.DRAIN)
    rig = Rig(make_node("n0"), drained, service, make_task("old", node="n1", service=service))
    plan = rig.plan(now=NS)
    assert rig.tasks()[1].desired_state == TaskState.READY and plan.wake_at == 61 * NS

    impatient = Rig(*rig.state.nodes.values(), *rig.state.services.values(), *rig.tasks())
    impatient.plan(now=61 * NS)
    assert impatient.tasks()[1].desired_state == TaskState.RUNNING

    rig.observe("old", TaskState.SHUTDOWN, at=3 * NS)
    rig.plan(now=3 * NS)
    assert rig.tasks()[1].desired_state == TaskState.RUNNING


@pytest.mark.parametrize(
    ("condition", "ended", "restarted"),
    [
        ("any", TaskState.COMPLETE, True),
        ("any", TaskState.FAILED, True),
        ("on-failure", TaskState.COMPLETE, False),
        ("on-failure", TaskState.FAILED, True),
        ("on-failure", TaskState.REJECTED, True),
        ("none", TaskState.FAILED, False),
        ("none", TaskState.COMPLETE, False),
    ],
)
def test_the_restart_condition_decides_who_is_followed(condition: str, ended: TaskState, restarted: bool) -> None:
    service = make_service(1, make_template(restart=TaskRestartPolicy(condition=condition)))
    rig = Rig(*NODES, service, make_task("old", service=service))
    rig.observe("old", ended, at=NS)
    rig.plan(now=NS)

    assert len(rig.active()) == restarted
    assert rig.plan(now=3600 * NS).ops == () or restarted


def attempts(policy: TaskRestartPolicy, lasts: int, most: int = 12) -> int:
    """How many tasks a slot has gone through when each fails `lasts` ns after its start."""
    rig = Rig(*NODES, make_service(1, make_template(restart=policy)))
    now = 0
    for _ in range(most):
        plan = rig.plan(now=now)
        if not rig.active():
            break
        while rig.active()[0].desired_state != TaskState.RUNNING:
            now = plan.wake_at
            plan = rig.plan(now=now)
        rig.observe(rig.active()[0].id, TaskState.RUNNING, at=now)
        now += lasts
        rig.observe(rig.active()[0].id, TaskState.FAILED, at=now)
    return len(rig.tasks())


def test_a_slot_that_has_finished_stays_so_whatever_was_called_off_beside_it() -> None:
    service = make_service(1, make_template(restart=TaskRestartPolicy(condition="on-failure")))
    rig = Rig(
        *NODES,
        service,
        make_task("done", service=service, state=TaskState.COMPLETE),
        make_task("never", service=service, state=TaskState.PENDING, desired=TaskState.SHUTDOWN, node="", created=NS),
    )
    rig.plan(now=2 * NS)

    assert rig.active() == []


def test_attempts_are_limited() -> None:
    assert attempts(TaskRestartPolicy(max_attempts=3, delay=NS), lasts=NS) == 4
    assert attempts(TaskRestartPolicy(max_attempts=0, delay=NS), lasts=NS, most=9) == 9


def test_attempts_outside_the_window_do_not_count() -> None:
    slow = TaskRestartPolicy(max_attempts=3, delay=0, window=10 * NS)

    assert attempts(slow, lasts=6 * NS, most=12) == 12
    assert attempts(slow, lasts=2 * NS, most=12) == 4


def test_a_global_service_has_one_task_on_each_node_that_fits() -> None:
    nodes = [
        make_node("ok"),
        make_node("paused", availability=Availability.PAUSE),
        make_node("drained", availability=Availability.DRAIN),
        make_node("down", state=NodeState.DOWN),
        make_node("other", labels={"zone": "z9"}),
    ]
    rig = Rig(*nodes, make_service(None, make_template(constraints=["node.labels.zone != z9"])))
    rig.plan()

    assert [(task.node_id, task.slot) for task in rig.tasks()] == [("ok", 0)]


def test_a_global_task_stays_on_a_paused_node_and_leaves_one_that_stops_fitting() -> None:
    service = make_service(None, make_template(constraints=["node.labels.zone != z9"]))
    nodes = ["paused", "drained", "down", "other"]
    rig = Rig(
        make_node("paused", availability=Availability.PAUSE),
        make_node("drained", availability=Availability.DRAIN),
        make_node("down", state=NodeState.DOWN),
        make_node("other", labels={"zone": "z9"}),
        service,
        *(make_task(f"t-{node}", node=node, slot=0, service=service) for node in nodes),
    )
    rig.plan()

    assert [task.node_id for task in rig.active()] == ["paused"]
    assert len(rig.tasks()) == 4


def test_a_removed_service_goes_with_the_last_of_its_tasks() -> None:
    service = make_service(2)
    rig = Rig(*NODES, service, make_task("a", service=service), make_task("b", slot=2, node="n2", service=service))
    rig.put(replace(service, pending_delete=True))
    rig.plan()
    assert {task.desired_state for task in rig.tasks()} == {TaskState.REMOVE} and "s1" in rig.state.services

    rig.observe("a", TaskState.SHUTDOWN, at=NS)
    rig.plan()
    assert [task.id for task in rig.tasks()] == ["b"]
    rig.observe("b", TaskState.SHUTDOWN, at=NS)
    rig.plan()
    assert not rig.tasks() and not rig.state.services


def test_a_removed_service_does_not_wait_for_a_lost_node() -> None:
    service = replace(make_service(1), pending_delete=True)
    rig = Rig(make_node("n1", state=NodeState.DOWN), service, make_task("a", service=service))
    rig.plan()

    assert not rig.state.services
    assert rig.tasks()[0].desired_state == TaskState.REMOVE
    assert rig.plan().ops == ()


def test_writes_carry_the_versions_they_were_decided_on() -> None:
    service = replace(make_service(2), version=7)
    state = make_state(*NODES, service, replace(make_task("a", service=service, state=TaskState.FAILED), version=9))
    plan = plan_service(state, "s1", NS, id_maker())

    versions = {op.record.id: op.record.version for op in plan.ops if isinstance(op, Put)}
    assert versions["a"] == 9 and all(version == 0 for ident, version in versions.items() if ident != "a")
    assert not any(isinstance(op, Delete) for op in plan.ops)


tasks = st.builds(
    lambda slot, node, state, desired, created: (slot, node, state, desired, created),
    st.integers(1, 6),
    st.sampled_from(["n0", "n1", "n2", "gone"]),
    st.sampled_from(OBSERVED),
    st.sampled_from(DESIRED),
    st.integers(0, 20),
)


def build(service: Service, drawn: list[tuple[int, str, TaskState, TaskState, int]]) -> list[Task]:
    return [
        make_task(
            f"t{number}",
            service=service,
            slot=0 if service.spec.mode.global_ else slot,
            node="" if state < TaskState.ASSIGNED and not service.spec.mode.global_ else node,
            state=state,
            desired=desired,
            created=created * NS,
        )
        for number, (slot, node, state, desired, created) in enumerate(drawn)
    ]


nodes = st.lists(
    st.tuples(st.sampled_from(list(NodeState)), st.sampled_from(list(Availability))), min_size=3, max_size=3
)
policies = st.none() | st.builds(
    TaskRestartPolicy,
    condition=st.sampled_from(["", "none", "on-failure", "any"]),
    delay=st.none() | st.integers(0, 10 * NS),
    max_attempts=st.none() | st.integers(0, 3),
    window=st.none() | st.integers(0, 30 * NS),
)


@settings(max_examples=400)
@given(
    replicas=st.none() | st.integers(0, 6),
    drawn=st.lists(tasks, max_size=12),
    hosts=nodes,
    policy=policies,
    now=st.integers(20, 120),
)
def test_whatever_is_found_one_pass_is_enough_and_no_slot_is_held_twice_or_beyond_the_count(
    replicas: int | None,
    drawn: list[tuple[int, str, TaskState, TaskState, int]],
    hosts: list[tuple[NodeState, Availability]],
    policy: TaskRestartPolicy | None,
    now: int,
) -> None:
    service = make_service(replicas, make_template(restart=policy))
    found = [make_node(f"n{number}", state=s, availability=a) for number, (s, a) in enumerate(hosts)]
    rig = Rig(*found, service, *build(service, drawn))
    plan = rig.plan(now=now * NS)  # checks the second pass

    keys = [task.slot_key for task in rig.active()]
    assert len(set(keys)) == len(keys)
    if replicas is not None:
        assert len(keys) <= replicas
    assert plan.wake_at is None or plan.wake_at > now * NS
    for task in rig.active():
        node = rig.state.nodes.get(task.node_id)
        lost = node is None or node.state is NodeState.DOWN or node.spec.availability is Availability.DRAIN
        assert not (task.node_id and lost), "a task is left to a node that cannot run it"


@given(before=st.integers(0, 8), after=st.integers(0, 8))
def test_any_scaling_ends_at_the_count_with_distinct_slots(before: int, after: int) -> None:
    rig = Rig(*NODES, make_service(before))
    rig.plan()
    rig.run_all(at=NS)
    rig.put(with_count(rig.service(), after))
    rig.plan(now=2 * NS)

    assert len(rig.active()) == after
    assert len({task.slot for task in rig.active()}) == after
