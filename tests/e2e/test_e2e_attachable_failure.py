"""Plain containers on networks across hosts while agents, managers and hosts die: no address leaks, none is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e_cluster import Cluster, eventually
from network_tools import address
from wide_tools import attachable, names_of, reaches, shown, sleeper


@pytest.fixture
def network(cluster: Cluster) -> Iterator[str]:
    with attachable(cluster) as name:
        yield name


@contextmanager
def without_agent(cluster: Cluster, number: int) -> Iterator[None]:
    """An agent is killed, and comes back behind the block."""
    supervisor = int((cluster.host(number).run_dir / "supervisor.pid").read_text().split()[0])
    agent = cluster.pid(number, "swarmlet-agent")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(agent, signal.SIGKILL)
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: cluster.node(number).run("version").returncode == 0)


def test_a_killed_agent_keeps_what_its_containers_hold_and_gives_back_the_rest(cluster: Cluster, network: str) -> None:
    node, other = cluster.node(2), cluster.node(3)
    sleeper(node, "stays", "--network", network)
    sleeper(node, "ends", "--network", network)
    sleeper(other, "asker", "--network", network)
    place, pid = address(node, "stays", network), int(node("inspect", "-f", "{{.State.Pid}}", "ends"))
    pinging = other.popen("exec", "asker", "ping", "-i", "0.1", "-c", "30", place, stdout=-1)
    with without_agent(cluster, 2):
        os.kill(pid, signal.SIGKILL)
    assert b"30 packets received" in pinging.communicate(timeout=30)[0]
    eventually(lambda: set(shown(cluster)) == {"stays", "asker"})
    assert address(node, "stays", network) == place
    eventually(lambda: names_of(other, "asker", "stays") == {place} and names_of(other, "asker", "ends") == set())
    sleeper(node, "next", "--network", network)
    assert reaches(node, "next", "asker") and reaches(other, "asker", "next")


def test_an_agent_killed_again_and_again_leaks_nothing(cluster: Cluster, network: str) -> None:
    """Whatever becomes of each start, who runs has an address of its own, and nobody else has one."""
    node = cluster.node(2)
    starting = [
        node.popen("run", "-d", "--init", "--label", "test=attachable", "--network", network, "busybox", "sleep",
                   "600", stdout=-1, stderr=-1)
        for _ in range(12)
    ]  # fmt: skip
    for _ in range(3):
        with without_agent(cluster, 2):
            pass
    for process in starting:
        process.communicate(timeout=60)

    def held() -> dict[str, str]:
        return {name: address(node, name, network) for name in node("ps", "--format", "{{.Names}}").split()}

    eventually(lambda: "node-2" in cluster.ready())
    eventually(lambda: shown(cluster) == held() and len(set(held().values())) == len(held()))


def test_a_killed_manager_finds_all_again_and_answers_who_has_asked_meanwhile(cluster: Cluster, network: str) -> None:
    node = cluster.node(2)
    sleeper(node, "before", "--network", network)
    sleeper(node, "ends", "--network", network)
    place = address(node, "before", network)
    for program in ("swarmlet-manager", "etcd"):
        os.kill(cluster.pid(1, program), signal.SIGKILL)
    node("rm", "-f", "ends")
    sleeper(node, "meanwhile", "--network", network)
    eventually(lambda: cluster.view.run("node", "ls").returncode == 0)
    eventually(lambda: shown(cluster) == {"before": place, "meanwhile": address(node, "meanwhile", network)})
    sleeper(cluster.node(3), "asker", "--network", network)
    assert reaches(cluster.node(3), "asker", "before") and reaches(cluster.node(3), "asker", "meanwhile")


def test_without_a_manager_nothing_is_attached_and_nothing_stays_behind(cluster: Cluster, network: str) -> None:
    node = cluster.node(3)
    sleeper(node, "running", "--network", network)
    sleeper(node, "ends", "--network", network)
    sleeper(node, "plain")
    cluster.command("cut", 3)
    try:
        eventually(lambda: "node-3" not in cluster.ready())
        node("rm", "-f", "ends")
        for refused in (
            node.run("run", "--name", "late", "--label", "test=attachable", "--network", network, "busybox", "true"),
            node.run("network", "connect", network, "plain"),
        ):
            assert refused.returncode
            assert f"Could not attach to network {network}: no manager".encode() in refused.stderr, refused.stderr
        assert node("inspect", "-f", "{{.State.Status}}", "late") == "created"
        assert "eth1" not in node("exec", "plain", "ip", "link")
    finally:
        cluster.command("heal", 3)
    eventually(lambda: set(shown(cluster)) == {"running"})
    node("network", "connect", network, "plain")
    assert set(shown(cluster)) == {"running", "plain"}


def test_a_host_that_lost_its_power_has_its_containers_back_on_the_network(cluster: Cluster, network: str) -> None:
    node = cluster.node(3)
    sleeper(node, "always", "--restart", "always", "--network", network)
    sleeper(node, "once", "--network", network)
    place = address(node, "always", network)
    cluster.command("kill", 3)
    try:
        eventually(lambda: "node-3" not in cluster.ready())
        # It may come back and still have them: nobody else gets its addresses yet.
        assert set(shown(cluster)) == {"always", "once"}
        taken = cluster.node(2).run("run", "--rm", "--network", network, "--ip", place, "busybox", "true")
        assert taken.returncode and b"Address already in use" in taken.stderr
    finally:
        cluster.command("start", 3)
    eventually(lambda: shown(cluster) == {"always": place})
    sleeper(cluster.node(2), "asker", "--network", network)
    eventually(lambda: reaches(cluster.node(2), "asker", "always"))


def test_a_node_that_is_removed_or_leaves_gives_its_addresses_back(cluster: Cluster, network: str) -> None:
    view, node = cluster.view, cluster.node(3)
    manager = f"{cluster.host(1).address}:2377"

    def join() -> None:
        token = view("swarm", "join-token", "-q", "worker")
        node("swarm", "join", "--token", token, "--advertise-addr", cluster.host(3).address, manager)
        eventually(lambda: "node-3" in cluster.ready())

    def members() -> set[str]:
        return {row["ID"] for row in view.rows("node", "ls") if row["Hostname"] == "node-3"}

    sleeper(node, "plain", "--network", network)
    before = members()
    node("swarm", "leave")
    try:
        assert node("inspect", "-f", "{{len .NetworkSettings.Networks}}", "plain") == "0"
        assert network not in node("network", "ls", "--format", "{{.Name}}").split()
        for ident in before:
            view("node", "rm", "--force", ident)
        eventually(lambda: shown(cluster) == {})
    finally:
        join()
    sleeper(node, "again", "--network", network)
    place = address(node, "again", network)
    cluster.command("kill", 3)
    try:
        for ident in members():
            view("node", "rm", "--force", ident)
        eventually(lambda: shown(cluster) == {})
        sleeper(cluster.node(2), "taker", "--network", network, "--ip", place)
    finally:
        cluster.command("start", 3)
        eventually(lambda: node.run("version").returncode == 0)
        node.run("swarm", "leave", "--force")
        join()
    sleeper(node, "asker", "--network", network)
    assert reaches(node, "asker", "taker")
    # Removed while it is up, it is told so: its containers leave the network at once.
    try:
        for ident in members():
            view("node", "rm", "--force", ident)
        eventually(lambda: node("inspect", "-f", "{{len .NetworkSettings.Networks}}", "asker") == "0")
        assert set(shown(cluster)) == {"taker"}
        assert node("exec", "asker", "ip", "-o", "-4", "addr", "show", "scope", "global") == ""
    finally:
        node.run("swarm", "leave", "--force")
        join()
