"""The allocator: who gets which address in the cluster's networks, whatever happens."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Interface, IPv4Network, ip_network

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.model.network import Ipam, IpamConfig, Network, NetworkCreate, Subnet
from swarmlet.model.node import Node
from swarmlet.model.service import (
    ContainerSpec,
    EndpointSpec,
    NetworkAttachmentConfig,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.decide.addresses import Allocator
from swarmlet_manager.decide.allocate import initial_status
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import Change, Delete, Put, State


def make_network(ident: str = "n1", subnet: str = "10.1.0.0/29", **more: str) -> Network:
    config = IpamConfig(subnet=subnet, auxiliary_addresses=more)
    spec = NetworkCreate(name=f"net-{ident}", driver="overlay", ipam=Ipam(config=(config,)))
    gateway = str(IPv4Network(subnet).network_address + 1)
    return Network(id=ident, spec=spec, subnet=subnet, gateway=gateway, vni=4097)


def with_ipv6(network: Network, subnet: str = "fd01::/64") -> Network:
    gateway = str(ip_network(subnet).network_address + 1)
    return replace(network, v6=Subnet(subnet=subnet, gateway=gateway))


def make_service(ident: str = "s1", *networks: str, mode: str = "dnsrr") -> Service:
    template = TaskSpec(
        container_spec=ContainerSpec(image="busybox"),
        networks=tuple(NetworkAttachmentConfig(target=target) for target in networks),
    )
    spec = ServiceSpec(
        name=ident, task_template=template, mode=ServiceMode(replicated=ReplicatedMode(replicas=1)),
        endpoint_spec=EndpointSpec(mode=mode),
    )
    return Service(id=ident, spec=spec)


def make_task(ident: str, service: Service, created_at: int = 0) -> Task:
    spec = service.spec.task_template
    return Task(
        id=ident, service_id=service.id, service_name=service.spec.name, slot=1, spec=spec,
        status=initial_status(spec, service.ports, 0), created_at=created_at,
    )


class World:
    """State with an allocator that hears of everything, as the leader's loop has it."""

    def __init__(self, *records: Network | Service | Task | Node) -> None:
        self.state = State()
        for record in records:
            self.state.apply(Put(record))
        self.allocator = Allocator(self.state)

    def put(self, record: Network | Service | Task | Node) -> None:
        self.allocator.apply([self.state.apply(Put(record))])

    def delete(self, record: Network | Service | Task | Node) -> None:
        self.allocator.apply([self.state.apply(Delete(record))])

    def allocate(self) -> None:
        changes: list[Change] = [self.state.apply(op) for op in self.allocator.plan(1).ops]
        self.allocator.apply(changes)

    def addresses(self, network_id: str) -> list[str]:
        tasks = [task for task in self.state.tasks.values() if not is_gone(task)]
        held = [place for task in tasks for place in task.networks]
        held += [vip for service in self.state.services.values() for vip in service.vips]
        return [place.address for place in held if place.network_id == network_id]


def test_a_task_waits_as_new_until_it_has_an_address_in_each_network() -> None:
    service = make_service("s1", "n1", "n2")
    world = World(make_network("n1"), make_network("n2", "10.2.0.0/24"), service, make_task("t", service))
    assert world.state.tasks["t"].status.state is TaskState.NEW

    world.allocate()

    task = world.state.tasks["t"]
    assert task.status.state is TaskState.PENDING
    assert [place.address for place in task.networks] == ["10.1.0.2/29", "10.2.0.2/24"]
    assert world.allocator.plan(2).ops == ()


def test_a_service_has_one_virtual_address_per_network_unless_it_wants_none() -> None:
    world = World(make_network(), make_service("s1", "n1", mode="vip"), make_service("s2", "n1"))
    world.allocate()
    assert [vip.address for vip in world.state.services["s1"].vips] == ["10.1.0.2/29"]
    assert world.state.services["s2"].vips == ()

    changed = make_service("s1", "n1", mode="dnsrr")
    world.put(replace(world.state.services["s1"], spec=changed.spec))
    world.allocate()
    assert world.state.services["s1"].vips == () and world.addresses("n1") == []


