"""The scheduler: filters and their words, order, and that nothing is ever promised twice."""

from __future__ import annotations

from collections import Counter

import pytest
from decide_make import GIB, carry_out, make_node, make_service, make_state, make_task, make_template
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.common import Driver, Mount, Platform, VolumeOptions
from swarmlet.model.node import EngineDescription, EnginePlugin, Node
from swarmlet.model.service import ContainerSpec, PlacementPreference, PortConfig, Service, SpreadOver
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet_manager.decide import constraints
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.decide.resources import capacity_of, demand_of, host_ports
from swarmlet_manager.decide.schedule import Scheduler
from swarmlet_manager.state import Delete, Put, State

WEB_PORT = PortConfig(target_port=80, published_port=8080, publish_mode="host")


def pending(service: Service, count: int, prefix: str = "", node: str = "", **more: object) -> list[Task]:
    return [
        make_task(
            f"{prefix or service.id}-{number:03}",
            service=service,
            slot=0 if node else number + 1,
            node=node,
            state=TaskState.PENDING,
            **more,
        )
        for number in range(count)
    ]


def run(scheduler: Scheduler, state: State, now: int = 0) -> Plan:
    """Decide, write, and tell the scheduler, as the leader's loop does."""
    plan = scheduler.schedule(now)
    scheduler.apply(carry_out(state, plan))
    return plan


def tell(scheduler: Scheduler, state: State, *records: Node | Task) -> None:
    scheduler.apply([state.apply(Put(record)) for record in records])


def per_node(state: State, service_id: str = "s1") -> Counter[str]:
    return Counter(task.node_id for task in state.tasks_of_service(service_id) if task.node_id)


def reasons(state: State) -> set[str]:
    return {task.status.err for task in state.tasks.values() if task.status.state == TaskState.PENDING}


def test_a_pending_task_is_assigned_with_swarmkits_message() -> None:
    state = make_state(make_node("n1"), *pending(make_service(1), 1))
    run(Scheduler(state), state, now=7)

    task = next(iter(state.tasks.values()))
    assert (task.node_id, task.status.state, task.status.message, task.status.err, task.status.at) == (
        "n1",
        TaskState.ASSIGNED,
        "scheduler assigned task to node",
        "",
        7,
    )


def test_a_service_is_spread_before_the_number_of_other_tasks_counts() -> None:
    busy = make_service(ident="busy")
    others = [make_task(f"b{number}", service=busy, slot=number, node="n1") for number in range(5)]
    state = make_state(make_node("n1"), make_node("n2"), *others, *pending(make_service(), 3))
    run(Scheduler(state), state)

    assert per_node(state) == {"n1": 1, "n2": 2}


def test_a_service_that_grows_goes_first_where_it_has_the_fewest_tasks() -> None:
    service, busy = make_service(), make_service(ident="busy")
    others = [make_task(f"b{number}", service=busy, slot=number, node=f"n{1 + number % 2}") for number in range(8)]
    mine = [make_task(f"m{number}", service=service, slot=10 + number, node="n3") for number in range(2)]
    nodes = [make_node(f"n{number}") for number in (1, 2, 3)]
    state = make_state(*nodes, *others, *mine, *pending(service, 4))
    run(Scheduler(state), state)

    assert per_node(state) == {"n1": 2, "n2": 2, "n3": 2}


def test_resources_already_given_away_by_services_scheduled_earlier_are_not_given_again() -> None:
    first = make_service(ident="s1", template=make_template(cpus=3))
    second = make_service(ident="s2", template=make_template(cpus=3))
    state = make_state(make_node("n1", cpus=4), *pending(first, 1), *pending(second, 1))
    run(Scheduler(state), state)

    assert per_node(state, "s1") == {"n1": 1} and not per_node(state, "s2")
    assert reasons(state) == {"no suitable node (insufficient resources on 1 node)"}


def test_a_task_being_stopped_still_holds_its_reservation_and_frees_it_when_it_has_ended() -> None:
    service = make_service(template=make_template(memory=6 * GIB))
    old = make_task("old", service=service, node="n1", desired=TaskState.SHUTDOWN)
    state = make_state(make_node("n1"), old, *pending(service, 1))
    scheduler = Scheduler(state)
    run(scheduler, state)
    assert reasons(state) == {"no suitable node (insufficient resources on 1 node)"}

    tell(scheduler, state, replace(old, status=replace(old.status, state=TaskState.SHUTDOWN)))
    run(scheduler, state, now=NS)
    assert reasons(state) == set()


