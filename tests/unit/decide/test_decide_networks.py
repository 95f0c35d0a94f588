"""Networks of the cluster: what may be asked for, and what one gets."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotSupported, SwarmletError
from swarmlet.model.cluster import Cluster
from swarmlet.model.network import Ipam, IpamConfig, Network, NetworkCreate
from swarmlet.model.node import Node, NodeDescription
from swarmlet.model.states import NodeState
from swarmlet.model.ways import NodeWays
from swarmlet_manager.decide.networks import FIRST_VNI, next_vni, plan_network
from swarmlet_manager.state import Put, State


def spec(name: str = "web", subnet: str = "", **more: object) -> NetworkCreate:
    config = {key: more.pop(key) for key in ("gateway", "ip_range", "auxiliary_addresses") if key in more}
    configs = (IpamConfig(subnet=subnet, **config),) if subnet or config else ()  # type: ignore[arg-type]
    return NetworkCreate(name=name, driver="overlay", **{"ipam": Ipam(config=configs)} | more)  # type: ignore[arg-type]


def state_with(*records: Network | Node | Cluster) -> State:
    state = State()
    for record in records:
        state.apply(Put(record))
    return state


def test_networks_get_subnets_of_the_clusters_pools_one_after_the_other() -> None:
    state = state_with(Cluster(id="c", address_pools=("10.20.0.0/22",), subnet_size=24))
    made = []
    for number in range(4):
        made.append(plan_network(state, spec(f"n{number}"), f"id{number}", 1))
        state.apply(Put(made[-1]))
    assert [network.subnet for network in made] == [f"10.20.{number}.0/24" for number in range(4)]
    assert [network.vni for network in made] == [FIRST_VNI + number for number in range(4)]
    assert (made[0].gateway, made[0].mtu) == ("10.20.0.1", 1450)
    with pytest.raises(Conflict, match="non-overlapping IPv4 address pool"):
        plan_network(state, spec("n5"), "id5", 1)


def test_a_subnet_that_nodes_live_in_is_left_out() -> None:
    cluster = Cluster(id="c", address_pools=("10.0.0.0/8",), subnet_size=16)
    state = state_with(cluster, Node(id="n", addr="10.0.7.1"), Node(id="m", addr="fd00::1"))
    assert plan_network(state, spec(), "id", 1).subnet == "10.1.0.0/16"


@pytest.mark.parametrize(
    ("nodes", "mtu"),
    [
        ((), 1450), ((Node(id="a", addr="192.0.2.1"),), 1450), ((Node(id="a", addr="2001:db8::1"),), 1430),
        ((Node(id="a", addr="192.0.2.1", data_mtu=9000), Node(id="b", addr="192.0.2.2", data_mtu=8950)), 8900),
        ((Node(id="a", addr="192.0.2.1", data_mtu=1500), Node(id="b", addr="2001:db8::1", data_mtu=1500)), 1430),
        ((Node(id="a", addr="127.0.0.1", data_mtu=65536),), 65485),
    ],
)  # fmt: skip
def test_a_network_carries_what_every_node_can(nodes: tuple[Node, ...], mtu: int) -> None:
    assert plan_network(state_with(*nodes), spec(), "id", 1).mtu == mtu
    chosen = spec(options={"com.docker.network.driver.mtu": "1400"})
    assert plan_network(state_with(*nodes), chosen, "id", 1).mtu == 1400


def test_a_network_is_encrypted_only_where_every_node_that_is_there_can() -> None:
    can = Node(id="a", addr="192.0.2.1", state=NodeState.READY, ways=NodeWays(lacking=""))
    cannot = Node(
        id="b", addr="192.0.2.2", state=NodeState.READY, ways=NodeWays(lacking="no WireGuard"),
        description=NodeDescription(hostname="old"),
    )
    wanted = spec(options={"encrypted": ""})
    assert plan_network(state_with(can), wanted, "id", 1).mtu == 1370
    with pytest.raises(NotSupported, match="network web: node old cannot encrypt: no WireGuard"):
        plan_network(state_with(can, cannot), wanted, "id", 1)
    assert plan_network(state_with(can, replace(cannot, state=NodeState.DOWN)), wanted, "id", 1).spec.encrypted


def test_what_was_asked_for_is_kept() -> None:
    wanted = spec(
        subnet="10.9.0.0/24", gateway="10.9.0.254", ip_range="10.9.0.128/25", internal=True,
        options={"com.docker.network.driver.mtu": "1300"},
    )
    network = plan_network(State(), wanted, "id", 1)
    assert (network.subnet, network.gateway, network.ip_range, network.mtu) == (
        "10.9.0.0/24", "10.9.0.254", "10.9.0.128/25", 1300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        (spec("first"), Conflict, "network with name first already exists"),
        (spec("bridge"), Forbidden, "predefined bridge network"),
        (spec("-x"), InvalidArgument, "name must be valid as a DNS name component"),
        (spec(subnet="10.5.0.128/25"), Forbidden, "Pool overlaps with other one on this address space"),
        (spec(subnet="10.6.0.1/24"), InvalidArgument, "invalid subnet 10.6.0.1/24"),
        (spec(subnet="10.6.0.0/31"), InvalidArgument, "at least a /30"),
        (spec(subnet="10.6.0.0/24", gateway="10.7.0.1"), InvalidArgument, "invalid gateway 10.7.0.1"),
        (spec(subnet="10.6.0.0/24", ip_range="10.7.0.0/25"), InvalidArgument, "invalid ip-range 10.7.0.0/25"),
        (spec(gateway="10.7.0.1"), InvalidArgument, "needs a subnet"),
        (spec(enable_ipv4=False), NotSupported, "IPv4 cannot be disabled"),
        (spec(subnet="fd05::/80", enable_ipv6=True), Forbidden, "Pool overlaps with other one on this address space"),
        (spec(subnet="fd06::1/64", enable_ipv6=True), InvalidArgument, "it should be fd06::/64"),
        (spec(subnet="fd06::/127", enable_ipv6=True), InvalidArgument, "at least a /126"),
        (spec(ingress=True, attachable=True), InvalidArgument, "ingress network cannot be attachable"),
        (spec(ingress=True, internal=True), InvalidArgument, "ingress network cannot be internal"),
        (spec("ingress"), Conflict, "network with name ingress already exists"),
        (spec(options={"encrypted": ""}, ingress=True), NotSupported, "packets of the routing mesh"),
        (spec(options={"com.docker.network.x": "1"}), NotSupported, "com.docker.network.x"),
        (spec(options={"com.docker.network.driver.mtu": "9"}), InvalidArgument, "expected 68 to"),
        (spec(enable_ipv6=True, options={"com.docker.network.driver.mtu": "1279"}), InvalidArgument, "1280 to 65485"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wanted: NetworkCreate, error: type[SwarmletError], words: str) -> None:
    first = spec("first", ipam=Ipam(config=(IpamConfig(subnet="10.5.0.0/24"), IpamConfig(subnet="fd05::/64"))))
    state = state_with(plan_network(State(), replace(first, enable_ipv6=True), "id1", 1))
    with pytest.raises(error) as raised:
        plan_network(state, wanted, "id2", 2)
    assert words in str(raised.value)


def test_a_number_is_used_again_only_when_all_have_been_used() -> None:
    first = plan_network(State(), spec(), "id", 1)
    assert next_vni([first]) == FIRST_VNI + 1
    last = Network(id="x", spec=spec(), subnet="10.0.0.0/24", gateway="10.0.0.1", vni=0xFFFFFF)
    assert next_vni([first, last]) == FIRST_VNI + 1


def test_a_network_with_ipv6_has_a_subnet_of_each_family() -> None:
    state = state_with(Cluster(id="c"))
    one = plan_network(state, spec("one", enable_ipv6=True), "id1", 1)
    state.apply(Put(one))
    two = plan_network(state, spec("two", enable_ipv6=True), "id2", 1)
    assert (one.subnet, two.subnet) == ("10.0.0.0/20", "10.0.16.0/20")
    first, second = ip_network(one.v6.subnet), ip_network(two.v6.subnet)
    # Of the cluster's own unique local /48, one after the other.
    assert (first.prefixlen, second.prefixlen) == (64, 64) and first.subnet_of(ip_network("fd00::/8"))
    assert first.supernet(new_prefix=48) == second.supernet(new_prefix=48) and first != second
    assert one.v6.gateway == str(first.network_address + 1)

    config = (IpamConfig(subnet="fd06::/64", gateway="fd06::ff", ip_range="fd06::1:0/112"),)
    chosen = plan_network(state, spec("three", enable_ipv6=True, ipam=Ipam(config=config)), "id3", 1)
    assert (chosen.v6.subnet, chosen.v6.gateway, chosen.v6.ip_range) == ("fd06::/64", "fd06::ff", "fd06::1:0/112")
    assert chosen.subnet == "10.0.16.0/20"


def test_there_is_one_network_of_the_routing_mesh() -> None:
    own = plan_network(State(), spec("mine", "10.11.0.0/16", ingress=True), "id1", 1)
    state = state_with(own)
    assert state.ingress == own
    with pytest.raises(Conflict, match=r"ingress network \(id1\) is already present"):
        plan_network(state, spec("ingress", ingress=True), "id2", 2)


def test_without_ipv6_its_subnets_are_not_looked_at() -> None:
    """As dockerd does (ValidateIPAM)."""
    assert plan_network(State(), spec(subnet="fd06::/64"), "id", 1).families[1:] == ()
