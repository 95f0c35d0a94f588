"""What agents are told of the routing mesh: increments that add up to what the state says; none goes missing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import Unavailable
from swarmlet.model.network import Network, NetworkAttachment, NetworkCreate
from swarmlet.model.node import Node
from swarmlet.model.service import EndpointSpec, PortConfig, Service, ServiceSpec, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.wire.networking import MeshNews
from swarmlet_agent.net.overlay.meshtold import MeshHead, MeshTold
from swarmlet_manager.dispatch import meshbook
from swarmlet_manager.dispatch.meshbook import MeshBook
from swarmlet_manager.dispatch.meshfeed import mesh_of
from swarmlet_manager.dispatch.netfacts import Facts
from swarmlet_manager.dispatch.netfeed import NetworkFeed
from swarmlet_manager.state import Change, Delete, Put, State

HEAD = MeshHead(node_id="n1")
INGRESS = Network(
    id="ing", spec=NetworkCreate(name="ingress", driver="overlay", ingress=True), subnet="10.0.0.0/16",
    gateway="10.0.0.1", vni=4097,
)  # fmt: skip


def port(number: int) -> PortConfig:
    return PortConfig(protocol="tcp", target_port=80, published_port=8000 + number, publish_mode="ingress")


def service(ident: str, ports: tuple[int, ...], *, going: bool = False) -> Service:
    held = tuple(port(number) for number in ports)
    return Service(
        id=ident, spec=ServiceSpec(name=ident, endpoint_spec=EndpointSpec(ports=held)), ports=held, pending_delete=going
    )


def task(number: int, of: str, node: str, state: TaskState = TaskState.RUNNING) -> Task:
    return Task(
        id=f"t{number}", service_id=of, service_name=of, slot=1, node_id=node, ports=(port(0),),
        spec=TaskSpec(),
        networks=(NetworkAttachment(network_id="ing", address=f"10.0.{number // 250}.{number % 250 + 2}/16"),),
        status=TaskStatus(state=state),
    )  # fmt: skip


def node(number: int, state: NodeState = NodeState.READY, address: str = "") -> Node:
    return Node(id=f"n{number}", number=number, addr=address or f"192.0.2.{number}", state=state)


def make_state() -> State:
    state = State()
    for record in (INGRESS, node(1), node(2)):
        state.apply(Put(record))
    return state


def same(told: MeshTold, state: State) -> bool:
    wanted = mesh_of(state)
    return (
        told.nodes == {one.id: one for one in wanted.nodes} and told.ports == {one.called: one for one in wanted.ports}
    )


class Heard:
    """An agent that takes in what it is told."""

    def __init__(self, book: MeshBook) -> None:
        self.book = book
        self.told = MeshTold()
        self.version: int | None = None
        self.rows: dict[str, bytes] = {}

    def listen(self, state: State) -> MeshNews | None:
        news, self.version = self.book.news(state, self.version)
        if news is not None:
            rows, _ = self.told.take(news, HEAD)
            self.rows = {key: value for key, value in (self.rows | rows).items() if value is not None}
        return news


services = st.tuples(
    st.just("service"), st.sampled_from(["a", "b", "c"]),
    st.none() | st.tuples(st.lists(st.integers(0, 2), max_size=2, unique=True), st.booleans()),
)
tasks = st.tuples(
    st.just("task"), st.integers(0, 4), st.none() | st.tuples(
        st.sampled_from(["a", "b", "c"]), st.sampled_from(["n1", "n2", "n3"]),
        st.sampled_from([TaskState.STARTING, TaskState.RUNNING, TaskState.FAILED]),
    )
)  # fmt: skip
nodes = st.tuples(
    st.just("node"), st.integers(1, 3),
    st.none() | st.tuples(st.sampled_from([NodeState.READY, NodeState.DOWN]), st.sampled_from(["", "198.51.100.7"])),
)
networks = st.tuples(st.just("ingress"), st.just(0), st.none() | st.just(True))


def apply(state: State, kind: str, ident: object, value: object) -> Change | None:
    match kind, value:
        case "service", None:
            return state.apply(Delete(state.services[str(ident)])) if ident in state.services else None
        case "service", (ports, going):
            return state.apply(Put(service(str(ident), tuple(ports), going=going)))
        case "task", None:
            return state.apply(Delete(state.tasks[f"t{ident}"])) if f"t{ident}" in state.tasks else None
        case "task", (of, where, observed):
            assert isinstance(ident, int)
            known = state.tasks.get(f"t{ident}")
            return state.apply(Put(task(ident, known.service_id if known else of, where, observed)))
        case "node", None:
            return state.apply(Delete(state.nodes[f"n{ident}"])) if f"n{ident}" in state.nodes else None
        case "node", (being, address):
            assert isinstance(ident, int)
            return state.apply(Put(node(ident, being, address and f"{address}{ident}")))
        case _:
            record = Put(INGRESS) if value else Delete(INGRESS)
            return state.apply(record) if value or "ing" in state.networks else None


@given(st.lists(st.tuples(services | tasks | nodes | networks, st.booleans(), st.booleans()), max_size=40))
def test_increments_add_up_to_what_the_state_says(
    plan: list[tuple[tuple[str, object, object], bool, bool]],
) -> None:
    state, book = make_state(), MeshBook()
    often, seldom = Heard(book), Heard(book)
    for step, first, second in plan:
        change = apply(state, *step)
        if change is not None:
            book.note([change])
        if first:
            often.listen(state)
        if second:
            seldom.listen(state)
    for agent in (often, seldom):
        agent.listen(state)
        if agent.version is None:
            assert not mesh_of(state).ports and not agent.told.ports
            continue
        assert same(agent.told, state)
        assert agent.listen(state) is None
        # An agent that comes back has it from its journal; and goes on from there by being told all of it.
        back = MeshTold()
        assert back.restore(agent.rows.items()) == {}
        assert (back.head, back.nodes, back.ports, back.published) == (
            HEAD, agent.told.nodes, agent.told.ports, agent.told.published
        )  # fmt: skip
        whole, _ = book.news(state, None)
        if whole is not None:
            back.take(whole, HEAD)
            assert same(back, state)


def test_an_increment_that_was_missed_is_noticed_and_nothing_of_the_next_is_taken() -> None:
    state, book = make_state(), MeshBook()
    agent = Heard(book)
    book.note([state.apply(Put(service("a", (0, 1)))), state.apply(Put(task(1, "a", "n1")))])
    agent.listen(state)
    for missed in (Put(task(2, "a", "n2")), Delete(task(2, "a", "n2")), Put(node(3))):
        book.note([state.apply(missed)])
        _, agent.version = book.news(state, agent.version)
        book.note([state.apply(Put(service("b", (2,))))])
        before = dict(agent.told.ports)
        with pytest.raises(Unavailable):
            agent.listen(state)
        assert agent.told.ports == before
        agent.version = None  # the next session
        agent.listen(state)
        assert same(agent.told, state)
        book.note([state.apply(Delete(service("b", (2,))))])
        agent.listen(state)


def test_who_heard_last_before_what_is_remembered_of_the_gone_is_told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshbook, "GONE_KEPT", 2)
    state, book = make_state(), MeshBook()
    agent, other = Heard(book), Heard(book)
    for number in range(5):
        book.note([state.apply(Put(service(f"s{number}", (number,))))])
    agent.listen(state)
    for number in range(4):
        book.note([state.apply(Delete(service(f"s{number}", (number,))))])
        other.listen(state)
    news = agent.listen(state)
    assert news is not None and news.whole and same(agent.told, state) and same(other.told, state)
    assert len(book._gone) == 2


def test_one_backends_change_is_one_small_message_among_a_thousand_ports() -> None:
    state, facts = make_state(), Facts()
    feed, old = NetworkFeed("n1", facts), NetworkFeed("n2", facts, mesh_news=False)
    for number in range(1000):
        state.apply(Put(service(f"s{number}", (number,))))
        for slot in range(10):
            state.apply(Put(task(number * 10 + slot, f"s{number}", "n2")))
    everything = feed.take(state).mesh_news
    assert everything is not None and everything.whole and len(everything.ports) == 1000
    assert old.take(state).mesh == mesh_of(state)
    facts.mesh.note([state.apply(Put(replace(task(77, "s7", "n2"), status=TaskStatus(state=TaskState.FAILED))))])
    for each in (feed, old):
        each.mesh_changed()
    news = feed.take(state)
    assert news.mesh is None and news.mesh_news is not None and len(news.mesh_news.ports) == 1
    assert len(msgspec.msgpack.encode(news)) < 1500
    # An agent of an earlier version is told all of it, as it expects.
    told = old.take(state)
    assert told.mesh == mesh_of(state) and told.mesh_news is None
