"""Keys of encrypted networks change without a moment in which one node's packets cannot be read by another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.cluster import Cluster
from swarmlet.model.network import Network, NetworkCreate
from swarmlet.model.node import Node
from swarmlet.model.states import NodeState
from swarmlet.model.ways import NodeWays, WayKey, WaysPlan
from swarmlet.wire.networking import WaysInfo
from swarmlet_manager.decide.ways import ROTATE_NS, is_encrypted, plan_ways
from swarmlet_manager.dispatch.wayfeed import ways_of
from swarmlet_manager.state import Put, State

NODES = ("a", "b", "c")


@dataclass
class Agent:
    """What a node's agent does with what it is told. peers: inner address -> numbers of the keys it knows."""

    name: str
    inner: str = ""
    keys: dict[int, WayKey] = field(default_factory=dict)
    peers: dict[str, dict[int, WayKey]] = field(default_factory=dict)
    said: NodeWays = NodeWays(lacking="")  # noqa: RUF009

    def hear(self, told: WaysInfo) -> None:
        self.inner = told.inner
        self.keys = {
            number: self.keys.get(number) or WayKey(number=number, public_key=f"{self.name}{number}".encode(), port=1)
            for number in told.numbers
        }
        self.peers = {peer.inner: {key.number: key for key in peer.keys} for peer in told.peers}
        self.said = NodeWays(lacking="", keys=tuple(self.keys.values()), active=told.active, applied=told.digest)

    def can_send_to(self, other: Agent) -> bool:
        """Its device of the generation it sends by has the other's key, and the other's has its own."""
        number = self.said.active
        return (
            self.peers.get(other.inner, {}).get(number) == other.keys.get(number) is not None
            and other.peers.get(self.inner, {}).get(number) == self.keys.get(number) is not None
        )


class World:
    def __init__(self) -> None:
        self.state, self.agents, self.now = State(), {name: Agent(name) for name in NODES}, 1
        self.state.apply(Put(Cluster(id="c")))
        for number, name in enumerate(NODES, 1):
            self.state.apply(Put(Node(id=name, addr=f"192.0.2.{number}", number=number, state=NodeState.READY)))
        for _ in range(3):
            self.settle()

    def tell(self, name: str) -> None:
        self.agents[name].hear(ways_of(self.state, name))

    def report(self, name: str) -> None:
        self.state.apply(Put(replace(self.state.nodes[name], ways=self.agents[name].said)))

    def lead(self, later: int = 0) -> bool:
        self.now += later
        ops = plan_ways(self.state, self.now)
        for op in ops:
            self.state.apply(op)
        return bool(ops)

    def settle(self) -> None:
        for name in NODES:
            self.tell(name)
            self.report(name)
        self.lead()

    @property
    def plan(self) -> WaysPlan:
        assert self.state.cluster is not None
        return self.state.cluster.ways

    def check(self) -> None:
        for one, other in itertools.permutations(self.agents.values(), 2):
            assert one.can_send_to(other), (one, other)


def test_keys_change_in_steps_and_the_old_ones_go() -> None:
    world = World()
    world.check()
    assert not world.lead(ROTATE_NS - 1)
    assert world.lead(1) and (world.plan.oldest, world.plan.active, world.plan.newest) == (1, 1, 2)
    for _ in range(4):
        world.settle()
        world.check()
    assert (world.plan.oldest, world.plan.active, world.plan.newest) == (2, 2, 2)
    world.settle()
    assert {tuple(agent.keys) for agent in world.agents.values()} == {(2,)}
    assert not world.lead()


steps = st.lists(st.tuples(st.sampled_from(["tell", "report", "lead", "later"]), st.sampled_from(NODES)), max_size=80)


@given(steps)
def test_at_every_moment_of_a_change_each_node_reads_each_others_packets(plan: list[tuple[str, str]]) -> None:
    world = World()
    for step, name in plan:
        match step:
            case "tell":
                world.tell(name)
            case "report":
                world.report(name)
            case "lead":
                world.lead()
            case _:
                world.lead(ROTATE_NS)
        world.check()
    for _ in range(12):
        world.settle()
        world.check()
    assert world.plan.oldest == world.plan.active == world.plan.newest


def test_a_node_that_is_down_is_not_waited_for_and_gets_the_new_key_first_when_it_comes_back() -> None:
    world = World()
    world.state.apply(Put(replace(world.state.nodes["c"], state=NodeState.DOWN)))
    world.lead(ROTATE_NS)
    for _ in range(5):
        for name in "ab":
            world.tell(name)
            world.report(name)
        world.lead()
    assert world.plan.oldest == world.plan.newest == 2
    world.state.apply(Put(replace(world.state.nodes["c"], state=NodeState.READY)))
    for _ in range(2):
        world.settle()
    world.check()


def test_where_no_network_is_encrypted_no_keys_change() -> None:
    state = State()
    state.apply(Put(Cluster(id="c")))
    state.apply(Put(Node(id="a", addr="192.0.2.1", number=1, ways=NodeWays(lacking=""))))
    assert plan_ways(state, 10 * ROTATE_NS) == []
    assert ways_of(state, "a").peers == ()


def test_a_network_is_encrypted_as_libnetwork_reads_its_option() -> None:
    def made(**options: str) -> Network:
        spec = NetworkCreate(name="n", driver="overlay", options=options)
        return Network(id="n", spec=spec, subnet="10.0.0.0/24", gateway="10.0.0.1", vni=4097)

    assert is_encrypted(made(encrypted="")) and is_encrypted(made(encrypted="true"))
    assert not is_encrypted(made(encrypted="false")) and not is_encrypted(made()) and not is_encrypted(None)
