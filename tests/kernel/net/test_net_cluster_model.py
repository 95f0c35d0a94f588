"""Whatever a node is told of the cluster's networks, in whatever order and with whatever deaths of its agent between:
its kernel has exactly what was told last. Any steps (hypothesis), compared with what the stock tools list."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from ipaddress import ip_address
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace
from net_lab import Lab, in_own_network
from networks_seen import HERE, INFOS, NODES, actual, start_task

from swarmlet.ipam import mac_of
from swarmlet.model.ids import new_hex_id
from swarmlet.model.network import Lease
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk
from swarmlet.wire.networking import EndpointInfo, Networking, ServiceInfo
from swarmlet_agent.net.types import NetworkWish

pytestmark = pytest.mark.kernel
#: A machine that has needed so long takes no more steps.
ENOUGH_S = 45.0
T = TypeVar("T")
Place = tuple[str, str]
#: What happens, in which network, to which of its addresses, on which node, and whether it serves.
Change = tuple[str, str, int, str, bool]
STEPS = [
    *("change",) * 4, *("change and tell",) * 6, *("start",) * 4, *("start plain",) * 3, *("stop",) * 4,
    *("tell and die",) * 2, *("die",) * 2, "reboot",
]
changes = st.lists(
    st.tuples(
        st.sampled_from(["place", "place", "place", "flip", "flip", "end", "end", "serve", "serve", "leave"]),
        st.sampled_from("aaabbc"), st.integers(0, 2), st.sampled_from([HERE, HERE, *NODES[1:]]), st.booleans(),
    ),
    min_size=1, max_size=6,
)


class Died(Exception):
    """The agent ends between two effects."""


class Office:
    """A manager's end of leases: the next address of the network, told before it is answered."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.held: dict[str, Lease] = {}
        self.given = 0

    async def ask(self, ask: LeaseAsk) -> LeaseAnswer:
        machine, name = self.machine, next(name for name, info in INFOS.items() if ask.network in (info.id, info.name))
        info = INFOS[name]
        self.given += 1
        address = f"{info.gateway[:-1]}{50 + self.given % 100}"
        lease = Lease(
            id=ask.id, network_id=info.id, node_id="here", container_id=ask.container_id,
            container_name=ask.container_name, names=ask.names, address=f"{address}/24",
        )
        self.held[ask.id] = lease
        machine.endpoints[name][ask.id] = EndpointInfo(
            network_id=info.id, id=ask.id, address=address, node_id=HERE, node_addr=HERE, names=ask.names
        )
        await machine.lab.networks.cluster.update(machine.news(False), node_id="here", underlay=HERE)
        return LeaseAnswer(id=ask.id, lease=lease, network=info.name)

    def hold(self, lease: Lease) -> None:
        self.held[lease.id] = lease

    def release(self, *idents: str) -> None:
        for ident in idents:
            if (lease := self.held.pop(ident, None)) is not None:
                name = next(name for name, info in INFOS.items() if info.id == lease.network_id)
                self.machine.endpoints.get(name, {}).pop(ident, None)


