"""Plain containers on networks across hosts: addresses, names, ports and traffic, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_project import Project
from e2e_cluster import Cluster, View, eventually
from network_tools import address, fetch, get, serve
from wide_tools import AT_ONCE, WEB, attachable, names_of, reaches, shown, sleeper


@pytest.fixture
def network(cluster: Cluster) -> Iterator[str]:
    with attachable(cluster) as name:
        yield name


def test_containers_of_all_nodes_reach_each_other_by_name(cluster: Cluster, network: str) -> None:
    nodes = {number: cluster.node(number) for number in (1, 2, 3)}
    for number, node in nodes.items():
        sleeper(node, f"plain{number}", "--network", network, "--network-alias", "both", "--hostname", f"host{number}")
    places = {number: address(node, f"plain{number}", network) for number, node in nodes.items()}
    assert shown(cluster) == {f"plain{number}": place for number, place in places.items()}
    assert len(set(places.values())) == 3
    for number, node in nodes.items():
        for other in nodes:
            for name in (f"plain{other}", f"host{other}", f"plain{other}.{network}"):
                eventually(lambda node=node, number=number, name=name, other=other:
                           names_of(node, f"plain{number}", name) == {places[other]})  # fmt: skip
            assert reaches(node, f"plain{number}", f"plain{other}")
        assert names_of(node, f"plain{number}", "both") == set(places.values())
    said = nodes[1]("exec", "plain1", "nslookup", places[3])
    assert f"plain3.{network}" in said
    # A node shows its own containers; the network is there as long as it has some.
    assert [one["Name"] for one in nodes[2].json("network", "inspect", network)[0]["Containers"].values()] == ["plain2"]
    assert network in nodes[2]("network", "ls", "--format", "{{.Name}}").split()
    nodes[2]("rm", "-f", "plain2")
    eventually(lambda: network not in nodes[2]("network", "ls", "--format", "{{.Name}}").split())
    eventually(lambda: "plain2" not in shown(cluster))
    eventually(lambda: names_of(nodes[1], "plain1", "plain2") == set())


def test_containers_and_services_reach_each_other(cluster: Cluster, network: str) -> None:
    view, node = cluster.view, cluster.node(2)
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", network, *AT_ONCE, *WEB)
    cluster.wait_running("web", 3)
    node("run", "-d", "--init", "--label", "test=attachable", "--name", "plain", "--network", network, *WEB)
    eventually(lambda: len(names_of(node, "plain", "tasks.web")) == 3)
    assert len(names_of(node, "plain", "web")) == 1
    heard = eventually(lambda: len(found := {get(node, "plain", "http://web/") for _ in range(12)}) == 3 and found)
    assert len(heard) == 3
    sleeper(node, "later")
    node("network", "connect", network, "later")
    assert get(node, "later", "http://web/").strip() in {each.strip() for each in heard}
    for task in cluster.tasks("web"):
        home = cluster.node(int(task["Node"][-1]))
        ident = home("ps", "-q", "--filter", f"label=com.docker.swarm.task.id={task['ID']}")
        assert get(home, ident, "http://plain/").strip() == node("exec", "plain", "hostname")


def test_the_whole_cluster_runs_containers_on_it_and_inspects_them(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--network", network, *AT_ONCE, *WEB)
    cluster.wait_running("web", 1)
    for number in (1, 2, 3):
        sleeper(view, f"plain{number}", "-e", f"constraint:node.hostname==node-{number}", "--network", network)
        assert f"plain{number}" in cluster.node(number)("ps", "--format", "{{.Names}}").split()
    assert get(view, "plain3", "http://web/")
    for shown_by in (view, cluster.node(1)):
        told = shown_by.json("network", "inspect", "--verbose", network)[0]
        endpoints = {task["Name"]: task["EndpointIP"] for task in told["Services"][""]["Tasks"]}
        assert endpoints == {f"plain{number}": address(view, f"plain{number}", network) for number in (1, 2, 3)}
        assert len(told["Services"]["web"]["Tasks"]) == 1 and len(told["Peers"]) == 3
    view("rm", "-f", "plain1", "plain2", "plain3")
    eventually(lambda: "" not in view.json("network", "inspect", "--verbose", network)[0]["Services"])


STACK = """\
version: "3.8"
services:
  api:
    image: busybox
    command: sh -c "mkdir -p /www; echo stack > /www/index.html; exec httpd -f -p 80 -h /www"
    networks: [back]
    deploy: {replicas: 2}
    stop_grace_period: 0s
