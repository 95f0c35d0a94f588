"""Networks across hosts: records, addresses, traffic between every pair of nodes, names; and when things break."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from e2e_cluster import Cluster, View, eventually

NETWORK = "mesh"
#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
EVERYWHERE = ("--mode", "global", "--endpoint-mode", "dnsrr", "--network", NETWORK, *AT_ONCE)
#: Answers each connection with the container's own host name.
ANSWER = "while :; do hostname | nc -l -p 8080 -w 1; done"


@pytest.fixture
def network(cluster: Cluster) -> Iterator[str]:
    cluster.view("network", "create", "-d", "overlay", NETWORK)
    yield NETWORK
    services = cluster.view("service", "ls", "-q").split()
    if services:
        cluster.view("service", "rm", *services)
    eventually(lambda: cluster.view.run("network", "rm", NETWORK).returncode == 0)
    for number in range(1, 4):
        eventually(lambda number=number: links(cluster, number) == [])


def links(cluster: Cluster, number: int) -> list[str]:
    """What a host has of overlay networks."""
    return re.findall(r"^((?:ov|vx)-\S+)", cluster.exec(number, "ip", "-br", "link"), re.M)


def inside(cluster: Cluster, service: str) -> dict[int, tuple[View, str]]:
    """Node number -> its engine and the id of the service's container there."""
    found = {}
    for number in range(1, 4):
        node = cluster.node(number)
        if ident := node("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}").split():
            found[number] = (node, ident[0])
    return found


def addresses_of(cluster: Cluster, service: str) -> set[str]:
    """Of all its containers, however many a node has."""
    label = f"label=com.docker.swarm.service.name={service}"
    nodes = [cluster.node(number) for number in range(1, 4)]
    return {address(node, ident) for node in nodes for ident in node("ps", "-q", "--filter", label).split()}


def address(node: View, ident: str) -> str:
    return node("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}', ident)


def resolved(node: View, ident: str, name: str) -> set[str]:
    """IPv4 addresses of a name as a container sees it."""
    said = node.run("exec", ident, "nslookup", "-type=a", name).stdout.decode()
    return set(re.findall(r"^Address: (\d+\.\d+\.\d+\.\d+)$", said, re.M))


def reaches(node: View, ident: str, target: str, *, size: int = 56) -> bool:
    return node.run("exec", ident, "ping", "-c", "1", "-W", "1", "-s", str(size), target).returncode == 0


def test_a_network_is_created_shown_and_removed(cluster: Cluster) -> None:
    view = cluster.view
    view("network", "create", "-d", "overlay", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.254", "--attachable",
         "--label", "tier=back", "one")  # fmt: skip
    try:
        for shown_by in (view, cluster.node(1)):
            shown = shown_by.json("network", "inspect", "one")[0]
            assert (shown["Scope"], shown["Driver"], shown["Attachable"]) == ("swarm", "overlay", True)
            assert shown["IPAM"]["Config"] == [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.254"}]
            rows = shown_by.rows("network", "ls", "--filter", "label=tier=back", "--filter", "scope=swarm")
            assert [(row["Name"], row["Driver"], row["Scope"]) for row in rows] == [("one", "overlay", "swarm")]
            assert "one" not in [row["Name"] for row in shown_by.rows("network", "ls", "--filter", "scope=local")]
        overlap = view.run("network", "create", "-d", "overlay", "--subnet", "10.77.0.128/25", "two")
        assert overlap.returncode and b"Pool overlaps with other one on this address space" in overlap.stderr
        taken = cluster.node(1).run("network", "create", "-d", "overlay", "one")
        assert taken.returncode and b"network with name one already exists" in taken.stderr
        worker = cluster.node(2).run("network", "create", "-d", "overlay", "two")
        assert worker.returncode and b"This node is not a swarm manager" in worker.stderr
    finally:
        view("network", "rm", "one")
    assert view.run("network", "inspect", "one").returncode
    view("network", "create", "-d", "overlay", "two")
    assert "two" in view("network", "prune", "-f").split()


def test_a_network_in_use_cannot_be_removed(cluster: Cluster, network: str) -> None:
    cluster.view("service", "create", "-d", "--name", "user", *EVERYWHERE, "busybox", "sleep", "600")
    refused = cluster.view.run("network", "rm", network)
    assert refused.returncode and b"is in use by service" in refused.stderr


def test_every_pair_of_nodes_is_connected(cluster: Cluster, network: str) -> None:
    cluster.view("service", "create", "-d", "--name", "all", *EVERYWHERE, "busybox", "sh", "-c", ANSWER)
    cluster.wait_running("all", 3)
    places = inside(cluster, "all")
    addresses = {number: address(*place) for number, place in places.items()}
    assert len(set(addresses.values())) == 3
    tasks = cluster.view.json("inspect", *(task["ID"] for task in cluster.tasks("all")))
    told = {one["NetworksAttachments"][0]["Addresses"][0].partition("/")[0] for one in tasks}
    assert told == set(addresses.values())
    for node, ident in places.values():
        for target in addresses.values():
            # To the byte: 1450 less the headers of IP and ICMP.
            assert reaches(node, ident, target, size=1422)
    names = {node("exec", ident, "hostname") for node, ident in places.values()}
    node, ident = places[1]
    heard = eventually(
        lambda: {node.run("exec", ident, "sh", "-c", f"nc -w 2 {target} 8080 </dev/null").stdout.decode().strip()
                 for target in addresses.values()} - {""} == names
    )  # fmt: skip
    assert heard


def test_names_follow_the_tasks(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", f"name={network},alias=www",
         "--endpoint-mode", "dnsrr", *AT_ONCE, "busybox", "sleep", "600")  # fmt: skip
    view("service", "create", "-d", "--name", "asker", *EVERYWHERE, "busybox", "sleep", "600")
    cluster.wait_running("asker", 3)
    cluster.wait_running("web", 3)
    web = addresses_of(cluster, "web")
    assert len(web) == 3
    for node, ident in inside(cluster, "asker").values():
        for name in ("web", "www", "tasks.web", f"web.{network}"):
            eventually(lambda node=node, ident=ident, name=name: resolved(node, ident, name) == web)
        slots = [resolved(node, ident, f"{slot}.web") for slot in (1, 2, 3)]
        assert set.union(*slots) == web and all(len(found) == 1 for found in slots)
    view("service", "scale", "-d", "web=1")
    for node, ident in inside(cluster, "asker").values():
        eventually(lambda node=node, ident=ident: len(resolved(node, ident, "web")) == 1)
    view("service", "scale", "-d", "web=0")
    node, ident = inside(cluster, "asker")[1]
    eventually(lambda: b"NXDOMAIN" not in node.run("exec", ident, "nslookup", "-type=a", "web").stdout
               and not resolved(node, ident, "web"))  # fmt: skip


def test_a_moved_task_is_reached_at_its_new_place(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "asker", *EVERYWHERE, "busybox", "sleep", "600")
    cluster.wait_running("asker", 3)
    view("service", "create", "-d", "--name", "mover", "--network", network, "--endpoint-mode", "dnsrr",
         "--constraint", "node.hostname==node-2", *AT_ONCE, "busybox", "sleep", "600")  # fmt: skip
    cluster.wait_running("mover", 1)
    for home in ("node-2", "node-3"):
        view("service", "update", "-d", "--constraint-rm", "node.hostname==node-2", "--constraint-add",
             f"node.hostname=={home}", "mover")  # fmt: skip
        number = int(home[-1])
        place = eventually(lambda number=number: inside(cluster, "mover").get(number))
        for node, ident in inside(cluster, "asker").values():
            eventually(lambda node=node, ident=ident, place=place: resolved(node, ident, "mover") == {address(*place)})
            assert reaches(node, ident, "mover")


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[None]:
    """An agent that takes its time to come back on a busy machine does not lose its tasks."""
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "10s")
    yield
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "1s")


