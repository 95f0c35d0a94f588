"""Networks of the cluster: what may be asked for, and what one gets."""

from __future__ import annotations

import pytest

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotSupported, SwarmletError
from swarmlet.model.cluster import Cluster
from swarmlet.model.network import Ipam, IpamConfig, Network, NetworkCreate
from swarmlet.model.node import Node
from swarmlet_manager.decide.networks import FIRST_VNI, mac_of, next_vni, plan_network
from swarmlet_manager.state import Put, State


def spec(name: str = "web", subnet: str = "", **more: object) -> NetworkCreate:
    config = {key: more.pop(key) for key in ("gateway", "ip_range", "auxiliary_addresses") if key in more}
    configs = (IpamConfig(subnet=subnet, **config),) if subnet or config else ()  # type: ignore[arg-type]
    return NetworkCreate(name=name, driver="overlay", ipam=Ipam(config=configs), **more)  # type: ignore[arg-type]


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
        (spec(subnet="10.6.0.0/24", gateway="10.7.0.1"), InvalidArgument, "gateway 10.7.0.1"),
        (spec(subnet="10.6.0.0/24", ip_range="10.7.0.0/25"), InvalidArgument, "IP range 10.7.0.0/25"),
        (spec(gateway="10.7.0.1"), InvalidArgument, "needs a subnet"),
        (spec(subnet="fd00::/64"), NotSupported, "one IPv4 subnet"),
        (spec(enable_ipv6=True), NotSupported, "IPv6"),
        (spec(ingress=True), NotSupported, "--ingress"),
        (spec(options={"encrypted": ""}), NotSupported, "encrypted"),
        (spec(options={"com.docker.network.x": "1"}), NotSupported, "com.docker.network.x"),
        (spec(options={"com.docker.network.driver.mtu": "9"}), InvalidArgument, "expected 68 to"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wanted: NetworkCreate, error: type[SwarmletError], words: str) -> None:
    state = state_with(plan_network(State(), spec("first", "10.5.0.0/24"), "id1", 1))
    with pytest.raises(error) as raised:
        plan_network(state, wanted, "id2", 2)
    assert words in str(raised.value)


def test_a_number_is_used_again_only_when_all_have_been_used() -> None:
    first = plan_network(State(), spec(), "id", 1)
    assert next_vni([first]) == FIRST_VNI + 1
    last = Network(id="x", spec=spec(), subnet="10.0.0.0/24", gateway="10.0.0.1", vni=0xFFFFFF)
    assert next_vni([first, last]) == FIRST_VNI + 1


def test_a_mac_address_follows_from_the_address() -> None:
    assert mac_of("10.0.1.255") == "02:42:0a:00:01:ff"