networks:
  back: {driver: overlay, attachable: true}
"""
PROJECT = """\
version: "3.8"
services:
  client:
    image: busybox
    init: true
    command: sleep 600
    networks: {shop_back: {aliases: [helper]}}
networks:
  shop_back: {external: true}
"""


@pytest.mark.parametrize("where", ["node", "cluster"])
def test_a_project_joins_the_attachable_network_of_a_stack(cluster: Cluster, where: str, tmp_path: Path) -> None:
    view = cluster.view if where == "cluster" else cluster.node(1)
    done = cluster.view.run("stack", "deploy", "--detach=true", "-c", "-", "shop", input=STACK.encode())
    assert done.returncode == 0, done.stderr
    compose = Project(tmp_path, view, name="extern")
    try:
        cluster.wait_running("shop_api", 2)
        compose.write(PROJECT)
        compose("up", "-d")
        (client,) = compose.ids("client")
        assert get(view, client, "http://api/") == "stack"
        sleeper(cluster.node(3), "asker", "--network", "shop_back")
        assert reaches(cluster.node(3), "asker", "helper")
        # The stack's network stays while somebody else is on it.
        refused = cluster.view.run("stack", "rm", "shop")
        assert b"is in use by container" in refused.stderr + refused.stdout
    finally:
        compose("down", "-t", "0")
        cluster.node(3).run("rm", "-f", "asker")
        eventually(lambda: cluster.view.run("stack", "rm", "shop").returncode == 0)
        eventually(lambda: "shop_back" not in cluster.view("network", "ls", "--format", "{{.Name}}").split())


def test_what_cannot_be_attached_is_refused_and_leaves_nothing(cluster: Cluster, network: str) -> None:
    node = cluster.node(2)
    cluster.view("network", "create", "-d", "overlay", "closed")
    try:
        for ref, words in (
            ("closed", "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed "
                       "not manually attachable"),
            ("nowhere", "network nowhere not found"),
            ("ingress", "not"),
        ):  # fmt: skip
            refused = node.run("run", "--rm", "--network", ref, "busybox", "true")
            assert refused.returncode and words.encode() in refused.stderr, refused.stderr
        sleeper(node, "plain", "--network", network, "--ip", "10.66.0.77")
        for number in (1, 2):
            taken = cluster.node(number).run("run", "--rm", "--network", network, "--ip", "10.66.0.77", "busybox")
            assert taken.returncode and b"Address already in use" in taken.stderr
        foreign = node.run("run", "--rm", "--network", network, "--ip", "10.99.0.1", "busybox")
        assert foreign.returncode and b"no configured subnet" in foreign.stderr
        # One network of two refuses: nothing of the other is kept.
        both = node.run("run", "--rm", "--network", network, "--network", "closed", "busybox", "true")
        assert both.returncode and b"not manually attachable" in both.stderr
        assert shown(cluster) == {"plain": "10.66.0.77"}
        in_use = cluster.view.run("network", "rm", network)
        assert in_use.returncode and b"is in use by container plain" in in_use.stderr
        assert network not in cluster.view("network", "prune", "-f")
    finally:
        cluster.view.run("network", "rm", "closed")


def test_a_full_network_is_told_at_once(cluster: Cluster) -> None:
    node = cluster.node(2)
    cluster.view("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.67.0.0/30", "tiny")
    try:
        sleeper(node, "first", "--network", "tiny")
        for number in (1, 2):
            full = cluster.node(number).run("run", "--rm", "--network", "tiny", "busybox", "true")
            words = "Could not attach to network tiny: no address is free in network tiny (10.67.0.0/30, 1 in use)"
            assert full.returncode and words.encode() in full.stderr, full.stderr
        node("rm", "-f", "first")
        cluster.node(1)("run", "--rm", "--network", "tiny", "busybox", "true")
    finally:
        node.run("rm", "-f", "first")
        eventually(lambda: cluster.view.run("network", "rm", "tiny").returncode == 0)


def test_a_restart_keeps_the_address_and_a_stop_frees_it(cluster: Cluster, network: str) -> None:
    node = cluster.node(3)
    sleeper(node, "plain", "--network", network)
    before = address(node, "plain", network)
    node("restart", "-t", "0", "plain")
    assert address(node, "plain", network) == before
    node("stop", "-t", "0", "plain")
    eventually(lambda: shown(cluster) == {})
    sleeper(cluster.node(1), "other", "--network", network, "--ip", before)
    node("start", "plain")
    assert address(node, "plain", network) != before
    node("rename", "plain", "renamed")
    eventually(lambda: set(shown(cluster)) == {"renamed", "other"})
    eventually(lambda: names_of(cluster.node(1), "other", "renamed") == {address(node, "renamed", network)})


def test_running_containers_are_connected_and_disconnected(cluster: Cluster, view: View, network: str) -> None:
    sleeper(view, "plain", "-p", "127.0.0.1::80")
    view("network", "connect", "--alias", "second", "--ip", "10.66.0.50", network, "plain")
    shown_networks = json.loads(view("inspect", "-f", "{{json .NetworkSettings.Networks}}", "plain"))
    assert shown_networks[network]["IPAddress"] == "10.66.0.50" and "bridge" in shown_networks
    asker = cluster.node(1)
    sleeper(asker, "asker", "--network", network)
    eventually(lambda: names_of(asker, "asker", "second") == {"10.66.0.50"})
    assert reaches(asker, "asker", "plain")
    again = view.run("network", "connect", network, "plain")
    assert again.returncode and b"already exists in network" in again.stderr
    view("network", "disconnect", network, "plain")
    eventually(lambda: set(shown(cluster)) == {"asker"})
    eventually(lambda: names_of(asker, "asker", "second") == set())
    # While it does not run it is connected for its next start, and taken off again.
    view("stop", "-t", "0", "plain")
    view("network", "connect", network, "plain")
    unknown = view.run("network", "connect", "nowhere", "plain")
    assert unknown.returncode and b"network nowhere not found" in unknown.stderr
    view("start", "plain")
    eventually(lambda: set(shown(cluster)) == {"asker", "plain"})
    view("stop", "-t", "0", "plain")
    view("network", "disconnect", network, "plain")
    view("start", "plain")
    assert set(shown(cluster)) == {"asker"}


def test_a_container_that_left_its_first_network_starts_without_it(cluster: Cluster, network: str) -> None:
    node = cluster.node(2)
    sleeper(node, "mover", "--network", network)
    node("network", "connect", "bridge", "mover")
    node("network", "disconnect", network, "mover")
    node("restart", "-t", "0", "mover")
    assert list(node.json("inspect", "mover")[0]["NetworkSettings"]["Networks"]) == ["bridge"]
    eventually(lambda: shown(cluster) == {})
    # Without any it is back on the one of its mode, as on Docker.
    node("network", "disconnect", "bridge", "mover")
    node("restart", "-t", "0", "mover")
    assert set(shown(cluster)) == {"mover"}


def test_ports_and_the_way_out_work_without_a_bridge(cluster: Cluster, network: str) -> None:
    node, other = cluster.node(2), cluster.host(1).address
    serve(node, "plain", "--network", network, "-p", "8099:80", "--label", "test=attachable")
    eventually(lambda: fetch(cluster, 1, f"http://{cluster.host(2).address}:8099/") == "plain")
    assert fetch(cluster, 2, "http://127.0.0.1:8099/") == "plain"
    assert reaches(node, "plain", other)
    node("run", "-d", "--name", "mac", "--label", "test=attachable", "--network", network, "--mac-address",
         "02:42:00:00:00:99", "busybox", "sleep", "600")  # fmt: skip
    sleeper(cluster.node(3), "asker", "--network", network)
    eventually(lambda: reaches(cluster.node(3), "asker", "mac"))
    assert "02:42:00:00:00:99" in node("exec", "mac", "ip", "link", "show", "eth0")
