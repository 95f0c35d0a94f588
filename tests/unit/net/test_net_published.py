"""What a node makes of the routing mesh that a manager tells of."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.wire.networking import MeshBackend, MeshInfo, MeshNodeInfo, MeshPort, NetworkInfo
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, Published
from swarmlet_agent.net.overlay.cluster import record_of
from swarmlet_agent.net.overlay.published import MTU, addresses_of, mesh_state, places_of, without
from swarmlet_agent.net.plan_ports import ANY, ANY6, HostPort

HERE, THERE = MeshBackend(address="10.0.0.2", port=80, node=1), MeshBackend(address="10.0.0.3", port=80, node=2)
WEB = MeshPort(protocol="tcp", port=8080, service="web", backends=(HERE, replace(THERE, address6="fd00::3")))
DNS = MeshPort(protocol="udp", port=53, service="dns", host_ip="192.0.2.9", local_only=True)
TOLD = MeshInfo(
    nodes=(
        MeshNodeInfo(id="a", number=1, address="192.0.2.1"),
        MeshNodeInfo(id="b", number=2, address="192.0.2.2", others=("fd02::2",)),
    ),
    ports=(WEB, DNS),
)


def test_a_port_leads_to_every_address_of_its_tasks() -> None:
    state = mesh_state(TOLD, "a", ("172.17.0.0/16",))
    assert state is not None
    assert (state.own, state.peers) == (MeshNode(1, "192.0.2.1"), (MeshNode(2, "192.0.2.2", ("fd02::2",)),))
    assert (state.mtu, state.containers) == (MTU, ("172.17.0.0/16",))
    assert state.ports == (
        Published("tcp", 8080, (Backend("10.0.0.2", 80, 1), Backend("10.0.0.3", 80, 2), Backend("fd00::3", 80, 2))),
        Published("udp", 53, (), "192.0.2.9", True),
    )
    assert mesh_state(TOLD, "c", ()) is None


def test_a_host_holds_what_it_publishes_in_the_families_it_has() -> None:
    assert places_of(TOLD, ipv6=True) == {
        HostPort(ANY, "tcp", 8080): "service web", HostPort(ANY6, "tcp", 8080): "service web",
        HostPort("192.0.2.9", "udp", 53): "service dns",
    }  # fmt: skip
    assert HostPort(ANY6, "tcp", 8080) not in places_of(TOLD, ipv6=False)


def test_a_port_that_is_something_elses_is_left_out_in_both_families() -> None:
    assert without(TOLD, ()) is TOLD
    assert without(TOLD, {HostPort(ANY6, "tcp", 8080): ""}).ports == (DNS,)
    assert without(TOLD, {HostPort("192.0.2.9", "udp", 53): ""}).ports == (WEB,)
    assert without(TOLD, {HostPort(ANY, "udp", 53): ""}).ports == (WEB, DNS)


def test_flows_to_a_task_that_answers_no_more_are_cut() -> None:
    assert addresses_of(None) == set()
    assert addresses_of(TOLD) == {"10.0.0.2", "10.0.0.3", "fd00::3"}
    lost = replace(WEB, backends=(replace(HERE, serving=False), replace(THERE, lost=True)))
    assert addresses_of(replace(TOLD, ports=(lost,))) == {"10.0.0.2"}


def test_a_host_without_ipv6_takes_part_in_a_networks_ipv4() -> None:
    info = NetworkInfo(
        id="i" * 25, name="ingress", subnet="10.0.0.0/24", gateway="10.0.0.1", subnet6="fd00::/64", gateway6="fd00::1",
        vni=4097, mtu=1450, ingress=True,
    )
    assert [part.subnet for part in record_of(info, "192.0.2.1").families] == ["10.0.0.0/24", "fd00::/64"]
    narrow = record_of(info, "192.0.2.1", ipv6=False)
    assert [part.subnet for part in narrow.families] == ["10.0.0.0/24"]
    assert narrow.v6.chosen  # a task's IPv6 address is not refused, but not given either