def test_where_a_network_has_ipv6_tasks_and_services_have_an_address_of_each_family() -> None:
    service = make_service("s1", "n1", mode="vip")
    world = World(with_ipv6(make_network()), service, make_task("t", service))
    world.allocate()
    assert [vip.addresses for vip in world.state.services["s1"].vips] == [("10.1.0.2/29", "fd01::2/64")]
    assert [place.addresses for place in world.state.tasks["t"].networks] == [("10.1.0.3/29", "fd01::3/64")]

    world.allocator = Allocator(world.state)
    world.put(make_task("t2", service))
    world.allocate()
    assert [place.addresses for place in world.state.tasks["t2"].networks] == [("10.1.0.4/29", "fd01::4/64")]


def test_what_lacks_an_address_of_one_family_holds_none_of_the_other() -> None:
    service = make_service("s1", "n1")
    tasks = [make_task(f"t{number}", service, number) for number in range(3)]
    world = World(with_ipv6(make_network(), "fd01::/126"), service, *tasks)
    world.allocate()
    waiting = [task for task in world.state.tasks.values() if task.status.state is TaskState.NEW]
    assert [(task.id, task.status.err) for task in waiting] == [
        ("t2", "no address is free in network net-n1 (fd01::/126, 2 in use)")
    ]
    pool = world.allocator.pool("n1")
    assert pool is not None and pool.taken == 2
    world.delete(world.state.tasks["t0"])
    world.allocate()
    assert [place.addresses for place in world.state.tasks["t2"].networks] == [("10.1.0.5/29", "fd01::2/126")]


def test_a_full_network_is_said_by_the_task_and_cured_when_an_address_comes_free() -> None:
    service = make_service("s1", "n1")
    tasks = [make_task(f"t{number}", service, number) for number in range(6)]
    world = World(make_network(aux="10.1.0.6"), service, *tasks)  # .2 to .5 are left
    world.allocate()

    waiting = [task for task in world.state.tasks.values() if task.status.state is TaskState.NEW]
    assert [task.id for task in waiting] == ["t4", "t5"]
    assert {task.status.err for task in waiting} == {
        "no address is free in network net-n1 (10.1.0.0/29, 4 in use)"
    }
    assert world.allocator.plan(2).ops == ()

    ended = world.state.tasks["t1"]
    world.put(replace(ended, status=replace(ended.status, state=TaskState.FAILED)))
    world.allocate()
    cured = world.state.tasks["t4"]
    assert cured.networks == ended.networks and not cured.status.err
    assert world.state.tasks["t5"].status.state is TaskState.NEW


def test_an_address_that_comes_free_rests_while_others_are_free() -> None:
    service = make_service("s1", "n1")
    world = World(make_network(), service)
    seen = []
    for number in range(5):
        task = make_task(f"t{number}", service)
        world.put(task)
        world.allocate()
        seen += world.addresses("n1")
        world.delete(world.state.tasks[task.id])
    assert seen == [f"10.1.0.{number}/29" for number in range(2, 7)]


def test_a_new_leader_takes_over_every_address() -> None:
    service = make_service("s1", "n1")
    world = World(make_network(), service, make_task("t1", service))
    world.allocate()
    world.allocator = Allocator(world.state)
    world.put(make_task("t2", service))
    world.allocate()
    assert sorted(world.addresses("n1")) == ["10.1.0.2/29", "10.1.0.3/29"]


steps = st.lists(
    st.tuples(st.sampled_from(["task", "end", "remove", "leader", "service", "allocate"]), st.integers(0, 7)),
    max_size=60,
)


@given(steps)
def test_no_two_living_owners_ever_share_an_address(plan: list[tuple[str, int]]) -> None:
    services = {f"s{n}": make_service(f"s{n}", "n1", mode="vip" if n % 2 else "dnsrr") for n in range(4)}
    world, ids = World(make_network()), itertools.count()
    for step, number in plan:
        tasks = sorted(world.state.tasks.values(), key=lambda task: task.created_at)
        match step:
            case "service":
                ident = f"s{number % 4}"
                if (known := world.state.services.get(ident)) is None:
                    world.put(services[ident])
                else:
                    world.delete(known)
            case "task":
                at = next(ids)
                world.put(make_task(f"t{at}", services[f"s{number % 4}"], at))
            case "end" if tasks:
                task = tasks[number % len(tasks)]
                world.put(replace(task, status=TaskStatus(state=TaskState.SHUTDOWN)))
            case "remove" if tasks:
                world.delete(tasks[number % len(tasks)])
            case "leader":
                world.allocator = Allocator(world.state)
            case _:
                world.allocate()
    world.allocate()

    addresses = world.addresses("n1")
    assert len(set(addresses)) == len(addresses)
    inside = {str(IPv4Interface(f"10.1.0.{last}/29")) for last in range(2, 7)}
    assert set(addresses) <= inside
    waiting = [task for task in world.state.tasks.values() if task.status.state is TaskState.NEW]
    assert not waiting or len(addresses) == len(inside) or all(task.status.err for task in waiting)
    assert world.allocator.plan(2).ops == ()