@pytest.mark.parametrize(
    ("count", "node", "service", "reason"),
    [
        (1, make_node("n", state=NodeState.DOWN), make_service(), "1 node not available for new tasks"),
        (2, make_node("n", availability=Availability.PAUSE), make_service(), "2 nodes not available for new tasks"),
        (2, make_node("n", cpus=1), make_service(template=make_template(cpus=2)), "insufficient resources on 2 nodes"),
        (
            1,
            make_node("n"),
            make_service(template=make_template(constraints=["node.role == manager"])),
            "scheduling constraints not satisfied on 1 node",
        ),
        (
            2,
            make_node("n"),
            make_service(template=make_template(constraints=["node.hostname == x"])),
            "scheduling constraints not satisfied on 2 nodes",
        ),
        (
            1,
            make_node("n", arch="aarch64"),
            make_service(
                template=replace(
                    make_template(),
                    placement=replace(
                        make_template().placement, platforms=(Platform(os="linux", architecture="amd64"),)
                    ),
                )
            ),
            "unsupported platform on 1 node",
        ),
        (
            1,
            make_node("n"),
            make_service(
                template=replace(
                    make_template(),
                    container_spec=ContainerSpec(
                        image="x",
                        mounts=(Mount(target="/d", volume_options=VolumeOptions(driver_config=Driver(name="nfs"))),),
                    ),
                )
            ),
            "missing plugin on 1 node",
        ),
    ],
)
def test_a_task_that_fits_nowhere_says_which_filter_refused_how_many_nodes(
    count: int, node: Node, service: Service, reason: str
) -> None:
    nodes = [replace(node, id=f"n{number}") for number in range(count)]
    state = make_state(*nodes, *pending(service, 2))
    scheduler = Scheduler(state)
    run(scheduler, state)

    assert reasons(state) == {f"no suitable node ({reason})"}
    assert run(scheduler, state, now=60 * NS).ops == (), "the same reason is written once"


def test_reasons_are_listed_by_the_number_of_nodes_each_filter_refused() -> None:
    nodes = [make_node(f"n{n}", cpus=1) for n in range(2)] + [make_node("other", availability=Availability.DRAIN)]
    state = make_state(*nodes, *pending(make_service(template=make_template(cpus=2)), 1))
    run(Scheduler(state), state)

    assert reasons(state) == {
        "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)"
    }


def test_without_any_node_there_is_nothing_more_to_say() -> None:
    state = make_state(*pending(make_service(), 1))
    run(Scheduler(state), state)

    assert reasons(state) == {"no suitable node"}


def test_the_most_replicas_per_node_are_respected() -> None:
    service = make_service(template=make_template(max_replicas=2))
    state = make_state(make_node("n1"), make_node("n2"), *pending(service, 5))
    run(Scheduler(state), state)

    assert per_node(state) == {"n1": 2, "n2": 2}
    assert reasons(state) == {"no suitable node (max replicas per node limit exceed)"}


def test_a_host_port_is_given_once_per_node_and_protocol() -> None:
    web = make_service(ident="s1", ports=(WEB_PORT,))
    dns = make_service(ident="s2", ports=(replace(WEB_PORT, protocol="udp"),))
    also_web = make_service(ident="s3", ports=(WEB_PORT,))
    state = make_state(make_node("n1"), *pending(web, 1), *pending(dns, 1), *pending(also_web, 1))
    run(Scheduler(state), state)

    assert per_node(state, "s1") == {"n1": 1} and per_node(state, "s2") == {"n1": 1}
    assert reasons(state) == {"no suitable node (host-mode port already in use on 1 node)"}


def test_a_log_driver_must_be_there_only_where_nodes_say_what_they_have() -> None:
    template = replace(make_template(), log_driver=Driver(name="journald"))
    quiet = make_node("quiet")
    plugins = (EnginePlugin(type="Log", name="json-file"),)
    other = replace(
        make_node("other"), description=replace(quiet.description, engine=EngineDescription(plugins=plugins))
    )
    state = make_state(quiet, other, *pending(make_service(template=template), 4))
    run(Scheduler(state), state)

    assert per_node(state) == {"quiet": 4}


