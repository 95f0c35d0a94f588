"""Networks across hosts with IPv6: addresses, names, virtual addresses, and traffic between every pair of nodes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from e2e_cluster import Cluster, View, eventually
from network_tools import udp_ask, udp_echo

NETWORK = "six"
SUBNET, SUBNET6 = "10.66.0.0/24", "fd66::/64"
#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
#: An HTTP server of both families that answers with its container's host name.
WEB = "mkdir -p /w; hostname >/w/index.html; exec httpd -f -p '[::]:8080' -h /w"
ASK = r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 {} 8080 | tail -n 1"


@pytest.fixture
def network(cluster: Cluster) -> Iterator[str]:
    cluster.view("network", "create", "-d", "overlay", "--attachable", "--ipv6", "--subnet", SUBNET, "--subnet",
                 SUBNET6, NETWORK)  # fmt: skip
    yield NETWORK
    if services := cluster.view("service", "ls", "-q").split():
        cluster.view("service", "rm", *services)
    eventually(lambda: cluster.view.run("network", "rm", NETWORK).returncode == 0)


Places = dict[int, tuple[View, str]]


def on_each_node(cluster: Cluster, service: str) -> list[tuple[View, str]]:
    """All containers of a service."""
    label = f"label=com.docker.swarm.service.name={service}"
    nodes = [cluster.node(number) for number in (1, 2, 3)]
    return [(node, ident) for node in nodes for ident in node("ps", "-q", "--filter", label).split()]


def inside(cluster: Cluster, service: str) -> Places:
    """Node number -> its engine and the id of a service's container there."""
    label = f"label=com.docker.swarm.service.name={service}"
    nodes = {number: cluster.node(number) for number in (1, 2, 3)}
    found = {number: node("ps", "-q", "--filter", label).split() for number, node in nodes.items()}
    return {number: (nodes[number], ids[0]) for number, ids in found.items() if ids}


def addresses(node: View, ident: str) -> tuple[str, str]:
    place = node.json("inspect", ident)[0]["NetworkSettings"]["Networks"][NETWORK]
    return place["IPAddress"], place["GlobalIPv6Address"]


def resolved(node: View, ident: str, name: str, kind: str = "aaaa") -> set[str]:
    said = node.run("exec", ident, "nslookup", f"-type={kind}", name).stdout.decode()
    return set(re.findall(r"^Address: (\S+)$", said.partition("Name:")[2], re.M))


def ask(node: View, ident: str, target: str, times: int = 1) -> set[str]:
    loop = f"for i in $(seq {times}); do echo \"$({ASK.format(target)})\"; done"
    return set(node.run("exec", ident, "sh", "-c", loop, timeout=120).stdout.decode().split("\n")[:times])


def pings(node: View, ident: str, target: str, *, size: int = 56) -> bool:
    return node.run("exec", ident, "ping", "-6", "-c", "1", "-W", "1", "-s", str(size), target).returncode == 0


def test_a_network_with_ipv6_shows_both_subnets(cluster: Cluster, network: str) -> None:
    for view in (cluster.view, cluster.node(1)):
        shown = view.json("network", "inspect", network)[0]
        assert shown["EnableIPv6"] is True and shown["EnableIPv4"] is True
        assert shown["IPAM"]["Config"] == [
            {"Subnet": SUBNET, "Gateway": "10.66.0.1"}, {"Subnet": SUBNET6, "Gateway": "fd66::1"},
        ]  # fmt: skip
    cluster.view("network", "create", "-d", "overlay", "--ipv6", "chosen")
    try:
        config = cluster.view.json("network", "inspect", "chosen")[0]["IPAM"]["Config"]
        assert len(config) == 2 and config[1]["Subnet"].startswith("fd") and config[1]["Subnet"].endswith("/64")
    finally:
        cluster.view("network", "rm", "chosen")
    taken = cluster.view.run("network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd66::/80", "no")
    assert taken.returncode and b"Pool overlaps with other one on this address space" in taken.stderr
    bad = cluster.view.run("network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd67::1/64", "no")
    assert bad.returncode and b"it should be fd67::/64" in bad.stderr


def test_every_pair_of_nodes_is_connected_by_address_and_by_name(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "all", "--mode", "global", "--network", network, *AT_ONCE,
         "busybox", "sh", "-c", WEB)  # fmt: skip
    cluster.wait_running("all", 3)
    places = inside(cluster, "all")
    own = {number: addresses(*place) for number, place in places.items()}
    told = [task["NetworksAttachments"][0]["Addresses"] for task in
            view.json("inspect", *(task["ID"] for task in cluster.tasks("all")))]  # fmt: skip
    assert {tuple(address.partition("/")[0] for address in both) for both in told} == set(own.values())
    assert all(address.endswith(("/24", "/64")) for both in told for address in both)
    attached = view.json("network", "inspect", network)[0]["Containers"].values()
    assert {(one["IPv4Address"], one["IPv6Address"]) for one in attached} == {tuple(both) for both in told}

    for node, ident in places.values():
        for _, target in own.values():
            # To the byte: 1450 less the headers of IPv6 and ICMPv6.
            assert eventually(lambda node=node, ident=ident, target=target: pings(node, ident, target, size=1402))
        assert resolved(node, ident, "tasks.all") == {six for _, six in own.values()}
        assert resolved(node, ident, "tasks.all", "a") == {four for four, _ in own.values()}
        assert "fd66::1" in node("exec", ident, "ip", "-6", "route", "show", "default")
    node, ident = places[1]
    other = places[2][1]
    name = cluster.node(2)("inspect", "-f", "{{.Name}}", other).removeprefix("/")
    assert resolved(node, ident, name) == {own[2][1]} and pings(node, ident, name)
    assert name in node("exec", ident, "nslookup", own[2][1])
    with udp_echo(*places[3], 9000, "three"):
        assert [udp_ask(node, ident, target, 9000) for target in own[3]] == ["three ?", "three ?"]
    # Nobody is asked for by flooding: neighbours are answered for by the node's own bridge.
    for number in (1, 2, 3):
        ports = cluster.exec(number, "bridge", "-d", "link")
        assert re.search(r"vx-.*\n.*mcast_flood off.*neigh_suppress on", ports), ports


