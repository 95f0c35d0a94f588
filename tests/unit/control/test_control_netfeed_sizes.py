"""How much agents are told of networks: nothing of those they are not in, and of the others what has changed."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from swarmlet.model.network import Network, NetworkAttachment, NetworkCreate
from swarmlet.model.node import Node
from swarmlet.model.service import EndpointSpec, NetworkAttachmentConfig, Service, ServiceSpec, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.wire.networking import Networking
from swarmlet_manager.dispatch.netfeed import NetworkFeed
from swarmlet_manager.state import Delete, Put, State

SERVICES, TASKS = 1000, 3
#: Bytes of a message about one endpoint, however large its network is; and of one that says nothing.
ONE_BYTES, NOTHING_BYTES = 450, 250


def size(news: Networking) -> int:
    return len(msgspec.msgpack.encode(news))


def service(number: int, network: str) -> Service:
    spec = TaskSpec(networks=(NetworkAttachmentConfig(target=network, aliases=("alias",)),))
    return Service(
        id=f"{number:025}",
        spec=ServiceSpec(name=f"service-{number}", task_template=spec, endpoint_spec=EndpointSpec(mode="vip")),
        vips=(NetworkAttachment(network_id=network, address=f"10.9.{number // 250}.{number % 250 + 1}/16"),),
    )


def task(of: Service, slot: int, node: str) -> Task:
    network = of.spec.task_template.networks[0].target
    number = int(of.id) * TASKS + slot
    return Task(
        id=f"{number:025}", service_id=of.id, service_name=of.spec.name, slot=slot, node_id=node,
        spec=of.spec.task_template, status=TaskStatus(state=TaskState.RUNNING, container_id="f" * 64),
        networks=(NetworkAttachment(network_id=network, address=f"10.8.{number // 250}.{number % 250 + 1}/16"),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def state() -> State:
    """A network with 1,000 services, none of whose tasks is on node "away", and a small one on every node."""
    state = State()
    for number, ident in enumerate(("large", "small"), start=1):
        spec = NetworkCreate(name=ident, driver="overlay")
        subnet = f"10.{number}.0.0/16"
        state.apply(Put(Network(id=ident, spec=spec, subnet=subnet, gateway=f"10.{number}.0.1", vni=4096 + number)))
    for ident in ("in", "away"):
        state.apply(Put(Node(id=ident, addr=f"192.0.2.{len(ident)}", state=NodeState.READY)))
    for number in range(SERVICES):
        known = service(number, "large")
        state.apply(Put(known))
        for slot in range(1, TASKS + 1):
            state.apply(Put(task(known, slot, "in")))
    known = service(SERVICES, "small")
    state.apply(Put(known))
    state.apply(Put(task(known, 1, "in")))
    state.apply(Put(task(known, 2, "away")))
    return state


def changed(state: State, feeds: list[NetworkFeed], record: Task | Service | None, gone: Task | None = None) -> None:
    change = state.apply(Put(record) if record is not None else Delete(gone or task(service(0, "large"), 1, "in")))
    for feed in feeds:
        feed.note(change)


def test_a_large_network_costs_a_node_that_is_not_in_it_nothing(state: State) -> None:
    feed = NetworkFeed("away")
    told = feed.take(state)
    assert [info.id for info in told.networks] == ["small"] and len(told.endpoints) == 2 and len(told.services) == 1
    assert size(told) < 4 * ONE_BYTES
    for number in range(SERVICES):
        known = state.services[f"{number:025}"]
        assert feed.note(state.apply(Put(replace(known, updated_at=number)))) is False
        first = state.tasks[f"{number * TASKS + 1:025}"]
        assert feed.note(state.apply(Put(replace(first, updated_at=number)))) is False
    assert not feed.pending
    assert not feed.take(state) and size(feed.take(state)) < NOTHING_BYTES


def test_one_endpoints_change_is_one_small_message_in_a_network_of_any_size(state: State) -> None:
    feeds = {name: NetworkFeed(name) for name in ("in", "away")}
    everything = feeds["in"].take(state)
    feeds["away"].take(state)
    assert len(everything.endpoints) == SERVICES * TASKS + 2 and len(everything.services) == SERVICES + 1
    known = state.services[f"{7:025}"]
    before = state.tasks[f"{7 * TASKS + 1:025}"]
    steps = (
        replace(before, desired_state=TaskState.SHUTDOWN),
        replace(before, status=TaskStatus(state=TaskState.FAILED)),
        task(known, 1, "in"),
    )
    for step in steps:
        changed(state, list(feeds.values()), step)
        news = feeds["in"].take(state)
        assert len(news.endpoints) + len(news.gone_endpoints) == 1 and not news.services and not news.networks
        assert size(news) < ONE_BYTES
        assert size(feeds["away"].take(state)) < NOTHING_BYTES and not feeds["away"].pending
    # What says nothing new is not sent: the agent reports a new message, and the task stays what it is.
    changed(state, list(feeds.values()), replace(task(known, 1, "in"), updated_at=99))
    assert not feeds["in"].take(state)


def test_joining_a_network_tells_all_of_it_once_and_leaving_it_one_line(state: State) -> None:
    feed = NetworkFeed("away")
    feed.take(state)
    known = state.services[f"{3:025}"]
    moved = replace(task(known, 2, "away"), id="m" * 25)
    feed.note(state.apply(Put(moved)))
    joined = feed.take(state)
    assert [info.id for info in joined.networks] == ["large"] and not joined.full
    assert len(joined.endpoints) == SERVICES * TASKS + 1 and len(joined.services) == SERVICES
    assert size(joined) < (SERVICES * TASKS + 1) * 350 + SERVICES * 200
    # A session that begins anew is told as much as the one before knew in the end.
    again = NetworkFeed("away").take(state)
    assert {info.id for info in again.networks} == {"large", "small"}
    assert set(again.endpoints) >= set(joined.endpoints) and set(again.services) >= set(joined.services)
    feed.note(state.apply(Delete(moved)))
    left = feed.take(state)
    assert left.gone_networks == ("large",) and not left.endpoints and size(left) < NOTHING_BYTES + 20
