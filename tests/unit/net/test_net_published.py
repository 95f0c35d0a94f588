"""What a node makes of the routing mesh that a manager tells of."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from swarmlet.model.base import Record
from swarmlet.wire.networking import MeshBackend, MeshInfo, MeshNews, MeshNodeInfo, MeshPort, NetworkInfo
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published
from swarmlet_agent.net.overlay.cluster import record_of
from swarmlet_agent.net.overlay.meshtold import MeshHead, MeshTold, whole_news
from swarmlet_agent.net.overlay.published import MTU, mesh_state, places_of, published_of, without
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


def made(node_id: str, containers: tuple[str, ...]) -> MeshState | None:
    return mesh_state(TOLD.nodes, map(published_of, TOLD.ports), node_id, containers)


def test_a_port_leads_to_every_address_of_its_tasks() -> None:
    state = made("a", ("172.17.0.0/16",))
    assert state is not None
    assert (state.own, state.peers) == (MeshNode(1, "192.0.2.1"), (MeshNode(2, "192.0.2.2", ("fd02::2",)),))
    assert (state.mtu, state.containers) == (MTU, ("172.17.0.0/16",))
    assert state.ports == (
        Published("tcp", 8080, (Backend("10.0.0.2", 80, 1), Backend("10.0.0.3", 80, 2), Backend("fd00::3", 80, 2))),
        Published("udp", 53, (), "192.0.2.9", True),
    )
    assert made("c", ()) is None


def test_a_host_holds_what_it_publishes_in_the_families_it_has() -> None:
    assert places_of(TOLD.ports, ipv6=True) == {
        HostPort(ANY, "tcp", 8080): "web", HostPort(ANY6, "tcp", 8080): "web",
        HostPort("192.0.2.9", "udp", 53): "dns",
    }  # fmt: skip
    assert HostPort(ANY6, "tcp", 8080) not in places_of(TOLD.ports, ipv6=False)


def test_a_port_that_is_something_elses_is_left_out_in_both_families() -> None:
    web, dns = published_of(WEB), published_of(DNS)
    told = {WEB.called: web, DNS.called: dns}
    assert without(told, ()) == [web, dns]
    assert without(told, {HostPort(ANY6, "tcp", 8080): ""}) == [dns]
    assert without(told, {HostPort("192.0.2.9", "udp", 53): ""}) == [web]
    assert without(told, {HostPort(ANY, "udp", 53): ""}) == [web, dns]


def test_flows_to_a_task_that_answers_no_more_are_cut() -> None:
    told, head = MeshTold(), MeshHead(node_id="a")
    tls = replace(WEB, port=8443, backends=(THERE,))
    _, silent = told.take(whole_news(replace(TOLD, ports=(WEB, DNS, tls))), head)
    assert silent == set()
    lost = replace(WEB, backends=(replace(HERE, serving=False), replace(THERE, lost=True)))
    # The other port still says that it answers; then none does.
    assert told.take(MeshNews(ports=(lost,)), head)[1] == {"fd00::3"}
    assert told.take(MeshNews(gone_ports=(tls.called,)), head)[1] == {"10.0.0.3"}
    assert told.take(whole_news(replace(TOLD, ports=())), head)[1] == {"10.0.0.2"}


def test_the_journal_of_an_agent_that_was_told_everything_each_time_is_read_and_made_anew() -> None:
    class Before(Record, frozen=True, kw_only=True):
        node_id: str
        mesh: MeshInfo
        mtu: int = 0

    old = msgspec.msgpack.encode(Before(node_id="a", mesh=TOLD, mtu=1400))
    told, again = MeshTold(), MeshTold()
    rows = told.restore([("told", old)])
    assert rows["told"] is None
    assert again.restore((key, value) for key, value in rows.items() if value is not None) == {}
    assert again.ports == told.ports == {WEB.called: WEB, DNS.called: DNS}
    assert again.nodes == told.nodes and again.head == told.head == MeshHead(node_id="a", mtu=1400)
    gone = again.clear()
    assert set(gone.values()) == {None} and rows.keys() - {"told"} <= gone.keys()


def test_a_host_without_ipv6_takes_part_in_a_networks_ipv4() -> None:
    info = NetworkInfo(
        id="i" * 25, name="ingress", subnet="10.0.0.0/24", gateway="10.0.0.1", subnet6="fd00::/64", gateway6="fd00::1",
        vni=4097, mtu=1450, ingress=True,
    )
    assert [part.subnet for part in record_of(info, "192.0.2.1").families] == ["10.0.0.0/24", "fd00::/64"]
    narrow = record_of(info, "192.0.2.1", ipv6=False)
    assert [part.subnet for part in narrow.families] == ["10.0.0.0/24"]
    assert narrow.v6.chosen  # a task's IPv6 address is not refused, but not given either
