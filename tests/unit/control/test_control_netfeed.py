"""What agents are told of networks: always what the state says, and only of networks their node takes part in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.network import Network, NetworkAttachment, NetworkCreate
from swarmlet.model.node import Node
from swarmlet.model.service import EndpointSpec, NetworkAttachmentConfig, Service, ServiceSpec, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.ways import NodeWays, WayKey
from swarmlet.wire.networking import Networking, WaysInfo
from swarmlet_manager.dispatch.netfacts import Facts
from swarmlet_manager.dispatch.netfeed import NetworkFeed
from swarmlet_manager.state import Delete, Put, State

NETWORKS = ("n1", "n2")


def make_state() -> State:
    state = State()
    for number, ident in enumerate(NETWORKS, start=1):
        spec = NetworkCreate(name=ident, driver="overlay")
        subnet = f"10.{number}.0.0/24"
        state.apply(Put(Network(id=ident, spec=spec, subnet=subnet, gateway=f"10.{number}.0.1", vni=4096 + number)))
    for ident in ("here", "there"):
        state.apply(Put(Node(id=ident, addr=f"192.0.2.{len(ident)}", state=NodeState.READY)))
    return state


def task(ident: str, network: str, node: str, state: TaskState, desired: TaskState = TaskState.RUNNING) -> Task:
    spec = TaskSpec(networks=(NetworkAttachmentConfig(target=network),))
    place = NetworkAttachment(network_id=network, address=f"10.{network[1]}.0.{10 + 'abcd'.index(ident)}/24")
    return Task(
        id=ident, service_id="s", service_name="web", slot=1, node_id=node, spec=spec, networks=(place,),
        desired_state=desired, status=TaskStatus(state=state),
    )


class Agent:
    """What an agent knows that takes in everything it is told."""

    def __init__(self) -> None:
        self.networks: set[str] = set()
        self.endpoints: dict[tuple[str, str], object] = {}
        self.services: dict[tuple[str, str], object] = {}

    def hear(self, news: Networking) -> None:
        if news.full:
            self.__init__()  # type: ignore[misc]
        self.networks |= {info.id for info in news.networks}
        self.networks -= set(news.gone_networks)
        for place in news.gone_endpoints:
            del self.endpoints[place]
        for place in news.gone_services:
            del self.services[place]
        self.endpoints |= {(info.network_id, info.id): info for info in news.endpoints}
        self.services |= {(info.network_id, info.id): info for info in news.services}
        self.endpoints = {place: info for place, info in self.endpoints.items() if place[0] in self.networks}
        self.services = {place: info for place, info in self.services.items() if place[0] in self.networks}


steps = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.sampled_from(NETWORKS), st.sampled_from(["here", "there"]),
        st.none() | st.sampled_from([TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING, TaskState.FAILED]),
        st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN]), st.booleans(),
    )
)


@given(steps)
def test_increments_add_up_to_what_a_new_session_would_be_told(
    plan: list[tuple[str, str, str, TaskState | None, TaskState, bool]],
) -> None:
    facts = Facts()
    state, feed, agent = make_state(), NetworkFeed("here", facts), Agent()
    spec = TaskSpec(networks=tuple(NetworkAttachmentConfig(target=network, aliases=("w",)) for network in NETWORKS))
    mode = EndpointSpec(mode="dnsrr")
    state.apply(Put(Service(id="s", spec=ServiceSpec(name="web", task_template=spec, endpoint_spec=mode))))
    for ident, network, node, observed, desired, send in plan:
        if observed is None:
            if ident not in state.tasks:
                continue
            facts.forget(state.tasks[ident])
            change = state.apply(Delete(state.tasks[ident]))
        else:
            if (known := state.tasks.get(ident)) is not None:
                network = known.networks[0].network_id  # a task is never moved to another network
            change = state.apply(Put(task(ident, network, node, observed, desired)))
        feed.note(change)
        if send:
            agent.hear(feed.take(state))
    agent.hear(feed.take(state))

    fresh = Agent()
    fresh.hear(NetworkFeed("here").take(state))
    assert (agent.networks, agent.endpoints, agent.services) == (fresh.networks, fresh.endpoints, fresh.services)
    assert not feed.take(state)
    # What is kept for other sessions says the same, and is of tasks that are there.
    another = Agent()
    another.hear(NetworkFeed("here", facts).take(state))
    assert another.endpoints == fresh.endpoints
    assert {ident for _, ident in facts._known} <= set(state.tasks)


def test_a_node_without_a_task_in_a_network_hears_nothing_of_it() -> None:
    state, feed = make_state(), NetworkFeed("here")
    state.apply(Put(task("a", "n1", "there", TaskState.RUNNING)))
    assert feed.take(state) == Networking(full=True)
    assert feed.note(state.apply(Put(task("b", "n1", "there", TaskState.RUNNING)))) is False
    assert feed.note(state.apply(Put(task("c", "n1", "here", TaskState.ASSIGNED)))) is True
    news = feed.take(state)
    assert [info.id for info in news.networks] == ["n1"]
    assert {info.id: (info.node_addr, info.serving) for info in news.endpoints} == {
        "a": ("192.0.2.5", True), "b": ("192.0.2.5", True), "c": ("192.0.2.4", False),
    }  # fmt: skip


def test_a_task_serves_while_it_runs_is_wanted_and_its_node_is_not_down() -> None:
    state, feed = make_state(), NetworkFeed("here")
    state.apply(Put(task("a", "n1", "here", TaskState.RUNNING)))
    state.apply(Put(task("b", "n1", "there", TaskState.RUNNING)))
    assert {info.id for info in feed.take(state).endpoints if info.serving} == {"a", "b"}

    feed.note(state.apply(Put(task("a", "n1", "here", TaskState.RUNNING, TaskState.SHUTDOWN))))
    assert [(info.id, info.serving) for info in feed.take(state).endpoints] == [("a", False)]

    state.apply(Put(Node(id="there", addr="192.0.2.5", state=NodeState.DOWN)))
    assert feed.node_changed("there")
    # Its own names go with the node, the way to its address stays.
    [lost] = feed.take(state).endpoints
    assert (lost.id, lost.serving, lost.names, lost.node_addr) == ("b", False, (), "192.0.2.5")

    state.apply(Put(Node(id="there", addr="192.0.2.5")))
    assert feed.node_changed("there")
    [back] = feed.take(state).endpoints
    assert (back.id, back.serving) == ("b", True) and back.names


def test_a_service_is_told_once_it_has_its_virtual_address() -> None:
    state, feed = make_state(), NetworkFeed("here")
    spec = ServiceSpec(name="web", task_template=TaskSpec(networks=(NetworkAttachmentConfig(target="n1"),)))
    state.apply(Put(Service(id="s", spec=spec)))
    state.apply(Put(task("a", "n1", "here", TaskState.RUNNING)))
    assert feed.take(state).services == ()
    vip = NetworkAttachment(network_id="n1", address="10.1.0.2/24")
    assert feed.note(state.apply(Put(Service(id="s", spec=spec, vips=(vip,)))))
    assert [(info.name, info.vip) for info in feed.take(state).services] == [("web", "10.1.0.2")]


def test_a_node_in_an_encrypted_network_is_told_of_the_ways_and_of_addresses_inside_them() -> None:
    state, feed = make_state(), NetworkFeed("here")
    spec = NetworkCreate(name="n1", driver="overlay", options={"encrypted": ""})
    state.apply(Put(replace(state.networks["n1"], spec=spec)))
    key = WayKey(number=1, public_key=b"k" * 32, port=51872)
    state.apply(Put(replace(state.nodes["there"], number=2, ways=NodeWays(lacking="", keys=(key,)))))
    state.apply(Put(task("a", "n1", "here", TaskState.RUNNING)))
    state.apply(Put(task("b", "n1", "there", TaskState.RUNNING)))
    # Without a number the node has no address inside: it cannot take part yet.
    assert feed.take(state).networks == ()

    state.apply(Put(replace(state.nodes["here"], number=1)))
    assert feed.node_changed("here")
    news = feed.take(state)
    assert [(info.encrypted, info.port) for info in news.networks] == [(True, 51870)]
    assert {info.id: info.node_addr for info in news.endpoints} == {"a": "100.65.0.1", "b": "100.65.0.2"}
    ways = news.ways
    assert ways is not None and (ways.inner, ways.numbers, ways.active) == ("100.65.0.1", (1,), 1)
    assert [(peer.inner, peer.address, peer.keys) for peer in ways.peers] == [("100.65.0.2", "192.0.2.5", (key,))]
    assert feed.take(state).ways is None

    # Who leaves the cluster is nobody's peer any more.
    state.apply(Delete(state.nodes["there"]))
    assert feed.node_changed("there")
    ways = feed.take(state).ways
    assert ways is not None and ways.peers == ()

    assert feed.note(state.apply(Put(task("a", "n1", "here", TaskState.FAILED))))
    assert feed.take(state).ways == WaysInfo()