class Machine(RuleBasedStateMachine):
    """world: what a manager knows; told: what the node was told of it last. Both: network -> id -> record."""

    lab: Lab
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.endpoints: dict[str, dict[str, EndpointInfo]] = {}
        self.services: dict[str, dict[str, ServiceInfo]] = {}
        self.told_endpoints: dict[str, dict[str, EndpointInfo]] = {}
        self.told_services: dict[str, dict[str, ServiceInfo]] = {}
        self.containers: dict[str, dict[str, str]] = {}  # id -> network -> address
        self.serial = 0
        self.session = True  # with a manager; the first thing an agent is told in a new one is everything
        self.unwritten = False  # an agent died before it wrote down what it was told
        self.forgotten: set[str] = set()  # networks that it had left but for their last container
        self.office = Office(self)
        self.lab.networks.leases.bind(self.office)
        for network in "ab":
            self.change([("place", network, number, HERE, True) for number in (0, 1)])
            self.change([("place", network, 2, NODES[1], True), ("serve", network, 0, HERE, True)])
        self.tell(full=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    # One rule for all: with a rule for each, most runs would be without some that make others worth while.
    @rule(what=st.sampled_from(STEPS), changes=changes, numbers=st.tuples(st.integers(0, 7), st.integers(0, 7)))
    def step(self, what: str, changes: list[Change], numbers: tuple[int, int]) -> None:
        match what:
            case "change":
                self.change(changes)
            case "change and tell":
                self.change(changes)
                self.tell(full=numbers[0] == 0)
            case "start plain":
                self.start_plain("ab"[numbers[0] % 2])
            case "start":
                self.start(numbers)
            case "stop":
                self.stop(numbers[0])
            case "die":
                self.die()
            case "tell and die":
                self.tell_and_die()
            case "reboot":
                self.reboot()

    # The cluster changes

    def change(self, changes: list[Change]) -> None:
        for what, network, number, node, serving in changes:
            known, address = self.endpoints.get(network), f"{INFOS[network].gateway[:-1]}{10 + number}"
            if what == "leave" and any(lease.network_id == INFOS[network].id for lease in self.office.held.values()):
                continue  # a node is in a network while it has a lease there
            if what == "leave":
                self.endpoints.pop(network, None)
                self.services.pop(network, None)
            elif known is None:
                self.endpoints[network], self.services[network] = {}, {}
            elif what == "serve":
                self._serve(network, f"service{number % 2}", f"{INFOS[network].gateway[:-1]}{200 + number}", serving)
            elif what == "flip":
                for ident in [ident for ident, info in known.items() if info.address == address]:
                    known[ident] = replace(known[ident], serving=not known[ident].serving)
            else:
                for ident in [ident for ident, info in known.items() if info.address == address]:
                    del known[ident]
                if what == "place":
                    self._place(network, number, address, node, serving)

    def _place(self, network: str, number: int, address: str, node: str, serving: bool) -> None:
        """A task with an address that perhaps another one had a moment ago, on whatever node."""
        self.serial += 1
        ident = f"task{self.serial}"
        self.endpoints[network][ident] = EndpointInfo(
            network_id=INFOS[network].id, id=ident, address=address, node_id=node, node_addr=node, names=(ident,),
            service_id=f"service{number % 2}", slot=number + 1, serving=serving,
        )

    def _serve(self, network: str, ident: str, vip: str, there: bool) -> None:
        if there:
            info = ServiceInfo(network_id=INFOS[network].id, id=ident, name=ident, vip=vip)
            self.services[network][ident] = info
        else:
            self.services[network].pop(ident, None)

    # The node is told

    def tell(self, full: bool) -> None:
        news = self.news(full or not self.session)
        self.session, self.unwritten, self.forgotten = True, False, set()
        self.run(self.lab.networks.cluster.update(news, node_id="here", underlay=HERE))
        self.check()

    def tell_and_die(self) -> None:
        """All is done but written down. The next agent is told everything, perhaps after more has changed."""

        async def work() -> None:
            async def write(*writes: object) -> None:
                raise Died

            self.lab.networks._ground.journal.write = write  # type: ignore[assignment]
            with contextlib.suppress(Died):
                await self.lab.networks.cluster.update(self.news(False), node_id="here", underlay=HERE)
            await self.lab.restart()
            self.lab.networks.leases.bind(self.office)

        if self.session:
            self.run(work())
            self.session, self.unwritten = False, True

    def news(self, full: bool) -> Networking:
        before_e, before_s = ({}, {}) if full else (self.told_endpoints, self.told_services)
        made = [name for name in self.endpoints if name not in before_e]
        gone = [name for name in before_e if name not in self.endpoints]
        news = Networking(
            full=full, networks=tuple(INFOS[name] for name in made),
            gone_networks=tuple(INFOS[name].id for name in gone),
            endpoints=tuple(_changed(before_e, self.endpoints)), services=tuple(_changed(before_s, self.services)),
            gone_endpoints=tuple(_gone(before_e, self.endpoints)), gone_services=tuple(_gone(before_s, self.services)),
        )
        self.told_endpoints = {name: dict(known) for name, known in self.endpoints.items()}
        self.told_services = {name: dict(known) for name, known in self.services.items()}
        return news

    # The node's own doing

    def start(self, numbers: tuple[int, int]) -> None:
        """A container for a task of this node, or for tasks on two networks at once."""
        if not self.session:
            return  # no orders
        taken = {address for places in self.containers.values() for address in places.values()}
        free = [
            (name, info.address) for name, known in self.told_endpoints.items() for info in known.values()
            if info.node_addr == HERE and info.address not in taken and info.service_id
        ]
        if not free:
            return
        places = dict(free[number % len(free)] for number in numbers)
        ident = self.run(start_task(self.lab, places))
        self.containers[ident] = places
        self.check()

    def start_plain(self, network: str) -> None:
        """A container of its own, with a lease."""
        if not self.session or network not in self.told_endpoints or network not in self.endpoints:
            return
        ident = new_hex_id()
        wish = NetworkWish(container_id=ident, container_name=ident[:8], hostname=ident[:8], mode=INFOS[network].name)
        attached = self.run(self.lab.networks.attach(wish))
        self.containers[ident] = {network: attached.endpoints[INFOS[network].name].ip_address}
        self.unwritten, self.forgotten = False, set()
        self.check()

    def stop(self, number: int) -> None:
        if not self.containers:
            return
        ident = list(self.containers)[number % len(self.containers)]
        self.run(self.lab.networks.detach(ident))
        del self.containers[ident]
        self.check()

    def die(self) -> None:
        """The next agent has the journal, before it is told anything."""
        self.forgotten |= self.lingering()
        self.session = False
        self.run(self.lab.restart())
        self.lab.networks.leases.bind(self.office)
        self.check()

    def reboot(self) -> None:
        """Nothing is left but the journal; and no manager says anything."""

        async def work() -> None:
            ground = self.lab.networks._ground
            await ground.run(ground.kernel.teardown)
            await self.lab.restart()
            self.lab.networks.leases.bind(self.office)
            await self.lab.networks.retain([])
            # In its first statement the node says that it holds nothing.
            self.office.release(*(self.office.held.keys() - {lease.id for lease in self.lab.networks.leases.held}))

        self.forgotten |= self.lingering()
        self.session = False
        self.run(work())
        self.containers.clear()
        self.check()

    def teardown(self) -> None:
        for ident in list(self.containers):
            self.run(self.lab.networks.detach(ident))
        self.containers.clear()
        self.endpoints, self.services = {}, {}
        self.tell(full=True)

    # What is there

    def check(self) -> None:
        if self.unwritten:
            return
        deadline = time.monotonic() + 30
        unsure = [INFOS[name].id[:12] for name in self.lingering() | self.forgotten]
        unsure += [
            f"container {ident[:8]}" for ident, places in self.containers.items()
            if places.keys() - self.told_endpoints.keys()
        ]
        while True:
            wanted, there = (
                {line for line in lines if not any(ident in line for ident in unsure)}
                for lines in (self.wanted(), actual(self.lab))
            )
            if wanted == there:
                return
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(
                    ["the kernel differs:", *(f"missing: {line}" for line in sorted(wanted - there)),
                     *(f"left over: {line}" for line in sorted(there - wanted))]
                ))  # fmt: skip
            time.sleep(0.02)  # the kernel takes interfaces down in its own time

    def lingering(self) -> set[str]:
        """Networks that this node has left but for containers that are about to go."""
        return {name for places in self.containers.values() for name in places} - self.told_endpoints.keys()

    def wanted(self) -> Iterator[str]:
        for name, known in self.told_endpoints.items():
            info = INFOS[name]
            bridge, vxlan = f"ov-{info.id[:12]}", f"vx-{info.id[:12]}"
            yield f"link {bridge} mtu {info.mtu}"
            yield f"link {vxlan} in {bridge} mtu {info.mtu}"
            if count := sum(name in places for places in self.containers.values()):
                yield f"{count} containers on {bridge}"
            yield f"rule br {bridge}"
            yield f"rule same {bridge} {bridge}"
            yield f"rule hair {info.subnet} {info.subnet} of {bridge}"
            yield f"rule internal {bridge}" if info.internal else f"rule masq {info.subnet} of {bridge}"
            for endpoint in known.values():
                if endpoint.node_addr != HERE:
                    mac = mac_of(ip_address(endpoint.address))
                    yield f"forward {vxlan} {mac} -> {endpoint.node_addr}"
                    yield f"forward {bridge} {mac} by {vxlan}"
                    yield f"neighbour {bridge} {endpoint.address} {mac}"
        for ident, places in self.containers.items():
            yield f"namespace {ident}"
            for name, address in places.items():
                mac = mac_of(ip_address(address))
                yield f"container {ident[:8]} has {address} {mac} mtu {INFOS[name].mtu}"
            for name in places:
                for service in self.told_services.get(name, {}).values():
                    backends = sorted(
                        one.address for one in self.told_endpoints[name].values()
                        if one.serving and one.service_id == service.id
                    )
                    yield f"container {ident[:8]} vip {service.vip} -> {' '.join(backends) or 'refused'}"
        yield from (f"lease {ident} {lease.address}" for ident, lease in self.office.held.items())


