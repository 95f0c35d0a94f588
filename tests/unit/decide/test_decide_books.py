"""Nodes, history, ports and reports: the smaller decisions."""

from __future__ import annotations

import pytest
from decide_make import GIB, carry_out, make_node, make_service, make_state, make_task, make_template
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.cluster import Cluster, OrchestrationSpec, SwarmSpec
from swarmlet.model.service import EndpointSpec, PortConfig, Service, ServiceSpec, TaskRestartPolicy, TaskSpec
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.task import TaskStatus
from swarmlet.model.times import NS
from swarmlet_manager.decide.allocate import FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT, plan_ports
from swarmlet_manager.decide.nodes import plan_node
from swarmlet_manager.decide.reaper import plan_reap
from swarmlet_manager.decide.status import accept_report
from swarmlet_manager.state import Put, State

DAY = 24 * 3600 * NS
DESIRED = [TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]
OBSERVED = [state for state in TaskState if state != TaskState.REMOVE]


# Nodes


def test_tasks_of_a_removed_node_are_orphaned_at_once_and_ended_ones_left_as_they_are() -> None:
    state = make_state(make_task("a"), make_task("b", state=TaskState.FAILED), make_task("c", node="n2"))
    plan = plan_node(state, "n1", NS)

    assert [(op.record.id, op.record.status.state) for op in plan.ops] == [("a", TaskState.ORPHANED)]
    carry_out(state, plan)
    assert plan_node(state, "n1", NS).ops == ()


def test_tasks_of_a_node_that_is_down_are_orphaned_after_a_day() -> None:
    node = replace(make_node("n1", state=NodeState.DOWN), state_changed_at=5 * NS)
    state = make_state(node, make_task("a"))

    early = plan_node(state, "n1", DAY)
    assert early.ops == () and early.wake_at == DAY + 5 * NS
    assert [op.record.status.state for op in plan_node(state, "n1", DAY + 5 * NS).ops] == [TaskState.ORPHANED]


def test_a_task_whose_constraints_no_longer_hold_is_rejected() -> None:
    service = make_service(template=make_template(constraints=["node.labels.zone == a"]))
    state = make_state(make_node("n1", labels={"zone": "b"}), service, make_task("a", service=service))
    (op,) = plan_node(state, "n1", NS).ops

    status = op.record.status
    assert (status.state, status.message, status.err) == (
        TaskState.REJECTED,
        "task rejected by constraint enforcer",
        "assigned node no longer meets constraints",
    )


@pytest.mark.parametrize("availability", [Availability.PAUSE, Availability.DRAIN])
def test_only_active_nodes_have_their_tasks_checked(availability: Availability) -> None:
    service = make_service(template=make_template(constraints=["node.labels.zone == a"]))
    state = make_state(make_node("n1", availability=availability), service, make_task("a", service=service))

    assert plan_node(state, "n1", NS).ops == ()


@pytest.mark.parametrize("template", [make_template(memory=2 * GIB), make_template(cpus=2)], ids=["memory", "cpus"])
def test_a_node_that_has_shrunk_loses_its_youngest_reservations_and_no_task_that_reserves_nothing(
    template: TaskSpec,
) -> None:
    service = make_service(template=template)
    free = make_service(ident="s2")
    tasks = [make_task(f"t{number}", service=service, created=number) for number in range(3)]
    node = make_node("n1", cpus=5, memory=5 * GIB)
    state = make_state(node, service, free, *tasks, make_task("z", service=free, created=9))

    assert [op.record.id for op in plan_node(state, "n1", NS).ops] == ["t2"]


def test_a_node_that_has_not_described_itself_yet_costs_no_task_its_place() -> None:
    service = make_service(template=make_template(memory=2 * GIB))
    state = make_state(make_node("n1", cpus=0, memory=0), service, make_task("a", service=service))

    assert plan_node(state, "n1", NS).ops == ()


# History


def slot_history(state: State, count: int, service: Service, live: bool = True) -> None:
    for number in range(count):
        newest = live and number == count - 1
        state.apply(
            Put(
                make_task(
                    f"t{number}",
                    service=service,
                    created=number * NS,
                    state=TaskState.RUNNING if newest else TaskState.FAILED,
                    desired=TaskState.RUNNING if newest else TaskState.SHUTDOWN,
                )
            )
        )


def left(state: State) -> list[str]:
    return sorted(state.tasks)


def test_five_tasks_are_kept_per_slot_the_running_one_included() -> None:
    service = make_service()
    state = make_state(make_node("n1"), service)
    slot_history(state, 8, service)
    carry_out(state, plan_reap(state, NS))

    assert left(state) == ["t3", "t4", "t5", "t6", "t7"]
    assert plan_reap(state, NS).ops == ()