def test_global_tasks_are_checked_on_their_own_node() -> None:
    service = make_service(None, make_template(cpus=2))
    state = make_state(
        make_node("big", cpus=4),
        make_node("small", cpus=1),
        *pending(service, 1, prefix="a", node="big"),
        *pending(service, 1, prefix="b", node="small"),
    )
    scheduler = Scheduler(state)
    run(scheduler, state)

    assert state.tasks["a-000"].status.state == TaskState.ASSIGNED
    assert state.tasks["a-000"].status.message == "scheduler confirmed task can run on preassigned node"
    assert state.tasks["b-000"].status.err == "insufficient resources on 1 node"

    tell(scheduler, state, make_node("small", cpus=2))
    run(scheduler, state, now=NS)
    assert state.tasks["b-000"].status.state == TaskState.ASSIGNED and state.tasks["b-000"].status.err == ""


def test_a_preference_equalises_the_branches_however_many_nodes_they_have() -> None:
    template = make_template()
    spread = PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone"))
    template = replace(template, placement=replace(template.placement, preferences=(spread,)))
    nodes = [make_node(f"a{n}", labels={"zone": "a"}) for n in range(4)] + [make_node("b", labels={"zone": "b"})]
    state = make_state(*nodes, make_node("none"), *pending(make_service(template=template), 9))
    run(Scheduler(state), state)

    placed = per_node(state)
    assert (placed["b"], placed["none"], sum(placed[f"a{n}"] for n in range(4))) == (3, 3, 3)


def test_a_full_branch_leaves_the_rest_to_the_others() -> None:
    template = make_template(cpus=1)
    spread = PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone"))
    template = replace(template, placement=replace(template.placement, preferences=(spread,)))
    nodes = [make_node("a", labels={"zone": "a"}, cpus=1), make_node("b", labels={"zone": "b"}, cpus=9)]
    state = make_state(*nodes, *pending(make_service(template=template), 6))
    run(Scheduler(state), state)

    assert per_node(state) == {"a": 1, "b": 5}


def test_a_node_on_which_a_service_keeps_failing_comes_last_for_a_while() -> None:
    service = make_service()
    state = make_state(make_node("bad"), make_node("good"), make_task("there", service=service, slot=9, node="good"))
    scheduler = Scheduler(state)
    for number in range(5):
        failing = make_task(f"f{number}", service=service, slot=1, node="bad", state=TaskState.STARTING)
        tell(scheduler, state, failing)
        status = replace(failing.status, state=TaskState.FAILED, applied_at=number * NS)
        tell(scheduler, state, replace(failing, desired_state=TaskState.SHUTDOWN, status=status))
    tell(scheduler, state, *pending(service, 1, prefix="soon"))
    run(scheduler, state, now=10 * NS)
    tell(scheduler, state, *pending(service, 1, prefix="late"))
    run(scheduler, state, now=400 * NS)

    assert state.tasks["soon-000"].node_id == "good"
    assert state.tasks["late-000"].node_id == "bad"


def test_a_plan_that_was_not_written_is_taken_back() -> None:
    service = make_service(template=make_template(cpus=4))
    state = make_state(make_node("n1", cpus=4), *pending(service, 1))
    scheduler = Scheduler(state)
    scheduler.schedule(0)
    plan = run(scheduler, state, now=1)

    assert [op.record.node_id for op in plan.ops] == ["n1"]
    assert run(scheduler, state, now=2).ops == ()


def test_a_task_that_is_no_longer_wanted_is_not_placed() -> None:
    service = make_service()
    state = make_state(*pending(service, 1))
    scheduler = Scheduler(state)
    run(scheduler, state)
    task = next(iter(state.tasks.values()))
    tell(scheduler, state, replace(task, desired_state=TaskState.SHUTDOWN), make_node("n1"))

    assert run(scheduler, state, now=NS).ops == ()


def test_a_new_node_takes_what_waited() -> None:
    state = make_state(*pending(make_service(), 3))
    scheduler = Scheduler(state)
    run(scheduler, state)
    tell(scheduler, state, make_node("n1"))
    run(scheduler, state, now=1)

    assert per_node(state) == {"n1": 3}