@pytest.mark.usefixtures("patient")
def test_a_killed_agent_leaves_traffic_alone_and_finds_its_networks_again(cluster: Cluster, network: str) -> None:
    cluster.view("service", "create", "-d", "--name", "all", *EVERYWHERE, "busybox", "sleep", "600")
    cluster.wait_running("all", 3)
    places = inside(cluster, "all")
    node, ident = places[1]
    target = address(*places[2])
    pinging = node.popen("exec", ident, "ping", "-i", "0.1", "-c", "30", target, stdout=-1)
    cluster.exec(2, "kill", "-9", str(cluster.pid(2, "swarmlet-agent")))
    said = pinging.communicate(timeout=30)[0]
    assert b"30 packets received" in said
    other = cluster.node(2)
    eventually(lambda: other.run("ps").returncode == 0)
    eventually(lambda: resolved(other, places[2][1], "all") == {address(*place) for place in places.values()})
    assert reaches(other, places[2][1], address(node, ident))


def test_a_healed_partition_leaves_no_stale_name(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "asker", *EVERYWHERE, "busybox", "sleep", "600")
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--replicas-max-per-node", "2", "--network",
         network, "--endpoint-mode", "dnsrr", *AT_ONCE, "busybox", "sleep", "600")  # fmt: skip
    cluster.wait_running("web", 3)
    cluster.wait_running("asker", 3)
    cluster.command("cut", 3)

    def agreed(*numbers: int) -> bool:
        """Whether these nodes' containers of now are told all running replicas, and nothing else."""
        askers = inside(cluster, "asker")
        web: set[str] = set()
        for number in (1, 2):
            node = cluster.node(number)
            idents = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web").split()
            web |= {address(node, ident) for ident in idents}
        told = [resolved(*askers[number], "web") for number in numbers if number in askers]
        return len(web) == 3 and "" not in web and told == [web] * len(numbers)

    try:
        eventually(lambda: cluster.ready() == {"node-1", "node-2"})
        eventually(lambda: agreed(1, 2))
    finally:
        cluster.command("heal", 3)
    eventually(lambda: len(cluster.ready()) == 3)
    eventually(lambda: agreed(1, 2, 3))
    web = resolved(*inside(cluster, "asker")[3], "web")
    assert all(reaches(*place, target) for place in inside(cluster, "asker").values() for target in web)


def test_a_full_network_is_shown_and_cured(cluster: Cluster) -> None:
    view = cluster.view
    view("network", "create", "-d", "overlay", "--subnet", "10.78.0.0/29", "small")
    try:
        view("service", "create", "-d", "--name", "many", "--replicas", "6", "--network", "small",
             "--endpoint-mode", "dnsrr", *AT_ONCE, "busybox", "sleep", "600")  # fmt: skip
        eventually(lambda: len(cluster.running("many")) == 5)
        waiting = eventually(lambda: [task for task in cluster.tasks("many") if task["Error"]])
        assert "no address is free in network small (10.78.0.0/29, 5 in use)" in waiting[0]["Error"]
        view("service", "scale", "-d", "many=5")
        cluster.wait_running("many", 5)
    finally:
        view("service", "rm", "many")
        eventually(lambda: view.run("network", "rm", "small").returncode == 0)
