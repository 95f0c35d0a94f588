"""What `docker swarm init` and `join` say of networks: address pools, and the way of packets between nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import NAME, Cluster, View, eventually, swarmlet
from e2e_traces import traces

from swarmlet.local import cluster as clusters

OWN = f"{NAME}-pl"
#: busybox as PID 1 ignores the stop signal.
EVERYWHERE = ("--mode", "global", "--stop-grace-period", "0s", "busybox", "sleep", "600")


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Cluster]:
    """Two hosts that are in no cluster."""
    swarmlet("down", "--name", OWN)
    try:
        swarmlet("up", "--name", OWN, "--nodes", "2")
        cluster = Cluster(clusters.find(OWN))
        apart(cluster)
        yield cluster
    finally:
        swarmlet("down", "--name", OWN)
        assert traces(OWN) == []


@pytest.fixture
def hosts(two_hosts: Cluster) -> Iterator[Cluster]:
    yield two_hosts
    apart(two_hosts)


def apart(cluster: Cluster) -> None:
    for number in (2, 1):
        node = cluster.node(number)
        if node("info", "-f", "{{.Swarm.LocalNodeState}}") != "inactive":
            node("swarm", "leave", "--force")


def found(cluster: Cluster, *init: str, join: tuple[str, ...] = (), manager: str = "") -> None:
    """manager: where the second host finds the first one."""
    first, second = cluster.node(1), cluster.node(2)
    address = manager or cluster.host(1).address
    first("swarm", "init", *(() if manager else ("--advertise-addr", address)), *init)
    token = first("swarm", "join-token", "-q", "worker")
    own = () if manager else ("--advertise-addr", cluster.host(2).address)
    second("swarm", "join", "--token", token, *own, *join, f"[{address}]:2377" if ":" in address else f"{address}:2377")
    eventually(lambda: cluster.ready() == {"node-1", "node-2"})


def place(cluster: Cluster, number: int, service: str, network: str) -> tuple[View, str, str]:
    """A host's engine, the service's container there and its address in a network."""
    node = cluster.node(number)
    ident = eventually(lambda: node("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}"))
    shown = node("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}', ident)
    return node, ident, shown


def reaches(node: View, ident: str, target: str, *, size: int) -> bool:
    return node.run("exec", ident, "ping", "-c", "1", "-W", "1", "-s", str(size), target).returncode == 0


def test_subnets_are_cut_from_the_pools_and_their_end_is_told_and_cured(hosts: Cluster) -> None:
    found(hosts, "--default-addr-pool", "10.44.0.0/28", "--default-addr-pool", "10.45.0.0/29",
          "--default-addr-pool-mask-length", "29")  # fmt: skip
    node, view = hosts.node(1), hosts.view
    said = node.json("info", "-f", "{{json .Swarm.Cluster}}")
    assert (said["DefaultAddrPool"], said["SubnetSize"]) == (["10.44.0.0/28", "10.45.0.0/29"], 29)
    assert "SubnetSize: 29" in node("info")

    for name in ("one", "two", "three"):
        view("network", "create", "-d", "overlay", name)
    shown = view.json("network", "inspect", "one", "two", "three")
    assert [one["IPAM"]["Config"][0]["Subnet"] for one in shown] == ["10.44.0.0/29", "10.44.0.8/29", "10.45.0.0/29"]
    none_left = view.run("network", "create", "-d", "overlay", "four")
    assert none_left.returncode and b"could not find an available, non-overlapping IPv4 address" in none_left.stderr

    # A published port needs the mesh's network, for which no subnet is left.
    refused = view.run("service", "create", "-d", "--name", "open", "-p", "8080:80", "busybox", "sleep", "600")
    assert refused.returncode and b"non-overlapping IPv4 address pool" in refused.stderr
    view("network", "rm", "three")
    view("service", "create", "-d", "--name", "open", "-p", "8080:80", *EVERYWHERE)
    hosts.wait_running("open", 2)
    assert view.json("network", "inspect", "ingress")[0]["IPAM"]["Config"][0]["Subnet"] == "10.45.0.0/29"
    view("service", "rm", "open")


def test_a_task_without_an_address_says_so_and_gets_one_that_comes_free(hosts: Cluster) -> None:
    found(hosts, "--default-addr-pool", "10.44.0.0/24", "--default-addr-pool-mask-length", "29")
    view = hosts.view
    view("network", "create", "-d", "overlay", "small")
    # A /29 has five addresses beside the gateway's; one is the first service's own.
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", "small", *EVERYWHERE[2:])
    hosts.wait_running("web", 3)
    view("service", "create", "-d", "--name", "late", "--endpoint-mode", "dnsrr", "--replicas", "2", "--network",
         "small", *EVERYWHERE[2:])  # fmt: skip
    waiting = eventually(lambda: [task for task in hosts.tasks("late") if task["Error"]])
    assert [task["Error"] for task in waiting] == ['"no address is free in network small (10.44.0.0/29, 5 in use)"']
    assert waiting[0]["CurrentState"].startswith("New")
    view("service", "scale", "-d", "web=2")
    hosts.wait_running("late", 2)
    assert not [task for task in hosts.tasks("late") if task["Error"]]


def test_packets_take_the_port_and_the_addresses_that_were_named(hosts: Cluster) -> None:
    for number in (1, 2):
        hosts.exec(number, "ip", "addr", "add", f"198.51.100.{number}/24", "dev", "eth0")
    try:
        found(hosts, "--data-path-port", "7789", "--data-path-addr", "198.51.100.1",
              join=("--data-path-addr", "198.51.100.2"))  # fmt: skip
        view = hosts.view
        assert hosts.node(1).json("info", "-f", "{{json .Swarm.Cluster.DataPathPort}}") == 7789
        view("network", "create", "-d", "overlay", "net")
        view("service", "create", "-d", "--name", "all", "--network", "net", "-p", "8080:80", *EVERYWHERE)
        hosts.wait_running("all", 2)
        node, ident, _ = place(hosts, 1, "all", "net")
        assert eventually(lambda: reaches(node, ident, place(hosts, 2, "all", "net")[2], size=1422))
        for number in (1, 2):
            devices = hosts.exec(number, "ip", "-d", "link", "show", "type", "vxlan")
            ways = re.findall(r"local (\S+) .*dstport (\d+)", devices)
            assert len(ways) == 3 and set(ways) == {(f"198.51.100.{number}", "7789")}  # net, ingress and the mesh
        view("service", "rm", "all")
    finally:
        apart(hosts)
        for number in (1, 2):
            hosts.exec(number, "ip", "addr", "del", f"198.51.100.{number}/24", "dev", "eth0")


def test_what_cannot_be_founded_is_refused_and_leaves_the_host_as_it_was(hosts: Cluster) -> None:
    node = hosts.node(1)
    for options, words in (
        (("--default-addr-pool", "10.44.0.0/16", "--default-addr-pool", "10.44.8.0/24"), b"Pool overlaps"),
        (("--default-addr-pool", "10.44.0.0/26"), b"Subnet size is too small for pool: 24"),
        (("--default-addr-pool", "10.44.0.0/16", "--default-addr-pool-mask-length", "30"), b"out of range: 30"),
        (("--data-path-port", "80"), b"not in valid range (1024-49151) : 80"),
        (("--data-path-addr", "0.0.0.0"), b"data path address must be a non-zero IP address"),
        (("--data-path-addr", "nope0"), b"no such interface nope0"),
        (("--advertise-addr", "nope0"), b"no such interface nope0"),
    ):
        done = node.run("swarm", "init", *options)
        assert done.returncode and words in done.stderr, done.stderr
        assert node("info", "-f", "{{.Swarm.LocalNodeState}}") == "inactive"
    node("swarm", "init", "--advertise-addr", "eth0")
    assert node("info", "-f", "{{.Swarm.NodeAddr}}") == hosts.host(1).address
