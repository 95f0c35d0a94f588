"""Addresses that a service's user has chosen: what may be chosen, and what is someone else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import Conflict, InvalidArgument, NotSupported, SwarmletError
from swarmlet.model.network import Ipam, IpamConfig, Lease, Network, NetworkAttachment, NetworkCreate, Subnet
from swarmlet.model.service import (
    ContainerSpec,
    EndpointSpec,
    GlobalMode,
    NetworkAttachmentConfig,
    ReplicatedJobMode,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.decide.addresses import Allocator
from swarmlet_manager.decide.fixed import Fixed, Wish, check_fixed, check_free, fixed_in
from swarmlet_manager.decide.validate import check_service_spec
from swarmlet_manager.state import Put, State

NETWORK = Network(
    id="n1", subnet="10.1.0.0/24", gateway="10.1.0.1", vni=4097,
    spec=NetworkCreate(
        name="net", driver="overlay",
        ipam=Ipam(config=(IpamConfig(subnet="10.1.0.0/24", auxiliary_addresses={"printer": "10.1.0.9"}),)),
    ),
)  # fmt: skip


def spec_with(options: dict[str, str], *, replicas: int = 1, name: str = "web", **more: object) -> ServiceSpec:
    template = TaskSpec(
        container_spec=ContainerSpec(image="busybox"),
        networks=(NetworkAttachmentConfig(target="n1", driver_opts=options),),
    )
    mode = ServiceMode(replicated=ReplicatedMode(replicas=replicas))
    return replace(ServiceSpec(name=name, task_template=template, mode=mode), **more)


def test_each_option_is_understood_and_lists_go_by_slot() -> None:
    spec = spec_with(
        {
            "swarmlet.vip": "10.1.0.5", "swarmlet.ip": "10.1.0.6 10.1.0.7", "swarmlet.mac": "06:00:00:00:00:0A",
            "swarmlet.vip6": "fd01::5", "swarmlet.ip6": "FD01:0::6",
        }
    )
    found = fixed_in(spec.task_template)["n1"]
    assert found == Fixed(
        "10.1.0.5", ("10.1.0.6", "10.1.0.7"), ("06:00:00:00:00:0a",), vip6="fd01::5", addresses6=("fd01::6",)
    )
    assert [found.of_slot(slot) for slot in range(4)] == [
        Wish(), Wish("10.1.0.6", "06:00:00:00:00:0a", "fd01::6"), Wish("10.1.0.7"), Wish()
    ]  # fmt: skip
    assert found.of_service == Wish("10.1.0.5", "", "fd01::5")
    check_service_spec(spec)


def test_ipv6_addresses_are_kept_apart_like_ipv4s() -> None:
    state = world()
    with pytest.raises(InvalidArgument, match="address fd01::5: network net has no IPv6"):
        check_free(state, "", spec_with({"swarmlet.ip6": "fd01::5"}))
    dual = replace(NETWORK, v6=Subnet(subnet="fd01::/64", gateway="fd01::1", chosen=True))
    state.apply(Put(dual))
    state.apply(Put(replace(state.services["s1"], vips=(
        NetworkAttachment(network_id="n1", address="10.1.0.21/24", address6="fd01::21/64"),
    ))))  # fmt: skip
    other = replace(state.services["s2"], spec=spec_with({"swarmlet.ip6": "fd01::22"}, name="db"))
    state.apply(Put(other))
    for text, whose in (("fd01::1", "gateway"), ("fd01::21", "service other"), ("fd01::22", "service db")):
        for key in ("swarmlet.ip6", "swarmlet.vip6"):
            with pytest.raises(Conflict, match=f"address {text} of network net is already in use by .*{whose}"):
                check_free(state, "", spec_with({key: text}))
    with pytest.raises(InvalidArgument, match="fd02::5 is not in subnet fd01::/64"):
        check_free(state, "", spec_with({"swarmlet.vip6": "fd02::5"}))
    check_free(state, "s2", other.spec)
    check_free(state, "s1", spec_with({"swarmlet.vip6": "fd01::21"}))
    check_free(state, "s1", spec_with({"swarmlet.vip6": "fd01::30", "swarmlet.ip6": "fd01::21"}))


def test_a_services_other_family_keeps_its_address_when_one_is_chosen() -> None:
    state = State()
    state.apply(Put(replace(NETWORK, v6=Subnet(subnet="fd01::/64", gateway="fd01::1", chosen=True))))
    service = Service(id="s", spec=spec_with({}))
    books = Allocator(state)

    def put(changed: Service) -> Service:
        books.apply([state.apply(Put(changed))])
        for op in books.plan(1).ops:
            books.apply([state.apply(op)])
        return state.services["s"]

    (first,) = put(service).vips
    assert first.address6
    (second,) = put(replace(state.services["s"], spec=spec_with({"swarmlet.vip6": "fd01::77"}))).vips
    assert (second.address, second.address6) == (first.address, "fd01::77/64")
    # What it let go is another's to have, what it kept is not.
    pool, pool6 = books.pool("n1"), books.pool("n1", 6)
    assert pool is not None and pool6 is not None
    assert pool.owners(second.address.partition("/")[0]) == pool6.owners("fd01::77") == {"s"}
    assert pool6.owners(first.address6.partition("/")[0]) == frozenset()
    # A chosen one that somebody still has: nothing is changed until it is free.
    pool6.hold("fd01::99/64", "else")
    (third,) = put(replace(state.services["s"], spec=spec_with({"swarmlet.vip6": "fd01::99"}))).vips
    assert third == second and pool.owners(second.address.partition("/")[0]) == {"s"}
    pool6.free("fd01::99/64", "else")
    (fourth,) = put(state.services["s"]).vips
    assert (fourth.address, fourth.address6) == (first.address, "fd01::99/64")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"swarmlet.ip": "10.1.0"}, "10.1.0 is not an IPv4 address"),
        ({"swarmlet.ip": ""}, "swarmlet.ip is empty"),
        ({"swarmlet.vip": "10.1.0.5 10.1.0.6"}, "has one virtual address"),
        ({"swarmlet.ip": "10.1.0.5", "swarmlet.vip": "10.1.0.5"}, "name one address twice"),
        ({"swarmlet.ip": "fd01::5"}, "swarmlet.ip: fd01::5 is not an IPv4 address"),
        ({"swarmlet.vip6": "10.1.0.5"}, "swarmlet.vip6: 10.1.0.5 is not an IPv6 address"),
        ({"swarmlet.ip6": "fd01::5 fd01:0::5"}, "name one address twice"),
        ({"swarmlet.mac": "06:00:00:00:00"}, "is not a MAC address"),
        ({"swarmlet.mac": "01:00:00:00:00:01"}, "is not a unicast address"),
        ({"swarmlet.mac": "02:42:0a:01:00:05"}, "are given by the cluster"),
        ({"color": "red"}, "option color is not supported"),
    ],
)
def test_what_is_no_address_is_refused_by_name(options: dict[str, str], said: str) -> None:
    with pytest.raises((InvalidArgument, NotSupported), match=said):
        check_service_spec(spec_with(options))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": ServiceMode(replicated=ReplicatedMode(replicas=2))}, "names 1 for 2 replicas"),
        ({"mode": ServiceMode(global_=GlobalMode())}, "needs a replicated service"),
        ({"mode": ServiceMode(replicated_job=ReplicatedJobMode())}, "needs a replicated service"),
        ({"update_config": UpdateConfig(order="start-first")}, "use stop-first"),
        ({"rollback_config": UpdateConfig(order="start-first")}, "use stop-first"),
    ],
)
def test_addresses_of_tasks_go_with_replicas_that_have_numbers(change: dict[str, object], said: str) -> None:
    for option in ({"swarmlet.ip": "10.1.0.5"}, {"swarmlet.ip6": "fd01::5"}, {"swarmlet.mac": "06:00:00:00:00:01"}):
        with pytest.raises((InvalidArgument, NotSupported), match=said):
            check_fixed(replace(spec_with(option), **change))
        check_fixed(replace(spec_with({"swarmlet.vip": "10.1.0.5"}), **change))
    with pytest.raises(InvalidArgument, match=r"has no swarmlet\.vip"):
        check_fixed(spec_with({"swarmlet.vip": "10.1.0.5"}, endpoint_spec=EndpointSpec(mode="dnsrr")))


def world() -> State:
    """One network with a service, its task, a plain container and a service that has chosen."""
    state = State()
    other = spec_with({}, name="other")
    task = Task(
        id="t1", service_id="s1", service_name="other", slot=1, spec=other.task_template,
        status=TaskStatus(state=TaskState.RUNNING),
        networks=(NetworkAttachment(network_id="n1", address="10.1.0.20/24"),),
    )
    for record in (
        NETWORK, task,
        Service(id="s1", spec=other, vips=(NetworkAttachment(network_id="n1", address="10.1.0.21/24"),)),
        Service(id="s2", spec=spec_with({"swarmlet.ip": "10.1.0.22", "swarmlet.mac": "06:00:00:00:00:01"}, name="db")),
        Lease(
            id="l1", network_id="n1", node_id="x", container_id="c1", container_name="plain", address="10.1.0.23/24"
        ),
    ):
        state.apply(Put(record))
    return state


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("10.1.0.0", "the network itself"),
        ("10.1.0.255", "the network's broadcasts"),
        ("10.1.0.1", "the network's gateway"),
        ("10.1.0.9", "auxiliary address printer"),
        ("10.1.0.20", "task other.1.t1"),
        ("10.1.0.21", "service other"),
        ("10.1.0.22", "service db"),
        ("10.1.0.23", "container plain"),
    ],
)
def test_an_address_in_use_is_refused_with_its_owner(option: str, said: str) -> None:
    for key in ("swarmlet.ip", "swarmlet.vip"):
        with pytest.raises(Conflict, match=f"{option} of network net is already in use by {said}"):
            check_free(world(), "", spec_with({key: option}))


def test_what_is_outside_or_a_taken_mac_is_refused_and_ones_own_is_not() -> None:
    state = world()
    with pytest.raises(InvalidArgument, match=r"10\.2\.0\.5 is not in subnet 10\.1\.0\.0/24 of network net"):
        check_free(state, "", spec_with({"swarmlet.ip": "10.2.0.5"}))
    with pytest.raises(Conflict, match="MAC address 06:00:00:00:00:01 is already in use in network net by service db"):
        check_free(state, "", spec_with({"swarmlet.mac": "06:00:00:00:00:01"}))
    check_free(state, "s2", spec_with({"swarmlet.ip": "10.1.0.22", "swarmlet.mac": "06:00:00:00:00:01"}))
    # A task cannot have what its own service answers at, unless that moves away.
    with pytest.raises(Conflict, match="in use by service other"):
        check_free(state, "s1", spec_with({"swarmlet.ip": "10.1.0.21"}))
    check_free(state, "s1", spec_with({"swarmlet.ip": "10.1.0.21", "swarmlet.vip": "10.1.0.30"}))
    check_free(state, "s1", spec_with({"swarmlet.vip": "10.1.0.21"}))


@given(options=st.dictionaries(st.sampled_from(["swarmlet.ip", "swarmlet.mac", "swarmlet.vip", "x"]), st.text()))
def test_any_text_is_understood_or_refused(options: dict[str, str]) -> None:
    spec = spec_with(options)
    try:
        check_fixed(spec)
    except SwarmletError:
        return
    assert all(len(found.addresses) != 0 or found.vip or found.macs for found in fixed_in(spec.task_template).values())
