"""A task is told to stop once every node that led to it sends clients elsewhere, and not before; or after a grace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.network import Network, NetworkAttachment, NetworkCreate
from swarmlet.model.node import Node
from swarmlet.model.service import EndpointSpec, PortConfig, Service, ServiceSpec, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.dispatch.feed import Feed
from swarmlet_manager.dispatch.leaving import Leaving
from swarmlet_manager.dispatch.meshfeed import mesh_of
from swarmlet_manager.dispatch.netfeed import NetworkFeed
from swarmlet_manager.state import Delete, Put, State

PORT = PortConfig(published_port=8080, target_port=80)
PLACE = NetworkAttachment(network_id="ing", address="10.0.0.5/24")


def task(ident: str = "t", *, desired: TaskState = TaskState.RUNNING, service: str = "s", **status: object) -> Task:
    return Task(
        id=ident, service_id=service, node_id="n1", spec=TaskSpec(), desired_state=desired, ports=(PORT,),
        status=TaskStatus(**{"state": TaskState.RUNNING, **status}),  # type: ignore[arg-type]
        networks=(PLACE,),
    )


def service(ident: str = "s", *, going: bool = False) -> Service:
    spec = ServiceSpec(name=ident, endpoint_spec=EndpointSpec(ports=(PORT,)))
    return Service(id=ident, spec=spec, ports=(PORT,), pending_delete=going)


def make_state(*records: Task | Service) -> State:
    state = State()
    state.apply(Put(Node(id="n1", addr="192.0.2.1", number=1, state=NodeState.READY)))
    ingress = NetworkCreate(name="ingress", driver="overlay", ingress=True)
    state.apply(Put(Network(id="ing", spec=ingress, subnet="10.0.0.0/24", gateway="10.0.0.1", vni=4097)))
    for record in records:
        state.apply(Put(record))
    return state


NODES = ("n1", "n2", "n3")
groups = st.lists(
    st.tuples(st.sets(st.sampled_from("abcdef"), max_size=3), st.sets(st.sampled_from(NODES))), max_size=4
)
answers = st.lists(st.tuples(st.sampled_from(NODES), st.sets(st.integers(1, 4))) | st.integers(1, 4))


@given(groups, answers)
def test_a_task_is_held_exactly_until_all_have_answered_or_the_wait_is_ended(
    begun: list[tuple[set[str], set[str]]], heard: list[tuple[str, set[int]] | int]
) -> None:
    leaving, waits, last = Leaving(), {}, {}
    for tasks, nodes in begun:
        if number := leaving.begin(tasks, nodes):
            waits[number] = set(nodes)
            last.update(dict.fromkeys(tasks, number))
        else:
            assert not tasks or not nodes
    for one in heard:
        if isinstance(one, int):
            free, ended = leaving.end(one), {one}
        else:
            node, numbers = one
            free, ended = leaving.left(node, sorted(numbers)), set()
            for number in numbers & waits.keys():
                waits[number].discard(node)
                ended |= {number} if not waits[number] else set()
        expected = {ident for ident, number in last.items() if number in ended & waits.keys()}
        for number in ended:
            waits.pop(number, None)
        last = {ident: number for ident, number in last.items() if ident not in expected}
        assert set(free) == expected
        assert {ident for ident in "abcdef" if leaving.holds(ident)} == set(last)
        for node in NODES:
            assert set(leaving.awaiting(node)) == {number for number, nodes in waits.items() if node in nodes}


def test_a_held_task_is_told_as_before_until_it_is_noted_again() -> None:
    state, feed, held = make_state(task()), Feed("n1"), {"t"}
    feed.take(state)
    state.apply(Put(task(desired=TaskState.SHUTDOWN)))
    feed.note("t")
    assert feed.take(state, held.__contains__) == (False, [], [])
    # A new session's full set does not tell either.
    feed = Feed("n1")
    full, (told,), _ = feed.take(state, held.__contains__)
    assert full and told.desired_state is TaskState.RUNNING
    held.clear()
    feed.note("t")
    assert [one.desired_state for one in feed.take(state, held.__contains__)[1]] == [TaskState.SHUTDOWN]


def test_a_node_leads_to_a_task_while_it_was_told_that_it_serves() -> None:
    plain = replace(task(), ports=())
    state, feed = make_state(plain), NetworkFeed("n1")
    assert not feed.leads_to(plain)
    feed.take(state)
    assert feed.leads_to(plain)
    feed.note(state.apply(Put(replace(plain, desired_state=TaskState.SHUTDOWN))))
    feed.take(state)
    assert not feed.leads_to(plain)


def test_every_node_leads_to_a_published_task() -> None:
    state, feed = make_state(service(), task()), NetworkFeed("n2")
    assert not feed.leads_to(task())
    feed.take(state)
    assert feed.leads_to(task())


def serving(state: State) -> dict[str, list[bool]]:
    return {f"{port.protocol} {port.port}": [one.serving for one in port.backends] for port in mesh_of(state).ports}


def test_a_task_is_in_the_mesh_from_running_to_its_end_and_serves_while_it_is_healthy_and_wanted() -> None:
    told = {
        name: serving(make_state(service(), record))
        for name, record in {
            "starting": task(state=TaskState.STARTING), "runs": task(), "ill": task(unhealthy=True),
            "leaves": task(desired=TaskState.SHUTDOWN), "ended": task(state=TaskState.FAILED),
        }.items()
    }
    assert {name: shown["tcp 8080"] for name, shown in told.items()} == {
        "starting": [], "runs": [True], "ill": [False], "leaves": [False], "ended": [],
    }  # fmt: skip


def test_what_is_open_to_a_task_is_given_up_where_nobody_answers() -> None:
    def lost(state: State) -> list[bool]:
        (mesh,) = mesh_of(state).ports
        feed = NetworkFeed("n1")
        told = [endpoint.lost for endpoint in feed.take(state).endpoints]
        assert told == [one.lost for one in mesh.backends]
        return told

    assert lost(make_state(service(), task())) == [False]
    assert lost(make_state(service(), task(desired=TaskState.SHUTDOWN))) == [False]  # it drains
    assert lost(make_state(service(), task(unhealthy=True))) == [True]
    state = make_state(service(), task())
    state.apply(Put(replace(state.nodes["n1"], state=NodeState.DOWN)))
    assert lost(state) == [True]


def test_a_removed_services_port_is_refused_and_drained_and_may_be_anothers_at_once() -> None:
    state = make_state(service(going=True), task())
    assert serving(state) == {"tcp 8080": [False]}
    state.apply(Put(service("new")))
    other = replace(task("u", service="new"), networks=(NetworkAttachment(network_id="ing", address="10.0.0.6/24"),))
    state.apply(Put(other))
    assert serving(state) == {"tcp 8080": [True, False]}
    state.apply(Delete(state.tasks["t"]))
    assert serving(state) == {"tcp 8080": [True]}
