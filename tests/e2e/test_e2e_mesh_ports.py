"""Whose a port is: ranges, chosen numbers, clashes between services, containers and processes, single addresses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from e2e_cluster import Cluster, View, eventually
from mesh_peer import OPTIONS, PEER
from test_e2e_mesh_traffic import NODES, ask, names, refused

WEB = ("busybox", "sh", "-c", "mkdir -p /w; hostname >/w/index.html; exec httpd -f -p 80 -h /w")
AT_ONCE = ("--stop-grace-period", "0s")


def page(cluster: Cluster, number: int, port: int) -> str:
    """What a web server behind a node's port shows; "" if none answers."""
    url = f"http://{cluster.host(number).address}:{port}/"
    done = subprocess.run(["curl", "-s", "-m", "3", url], capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""


def endpoint_ports(cluster: Cluster, service: str) -> list[tuple[int, int]]:
    """(published, target) of each port, in order."""
    shown = cluster.view.json("service", "inspect", service)[0]["Endpoint"].get("Ports", [])
    return sorted((port["PublishedPort"], port["TargetPort"]) for port in shown)


def node_message(cluster: Cluster, number: int) -> str:
    """What `docker node inspect` says of a node's state."""
    host = cluster.host(number).name
    return str(cluster.view.json("node", "inspect", host)[0]["Status"].get("Message", ""))


def test_a_range_is_published_port_by_port_and_open_ports_keep_their_number(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "peer", "-p", "18200-18202:80-82", "-p", "90",
         *OPTIONS, "-e", "PORT=81", *PEER)  # fmt: skip
    cluster.wait_running("peer", 1)
    ports = endpoint_ports(cluster, "peer")
    assert ports[:3] == [(18200, 80), (18201, 81), (18202, 82)]
    chosen, target = ports[3]
    assert target == 90 and 30000 <= chosen <= 32767
    for number in NODES:
        host = cluster.host(number).address
        assert eventually(lambda host=host: ask(host, 18201))
        assert refused(host, 18200)  # nobody listens there inside
    view("service", "update", "-d", "--publish-add", "91", "--env-add", "V=2", "peer")
    after = endpoint_ports(cluster, "peer")
    assert (chosen, 90) in after and len(after) == 5 and after[:3] == ports[:3]
    view("service", "update", "-d", "--publish-rm", "91", "peer")
    assert endpoint_ports(cluster, "peer") == ports


def test_services_do_not_share_a_port_and_a_removed_ones_is_free_at_once(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "one", "-p", "18203:80", *WEB)
    ident = view("service", "inspect", "-f", "{{.ID}}", "one")
    for publish in ("18203:81", "published=18203,target=81,mode=host"):
        done = view.run("service", "create", "-d", "--publish", publish, *AT_ONCE, *WEB)
        assert done.returncode and done.stderr.decode().strip().endswith(
            f"port '18203' is already in use by service 'one' ({ident}) as an ingress port"
        ), done.stderr
    view("service", "create", "-d", "--name", "other", "-p", "18204:80", *AT_ONCE, *WEB)
    done = view.run("service", "update", "-d", "--publish-add", "18203:80", "other")
    assert done.returncode and b"already in use by service 'one'" in done.stderr
    cluster.wait_running("one", 1)
    view("service", "rm", "one")  # its task ignores the stop signal for its whole grace period
    view("service", "create", "-d", "--name", "two", "-p", "18203:80", *AT_ONCE, *WEB)
    cluster.wait_running("two", 1)
    assert eventually(lambda: page(cluster, 3, 18203))


def test_tasks_with_a_port_of_the_host_are_on_different_nodes_and_what_is_too_many_waits(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "hosty", "--replicas", "4", *AT_ONCE,
                 "--publish", "published=18205,target=80,mode=host", *WEB)  # fmt: skip
    eventually(lambda: len(cluster.running("hosty")) == 3)
    assert len({task["Node"] for task in cluster.running("hosty")}) == 3
    waiting = eventually(lambda: [task for task in cluster.tasks("hosty") if task["Error"]])
    assert waiting and waiting[0]["CurrentState"].startswith("Pending")
    assert "no suitable node (host-mode port already in use on 3 nodes)" in waiting[0]["Error"]


def test_a_task_whose_port_of_the_host_a_container_has_says_which(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "squatter", "-p", "18206:80", *WEB)
    cluster.view("service", "create", "-d", "--name", "hosty", "--constraint", "node.hostname==node-2",
                 "--restart-condition", "none", "--publish", "published=18206,target=80,mode=host", *WEB)  # fmt: skip
    error = eventually(lambda: next(
        (row["Error"] for row in cluster.view.rows("service", "ps", "hosty", "--no-trunc") if row["Error"]), ""
    ))  # fmt: skip
    assert "port is already allocated (container squatter)" in error


def test_a_container_is_refused_a_port_of_the_mesh_and_the_service_named(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "-p", "18207:80", *AT_ONCE, *WEB)
    cluster.wait_running("web", 1)
    for number in NODES:
        node = cluster.node(number)
        eventually(lambda number=number: page(cluster, number, 18207))
        done = node.run("run", "--rm", "-p", "18207:80", *WEB)
        assert done.returncode == 125, done
        assert b"18207 failed: port is already allocated (service web, on every node)" in done.stderr
    cluster.view("service", "rm", "web")
    eventually(lambda: cluster.node(1).run("run", "-d", "-p", "18207:80", *WEB).returncode == 0)


def test_a_port_that_something_else_has_on_a_node_is_told_of_and_taken_when_it_is_free(cluster: Cluster) -> None:
    """On the other nodes it is published all the same."""
    node = cluster.node(2)
    node("run", "-d", "--name", "squatter", "--hostname", "squatter", "-p", "18208:80", *WEB)
    done = cluster.view.run(
        "service", "create", "-d", "--name", "web", "--hostname", "web", "-p", "18208:80", *AT_ONCE, *WEB
    )
    said = "port 18208/tcp of service web is not published on this node: container squatter has it"
    assert done.returncode == 0 and f"node node-2: {said}" in done.stderr.decode()
    cluster.wait_running("web", 1)

    assert eventually(lambda: page(cluster, 1, 18208) == page(cluster, 3, 18208) == "web")
    assert page(cluster, 2, 18208) == "squatter"
    assert eventually(lambda: node_message(cluster, 2) == said)
    assert node_message(cluster, 1) == ""
    node("rm", "-f", "squatter")
    assert eventually(lambda: page(cluster, 2, 18208) == "web")
    assert eventually(lambda: node_message(cluster, 2) == "")


def test_a_port_is_open_on_the_address_that_a_label_names_and_another_services_on_another(cluster: Cluster) -> None:
    view, host = cluster.view, cluster.host(2)
    second = host.address.rpartition(".")[0] + ".202"
    cluster.exec(2, "ip", "addr", "add", f"{second}/24", "dev", "eth0")
    try:
        for name, address in (("one", host.address), ("two", second)):
            view("service", "create", "-d", "--name", name, "--label", f"swarmlet.publish.18209.host-ip={address}",
                 "-p", "18209:80", *OPTIONS, *PEER)  # fmt: skip
            cluster.wait_running(name, 1)
        for name, address in (("one", host.address), ("two", second)):
            assert eventually(lambda a=address, n=name: {ask(a, 18209).split()[0]} == names(cluster, n))
        assert refused(cluster.host(1).address, 18209)
        raw = subprocess.run(
            ["curl", "-s", "--unix-socket", str(view.socket), "http://swarmlet/v1.50/services/two"],
            capture_output=True, timeout=10, check=True,
        )
        shown = json.loads(raw.stdout)["Endpoint"]["Ports"][0]
        assert (shown["PublishedPort"], shown["HostIP"]) == (18209, second)
        done = view.run("service", "create", "-d", "-p", "18209:80", *AT_ONCE, *WEB)
        assert done.returncode and b"port '18209' is already in use by service 'one'" in done.stderr
        done = view.run("service", "create", "-d", "--label", "swarmlet.publish.host-ip=here", "-p", "18210:80", *WEB)
        assert done.returncode and b"'here' is not an IP address" in done.stderr
    finally:
        cluster.exec(2, "ip", "addr", "del", f"{second}/24", "dev", "eth0")


def test_with_local_entry_only_nodes_with_a_task_answer_and_a_label_changes_that_at_once(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "peer", "--label", "swarmlet.publish.entry=local", "-p", "18211:80",
         "--replicas", "2", "--constraint", "node.hostname!=node-3", "--replicas-max-per-node", "1",
         *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 2)
    for number in (1, 2):
        node = cluster.node(number)
        ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=peer")
        own = node("inspect", "-f", "{{.Config.Hostname}}", ident)
        host = cluster.host(number).address
        assert eventually(lambda host=host, own=own: {ask(host, 18211).split()[0] for _ in range(12)} == {own})
    third = cluster.host(3).address
    assert refused(third, 18211)
    before = {task["ID"] for task in cluster.running("peer")}
    view("service", "update", "-d", "--label-rm", "swarmlet.publish.entry", "peer")
    assert eventually(lambda: len({ask(third, 18211).split()[0] for _ in range(12)}) == 2)
    assert {task["ID"] for task in cluster.running("peer")} == before


@pytest.fixture
def local_network(cluster: Cluster) -> Iterator[tuple[View, str]]:
    node = cluster.node(1)
    yield node, "later"
    eventually(lambda: node.run("network", "rm", "later").returncode == 0)


def test_containers_of_a_network_made_later_reach_published_ports_of_their_node(
    local_network: tuple[View, str], cluster: Cluster
) -> None:
    node, name = local_network
    cluster.view("service", "create", "-d", "--name", "peer", "--mode", "global", "-p", "18212:80", *OPTIONS, *PEER)
    cluster.wait_running("peer", 3)
    everyone = names(cluster, "peer")
    host = cluster.host(1).address
    eventually(lambda: {ask(host, 18212).split()[0] for _ in range(24)} == everyone)
    node("network", "create", name)
    loop = f"for i in $(seq 24); do echo ? | nc -w 1 {host} 18212; done"

    def heard() -> set[str]:
        said = node.run("run", "--rm", "--network", name, "busybox", "sh", "-c", loop).stdout.decode()
        return {line.split()[0] for line in said.splitlines() if line}

    assert eventually(lambda: heard() == everyone)


def test_another_firewall_that_drops_what_is_forwarded_is_told_of(cluster: Cluster) -> None:
    """As Docker and ufw leave it. The node says so from its agent's start on, and `swarmlet doctor` at once."""
    rules = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    cluster.exec(3, "nft", rules)
    try:
        cluster.exec(3, "kill", "-9", str(cluster.pid(3, "swarmlet-agent")))
        assert eventually(lambda: "ip filter FORWARD" in (said := node_message(cluster, 3)) and "DOCKER-USER" in said)
    finally:
        cluster.exec(3, "nft", "delete table ip filter")
        cluster.exec(3, "kill", "-9", str(cluster.pid(3, "swarmlet-agent")))
    assert eventually(lambda: len(cluster.ready()) == 3 and node_message(cluster, 3) == "")


def test_a_host_that_comes_up_without_a_manager_publishes_what_it_published(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "--constraint", "node.hostname==node-2", "-p", "18213:80",
                 *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 1)
    host = cluster.host(3).address
    assert eventually(lambda: ask(host, 18213))
    manager = cluster.pid(1, "swarmlet-manager")
    cluster.command("kill", 3)  # its links, rules and routes are gone with it
    cluster.exec(1, "kill", "-STOP", str(manager))
    try:
        cluster.command("start", 3)
        assert eventually(lambda: ask(host, 18213))
    finally:
        cluster.exec(1, "kill", "-CONT", str(manager))
    # It has slept longer than a leader may: it leads again once it can write.
    removal = ("service", "rm", "peer")
    assert eventually(lambda: cluster.view.run(*removal).returncode == 0)
    assert eventually(lambda: len(cluster.ready()) == 3)
    assert eventually(lambda: refused(host, 18213))