def test_tasks_that_join_a_waiting_group_are_told_why_and_the_reason_is_renewed_later() -> None:
    service = make_service(template=make_template(cpus=8))
    state = make_state(make_node("n1", cpus=4), *pending(service, 1, prefix="a"))
    scheduler = Scheduler(state)
    run(scheduler, state)
    tell(scheduler, state, *pending(service, 1, prefix="b"))
    tell(scheduler, state, make_node("n2", cpus=4))
    plan = run(scheduler, state, now=NS // 2)
    assert {op.record.id for op in plan.ops} == {"b-000"} and plan.wake_at == NS
    run(scheduler, state, now=NS)

    assert reasons(state) == {"no suitable node (insufficient resources on 2 nodes)"}


hosts = st.builds(
    lambda cpus, memory, zone, available, ready: (cpus, memory, zone, available, ready),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from(["a", "b"]),
    st.sampled_from([Availability.ACTIVE] * 4 + [Availability.PAUSE]),
    st.sampled_from([NodeState.READY] * 4 + [NodeState.DOWN]),
)
groups = st.builds(
    lambda count, cpus, memory, rule, port, limit, spread: (count, cpus, memory, rule, port, limit, spread),
    st.integers(1, 12),
    st.sampled_from([0, 0.5, 1, 2]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["", "", "node.labels.zone == a", "node.labels.zone != a", "node.hostname == host-n0"]),
    st.sampled_from([0, 0, 80, 81]),
    st.sampled_from([0, 0, 1, 2]),
    st.booleans(),
)


def make_group(ident: str, drawn: tuple[int, float, int, str, int, int, bool]) -> tuple[Service, int]:
    count, cpus, memory, rule, port, limit, spread = drawn
    template = make_template(
        cpus=cpus, memory=memory * GIB, constraints=[rule] if rule else [], max_replicas=limit
    )
    if spread:
        preference = PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone"))
        template = replace(template, placement=replace(template.placement, preferences=(preference,)))
    ports = (replace(WEB_PORT, published_port=port),) if port else ()
    return make_service(ident=ident, template=template, ports=ports), count


def check_promises(state: State) -> None:
    """No node gives what it has not, and every task is where it may be."""
    for node in state.nodes.values():
        tasks = list(state.tasks_on_node(node.id))
        capacity = capacity_of(node)
        assert sum(demand_of(task.spec).nano_cpus for task in tasks) <= capacity.nano_cpus
        assert sum(demand_of(task.spec).memory_bytes for task in tasks) <= capacity.memory_bytes
        ports = [port for task in tasks for port in host_ports(task.ports)]
        assert len(set(ports)) == len(ports)
        for task in tasks:
            rules = constraints.parse_all(task.spec.placement.constraints)
            assert constraints.matches_all(rules, node)
            same = sum(1 for other in tasks if other.service_id == task.service_id)
            assert same <= (task.spec.placement.max_replicas or same)
            assert node.state is NodeState.READY and node.spec.availability is Availability.ACTIVE


def could_take(state: State, node: Node, task: Task) -> bool:
    """Said anew, from the state alone: is there room on the node for this task?"""
    tasks = list(state.tasks_on_node(node.id))
    used_cpus = sum(demand_of(other.spec).nano_cpus for other in tasks)
    used_memory = sum(demand_of(other.spec).memory_bytes for other in tasks)
    demand, capacity = demand_of(task.spec), capacity_of(node)
    same = sum(1 for other in tasks if other.service_id == task.service_id)
    ports = {port for other in tasks for port in host_ports(other.ports)}
    return (
        node.state is NodeState.READY
        and node.spec.availability is Availability.ACTIVE
        and (not demand.nano_cpus or used_cpus + demand.nano_cpus <= capacity.nano_cpus)
        and (not demand.memory_bytes or used_memory + demand.memory_bytes <= capacity.memory_bytes)
        and constraints.matches_all(constraints.parse_all(task.spec.placement.constraints), node)
        and ports.isdisjoint(host_ports(task.ports))
        and (not task.spec.placement.max_replicas or same < task.spec.placement.max_replicas)
    )


@settings(max_examples=200)
@given(drawn_hosts=st.lists(hosts, max_size=6), drawn=st.lists(groups, min_size=1, max_size=5))
def test_nothing_is_promised_twice_and_only_what_fits_nowhere_waits(
    drawn_hosts: list[tuple[int, int, str, Availability, NodeState]],
    drawn: list[tuple[int, float, int, str, int, int, bool]],
) -> None:
    nodes = [
        make_node(f"n{n}", cpus=cpus, memory=memory * GIB, labels={"zone": zone}, availability=available, state=ready)
        for n, (cpus, memory, zone, available, ready) in enumerate(drawn_hosts)
    ]
    state = make_state(*nodes)
    scheduler = Scheduler(state)
    for number, one in enumerate(drawn):
        service, count = make_group(f"s{number}", one)
        tell(scheduler, state, *nodes, *pending(service, count))
        run(scheduler, state, now=number * NS)
    check_promises(state)
    assert run(scheduler, state, now=99 * NS).ops == ()
    for task in state.tasks.values():
        if task.status.state == TaskState.PENDING:
            assert task.status.err.startswith("no suitable node")
            assert not any(could_take(state, node, task) for node in nodes)


@given(
    capacities=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_service_is_spread_evenly_over_the_nodes_that_have_room(capacities: list[int], steps: list[int]) -> None:
    service = make_service(template=make_template(cpus=1))
    nodes = [make_node(f"n{n}", cpus=cpus) for n, cpus in enumerate(capacities)]
    state = make_state(*nodes)
    scheduler = Scheduler(state)
    for number, count in enumerate(steps):
        tell(scheduler, state, *pending(service, count, prefix=f"step{number}"))
        run(scheduler, state, now=number * NS)

    placed = per_node(state)
    assert sum(placed.values()) == min(sum(capacities), sum(steps))
    with_room = [placed[f"n{n}"] for n, cpus in enumerate(capacities) if placed[f"n{n}"] < cpus]
    assert not with_room or max(placed.values(), default=0) - min(with_room) <= 1


@settings(max_examples=100)
@given(st.data())
def test_the_index_stays_true_to_the_state_whatever_changes(data: st.DataObject) -> None:
    """After any changes, a scheduler that was told of each decides like one that starts from the state."""
    state = make_state(*[make_node(f"n{n}", cpus=3, labels={"zone": "ab"[n % 2]}) for n in range(3)])
    scheduler = Scheduler(state)
    for step in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["tasks", "end", "stop", "forget", "node", "leave", "join"]))
        tasks = sorted(state.tasks, key=str)
        if what == "tasks":
            service, count = make_group(f"s{step}", data.draw(groups))
            tell(scheduler, state, *pending(service, count))
        elif what in ("end", "stop", "forget") and tasks:
            task = state.tasks[data.draw(st.sampled_from(tasks))]
            if what == "end" and task.node_id:
                ended = replace(task.status, state=TaskState.SHUTDOWN)
                tell(scheduler, state, replace(task, desired_state=TaskState.SHUTDOWN, status=ended))
            elif what == "stop":
                tell(scheduler, state, replace(task, desired_state=max(task.desired_state, TaskState.SHUTDOWN)))
            elif what == "forget":
                scheduler.apply([state.apply(Delete(task))])
        elif what == "node":
            name = data.draw(st.sampled_from(["n0", "n1", "n2"]))
            zone, ready = data.draw(st.sampled_from(["a", "b"])), data.draw(st.sampled_from(list(NodeState)))
            cpus = data.draw(st.integers(1, 5))
            tell(scheduler, state, make_node(name, cpus=cpus, labels={"zone": zone}, state=ready))
        elif what == "leave" and "n2" in state.nodes:
            scheduler.apply([state.apply(Delete(state.nodes["n2"]))])
        elif what == "join":
            tell(scheduler, state, make_node("n2", cpus=3))
        run(scheduler, state, now=step * NS)

    late = make_service(ident="late", template=make_template(cpus=0.5))
    tell(scheduler, state, *pending(late, 20))
    told = Counter(op.record.node_id for op in scheduler.schedule(99 * NS).ops if op.record.service_id == "late")
    anew = Counter(op.record.node_id for op in Scheduler(state).schedule(99 * NS).ops if op.record.service_id == "late")
    assert sum(told.values()) == sum(anew.values()) and told[""] == anew[""]
    assert sorted(told.values()) == sorted(anew.values())