@pytest.mark.parametrize(("retention", "kept"), [(0, 1), (1, 1), (3, 3), (-1, 8)])
def test_the_cluster_sets_how_many_are_kept(retention: int, kept: int) -> None:
    service = make_service()
    spec = SwarmSpec(orchestration=OrchestrationSpec(task_history_retention_limit=retention))
    state = make_state(make_node("n1"), service)
    state.apply(Put(Cluster(id="c", spec=spec)))
    slot_history(state, 8, service)
    carry_out(state, plan_reap(state, NS))

    assert len(left(state)) == kept and "t7" in left(state)


def test_the_last_task_of_a_finished_slot_is_kept_even_if_no_history_is() -> None:
    service = make_service()
    state = make_state(make_node("n1"), service)
    slot_history(state, 3, service, live=False)
    carry_out(state, plan_reap(state, NS, retention=0))

    assert left(state) == ["t2"]


def test_attempts_that_are_counted_are_kept() -> None:
    service = make_service(template=make_template(restart=TaskRestartPolicy(max_attempts=7)))
    state = make_state(make_node("n1"), service)
    slot_history(state, 12, service)
    carry_out(state, plan_reap(state, NS, retention=1))

    assert len(left(state)) == 8


def test_tasks_told_to_go_are_forgotten_once_they_have_ended_or_if_no_agent_has_them() -> None:
    service = make_service()
    state = make_state(
        make_node("n1"),
        service,
        make_task("runs", service=service, desired=TaskState.REMOVE),
        make_task("ended", service=service, desired=TaskState.REMOVE, state=TaskState.SHUTDOWN),
        make_task("never", service=service, desired=TaskState.SHUTDOWN, state=TaskState.PENDING, node=""),
    )
    carry_out(state, plan_reap(state, NS))

    assert left(state) == ["runs"]


def test_orphans_of_services_that_are_gone_and_global_tasks_of_nodes_that_left_are_forgotten() -> None:
    service = make_service(None, ident="global")
    orphan = make_task("orphan", state=TaskState.ORPHANED, desired=TaskState.REMOVE)
    ended = {"state": TaskState.ORPHANED, "desired": TaskState.SHUTDOWN, "slot": 0, "service": service}
    state = make_state(
        make_node("n1"),
        service,
        orphan,
        make_task("stays", node="n1", **ended),
        make_task("goes", node="left", **ended),
    )
    carry_out(state, plan_reap(state, NS))

    assert left(state) == ["stays"]


@given(
    st.lists(st.tuples(st.integers(1, 2), st.sampled_from(OBSERVED), st.sampled_from(DESIRED)), max_size=14),
    st.integers(-1, 4),
)
def test_what_runs_or_is_to_run_is_never_forgotten(
    drawn: list[tuple[int, TaskState, TaskState]], retention: int
) -> None:
    service = make_service()
    tasks = [
        make_task(f"t{n}", service=service, slot=slot, state=state, desired=desired, created=n)
        for n, (slot, state, desired) in enumerate(drawn)
    ]
    state = make_state(make_node("n1"), service, *tasks)
    carry_out(state, plan_reap(state, NS, retention))

    for task in tasks:
        assigned = TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING
        if assigned or (task.desired_state <= TaskState.RUNNING):
            assert task.id in state.tasks
    assert plan_reap(state, NS, retention).ops == ()


# Ports


def publishing(*ports: PortConfig, name: str = "web") -> ServiceSpec:
    return ServiceSpec(name=name, endpoint_spec=EndpointSpec(ports=ports))


def test_an_ingress_port_belongs_to_one_service_per_protocol() -> None:
    holder = replace(make_service(ident="abc", name="first"), ports=(PortConfig(target_port=80, published_port=80),))
    state = make_state(holder)

    with pytest.raises(InvalidArgument) as err:
        plan_ports(state, "", publishing(PortConfig(target_port=8080, published_port=80)))
    refused = "rpc error: code = InvalidArgument desc = port '80' is already in use by service 'first' (abc) as "
    assert str(err.value) == refused + "an ingress port"
    udp = PortConfig(target_port=53, published_port=80, protocol="udp")
    host = PortConfig(target_port=8080, published_port=80, publish_mode="host")
    assert plan_ports(state, "", publishing(udp)) == (udp,)
    assert plan_ports(state, "abc", publishing(*holder.ports)) == holder.ports
    with pytest.raises(InvalidArgument, match="as an ingress port"):
        plan_ports(state, "", publishing(host))
    # Ports of the hosts may be several services': the scheduler keeps their tasks apart.
    state.apply(Put(replace(holder, ports=(host,))))
    assert plan_ports(state, "", publishing(host)) == (host,)
    with pytest.raises(InvalidArgument) as err:
        plan_ports(state, "", publishing(PortConfig(target_port=8080, published_port=80)))
    assert str(err.value) == refused + "a host-published port"
    # The ports of a service that is being removed are free.
    state.apply(Put(replace(holder, pending_delete=True)))
    assert plan_ports(state, "", publishing(PortConfig(target_port=8080, published_port=80)))