def _changed(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> Iterator[Any]:
    for name, known in after.items():
        yield from (info for ident, info in known.items() if before.get(name, {}).get(ident) != info)


def _gone(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> Iterator[Place]:
    """Within networks that go on; also of those that are joined anew, where it says nothing."""
    for name, known in before.items():
        if name in after:
            yield from ((INFOS[name].id, ident) for ident in known if ident not in after[name])


def task(network: str, number: int, node: str) -> EndpointInfo:
    return EndpointInfo(
        network_id=INFOS[network].id, id=f"task{number}", address=f"{INFOS[network].gateway[:-1]}{10 + number}",
        node_id=node, node_addr=node,
    )


def about(lab: Lab, *words: str) -> list[str]:
    return sorted(line for line in actual(lab) if any(line.startswith(word) for word in words))


@in_own_network
async def test_what_only_an_agent_knew_that_died_is_taken_back_by_the_next(lab: Lab) -> None:
    async def tell(full: bool, *tasks: EndpointInfo) -> None:
        news = Networking(full=full, networks=(INFOS["a"],) if full else (), endpoints=tasks)
        await lab.networks.cluster.update(news, node_id="here", underlay=HERE)

    async def no_write(*writes: object) -> None:
        raise Died

    await tell(True, task("a", 0, HERE), task("a", 1, NODES[1]))
    before = about(lab, "forward", "neighbour")
    lab.networks._ground.journal.write = no_write  # type: ignore[assignment]
    with pytest.raises(Died):
        await tell(False, task("a", 2, NODES[2]))
    await lab.restart()
    # Meanwhile that task has ended: nobody tells of it any more.
    await tell(True, task("a", 0, HERE), task("a", 1, NODES[1]))
    assert about(lab, "forward", "neighbour") == before and len(before) == 3


@in_own_network
async def test_a_network_that_is_left_goes_with_its_last_container(lab: Lab) -> None:
    """The manager hears of a task's end before its container has left the network: then it says no more of it."""
    news = Networking(full=True, networks=(INFOS["a"],), endpoints=(task("a", 0, HERE), task("a", 1, HERE)))
    await lab.networks.cluster.update(news, node_id="here", underlay=HERE)
    first, second = [await start_task(lab, {"a": f"10.60.0.{number}"}) for number in (10, 11)]
    await lab.networks.cluster.update(Networking(gone_networks=(INFOS["a"].id,)), node_id="here", underlay=HERE)
    await lab.networks.detach(first)
    assert "link ov-aaaaaaaaaaaa mtu 1450" in about(lab, "link")
    await lab.networks.detach(second)
    assert about(lab, "link", "rule", "namespace") == []


@in_own_network
async def test_the_kernel_has_what_was_told_last_and_nothing_else_after_any_steps(lab: Lab) -> None:
    Machine.lab, Machine.loop = lab, asyncio.get_running_loop()
    quick = settings(
        max_examples=2, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
        database=None, phases=(Phase.generate,),  # each failing check waits: there is no time to find a shorter way
    )
    ends = time.monotonic() + ENOUGH_S
    for _ in range(6):
        await asyncio.to_thread(run_state_machine_as_test, Machine, settings=quick)
        if time.monotonic() > ends:
            break