def test_a_service_has_a_virtual_address_of_each_family(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", network, *AT_ONCE,
         "busybox", "sleep", "600")  # fmt: skip
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", f"name={network},alias=www",
         *AT_ONCE, "busybox", "sh", "-c", WEB)  # fmt: skip
    cluster.wait_running("asker", 3)
    cluster.wait_running("web", 3)
    vips = [vip["Addr"] for vip in view.json("service", "inspect", "web")[0]["Endpoint"]["VirtualIPs"]]
    assert len(vips) == 2 and vips[0].endswith("/24") and vips[1].endswith("/64")
    four, six = (vip.partition("/")[0] for vip in vips)
    names = {node("inspect", "-f", "{{.Config.Hostname}}", ident) for node, ident in on_each_node(cluster, "web")}
    assert len(names) == 3
    for node, ident in inside(cluster, "asker").values():
        for name in ("web", "www", f"web.{network}"):
            assert (resolved(node, ident, name), resolved(node, ident, name, "a")) == ({six}, {four})
        for target in (six, four, "web"):
            eventually(lambda node=node, ident=ident, target=target: ask(node, ident, target, 24) == names)
    with contextlib.ExitStack() as stack:
        for place in on_each_node(cluster, "web"):
            stack.enter_context(udp_echo(*place, 9000, place[1]))
        node, ident = inside(cluster, "asker")[1]
        for target in (six, four):
            eventually(lambda target=target: len({udp_ask(node, ident, target, 9000) for _ in range(20)} - {""}) == 3)
    view("service", "scale", "-d", "web=0")
    node, ident = inside(cluster, "asker")[2]
    eventually(lambda: b"refused" in node.run("exec", ident, "sh", "-c", f"nc -w 5 {six} 8080 </dev/null").stderr)


def test_plain_containers_have_an_address_of_each_family(cluster: Cluster, network: str) -> None:
    one, two = cluster.node(1), cluster.node(2)
    one("run", "-d", "--name", "plain1", "--network", network, "--ip6", "fd66::77", "busybox", "sleep", "600")
    two("run", "-d", "--name", "plain2", "--network", network, "busybox", "sleep", "600")
    four, six = addresses(one, "plain1")
    assert six == "fd66::77" and addresses(two, "plain2")[1]
    assert (resolved(two, "plain2", "plain1"), resolved(two, "plain2", "plain1", "a")) == ({six}, {four})
    assert eventually(lambda: pings(two, "plain2", "plain1"))
    taken = two.run("run", "--rm", "--network", network, "--ip6", "fd66::77", "busybox", "true")
    assert taken.returncode and b"Address already in use" in taken.stderr
    before = addresses(two, "plain2")
    two("restart", "-t", "0", "plain2")
    assert addresses(two, "plain2") == before
    one("rm", "-f", "plain1")
    two("rm", "-f", "plain2")


def test_a_killed_agent_finds_its_ipv6_networks_again_and_a_task_that_moves_is_found(
    cluster: Cluster, network: str
) -> None:
    view = cluster.view
    view("swarm", "update", "--dispatcher-heartbeat", "10s")
    try:
        view("service", "create", "-d", "--name", "all", "--mode", "global", "--endpoint-mode", "dnsrr", "--network",
             network, *AT_ONCE, "busybox", "sh", "-c", WEB)  # fmt: skip
        cluster.wait_running("all", 3)
        places = inside(cluster, "all")
        target = addresses(*places[2])[1]
        node, ident = places[1]
        assert eventually(lambda: pings(node, ident, target))
        pinging = node.popen("exec", ident, "ping", "-6", "-i", "0.1", "-c", "30", target, stdout=-1)
        cluster.exec(2, "kill", "-9", str(cluster.pid(2, "swarmlet-agent")))
        assert b"30 packets received" in pinging.communicate(timeout=30)[0]
        other, there = places[2]
        eventually(lambda: other.run("ps").returncode == 0)
        everybody = {addresses(*place)[1] for place in places.values()}
        eventually(lambda: resolved(other, there, "all") == everybody)
        other("rm", "-f", there)
        moved = eventually(lambda: (now := inside(cluster, "all")).get(2) and now[2][1] != there and now[2])
        fresh = eventually(lambda: addresses(*moved)[1])
        assert eventually(lambda: pings(node, ident, fresh))
        assert eventually(lambda: pings(*moved, addresses(*places[3])[1]))
    finally:
        view("swarm", "update", "--dispatcher-heartbeat", "1s")