def test_a_removed_network_holds_its_subnet_until_its_last_task_has_stopped() -> None:
    service = make_service("s1", "n1")
    world = World(make_network(), service, make_task("t1", service))
    world.allocate()
    network, task = world.state.networks["n1"], world.state.tasks["t1"]
    world.put(replace(network, pending_delete=True))
    world.put(replace(task, desired_state=TaskState.REMOVE, status=TaskStatus(state=TaskState.RUNNING)))
    world.allocate()
    assert "n1" in world.state.networks and world.state.network_named("net-n1") is None
    world.delete(world.state.tasks["t1"])
    world.allocate()
    assert "n1" not in world.state.networks


def choosing(service: Service, **options: str) -> Service:
    """The service with options of its only network; vip, ip and mac."""
    template = service.spec.task_template
    network = replace(template.networks[0], driver_opts={f"swarmlet.{name}": text for name, text in options.items()})
    return replace(service, spec=replace(service.spec, task_template=replace(template, networks=(network,))))


def test_chosen_addresses_are_given_to_their_owner_and_to_no_one_else() -> None:
    chosen = choosing(make_service("s1", "n1", mode="vip"), vip="10.1.0.2", ip="10.1.0.3", mac="06:00:00:00:00:01")
    other = make_service("s2", "n1")
    world = World(make_network(), chosen, other, make_task("other", other), make_task("mine", chosen, 1))
    world.allocate()

    place = world.state.tasks["mine"].networks[0]
    assert world.state.services["s1"].vips[0].address == "10.1.0.2/29"
    assert (place.address, place.mac) == ("10.1.0.3/29", "06:00:00:00:00:01")
    assert world.state.tasks["other"].networks[0].address == "10.1.0.4/29"
    # What was chosen comes free with the choice.
    world.delete(world.state.tasks["mine"])
    world.put(replace(world.state.services["s1"], spec=choosing(chosen, vip="10.1.0.2").spec))
    tasks = [make_task(f"t{number}", other, number + 2) for number in range(3)]
    for task in tasks:
        world.put(task)
    world.allocate()
    assert "10.1.0.3/29" in world.addresses("n1") and world.addresses("n1").count("10.1.0.2/29") == 1


def test_a_virtual_address_moves_to_the_one_that_is_chosen() -> None:
    service = make_service("s1", "n1", mode="vip")
    world = World(make_network(), service)
    world.allocate()
    world.put(replace(world.state.services["s1"], spec=choosing(service, vip="10.1.0.6").spec))
    world.allocate()
    assert world.addresses("n1") == ["10.1.0.6/29"]
    assert Allocator(world.state).plan(3).ops == ()


def test_a_chosen_address_goes_on_once_its_holder_is_gone_or_its_node_is_lost() -> None:
    chosen = choosing(make_service("s1", "n1"), ip="10.1.0.3")
    world = World(make_network(), chosen, make_task("old", chosen))
    world.allocate()
    world.put(Node(id="node-1", number=1, state=NodeState.READY))
    old = replace(world.state.tasks["old"], node_id="node-1", status=TaskStatus(state=TaskState.RUNNING))
    world.put(old)
    world.put(make_task("new", chosen, 1))
    world.allocate()
    assert "10.1.0.3 of network net-n1 is still in use by task s1.1.old" in world.state.tasks["new"].status.err

    lost = replace(old, desired_state=TaskState.SHUTDOWN)
    world.put(lost)
    world.allocate()
    assert world.state.tasks["new"].networks == ()
    world.put(Node(id="node-1", number=1, state=NodeState.DOWN))
    world.allocate()
    assert world.state.tasks["new"].networks[0].address == "10.1.0.3/29"
    # The old one's end takes it from nobody.
    world.put(replace(lost, status=TaskStatus(state=TaskState.SHUTDOWN)))
    pool = world.allocator.pool("n1")
    assert pool is not None and pool.owners("10.1.0.3") == {"s1", "new"}