def test_one_port_on_two_addresses_is_two_services() -> None:
    port = PortConfig(target_port=80, published_port=80)
    first = replace(make_service(ident="abc", name="first"), ports=(replace(port, host_ip="192.0.2.1"),))
    state = make_state(first)
    spec = publishing(port)

    other = replace(spec, labels={"swarmlet.publish.host-ip": "192.0.2.2"})
    assert plan_ports(state, "", other) == (replace(port, host_ip="192.0.2.2"),)
    for taken in (spec, replace(spec, labels={"swarmlet.publish.80.host-ip": "192.0.2.1"})):
        with pytest.raises(InvalidArgument, match="already in use by service 'first'"):
            plan_ports(state, "", taken)


def test_open_ports_get_the_lowest_free_number_and_keep_it() -> None:
    wanted = publishing(PortConfig(target_port=80), PortConfig(target_port=81), PortConfig(published_port=30_001))
    chosen = plan_ports(make_state(), "", wanted)
    assert [port.published_port for port in chosen] == [30_000, 30_002, 30_001]

    service = replace(make_service(ident="s1"), ports=chosen)
    fewer = plan_ports(make_state(service), "s1", publishing(PortConfig(target_port=81)))
    assert [port.published_port for port in fewer] == [30_002]


def test_running_out_of_ports_is_said() -> None:
    ports = tuple(PortConfig(target_port=1, published_port=n) for n in range(FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT + 1))
    state = make_state(replace(make_service(ident="hog"), ports=ports))

    with pytest.raises(InvalidArgument, match="no free tcp port between 30000 and 32767 is left"):
        plan_ports(state, "", publishing(PortConfig(target_port=80)))


# Reports


@given(
    stored=st.sampled_from(OBSERVED),
    reported=st.sampled_from(list(TaskState)),
    node=st.sampled_from(["n1", "other"]),
    stamp=st.integers(0, 10),
)
def test_a_report_only_moves_its_own_nodes_task_forward_and_never_out_of_an_end(
    stored: TaskState, reported: TaskState, node: str, stamp: int
) -> None:
    task = make_task("a", state=stored)
    taken = accept_report(task, node, TaskStatus(state=reported, at=stamp, message="m"), now=99)

    if taken is None:
        return
    assert node == "n1" and reported >= stored >= TaskState.ASSIGNED
    assert reported not in (TaskState.REMOVE, TaskState.ORPHANED)
    assert not stored.is_terminal or reported == stored
    assert taken.status.state == reported and taken.updated_at == 99
    assert accept_report(taken, node, TaskStatus(state=reported, at=stamp, message="m"), now=100) is None


def test_times_that_decide_are_the_managers_whatever_the_agents_clock_says() -> None:
    task = make_task("a", state=TaskState.STARTING)
    far = 10**18
    running = accept_report(task, "n1", TaskStatus(state=TaskState.RUNNING, at=far, running_at=far, pid=5), now=7)
    assert running is not None and (running.status.running_at, running.status.applied_at) == (7, 7)
    failed = accept_report(running, "n1", TaskStatus(state=TaskState.FAILED, at=far, exit_code=1), now=9)
    assert failed is not None
    assert (failed.status.running_at, failed.status.applied_at, failed.status.at) == (7, 9, far)


def test_an_agent_that_has_come_back_does_not_make_a_task_younger() -> None:
    task = replace(make_task("a"), status=TaskStatus(state=TaskState.RUNNING, at=5, running_at=6, applied_at=6, pid=1))
    again = accept_report(task, "n1", TaskStatus(state=TaskState.RUNNING, at=70, running_at=70, pid=1), now=80)
    moved = accept_report(task, "n1", TaskStatus(state=TaskState.RUNNING, at=70, running_at=70, pid=2), now=80)

    assert again is None
    assert moved is not None and (moved.status.at, moved.status.pid) == (5, 2)


def test_a_container_id_once_known_is_kept() -> None:
    status = TaskStatus(state=TaskState.RUNNING, container_id="c1")
    task = replace(make_task("a"), status=status)
    ended = accept_report(task, "n1", TaskStatus(state=TaskState.COMPLETE), now=1)

    assert ended is not None and ended.status.container_id == "c1"
