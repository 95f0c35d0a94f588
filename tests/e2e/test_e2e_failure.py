"""What happens when things die: hosts, agents, managers, etcd, cables."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from e2e_cluster import Cluster, eventually

#: Three silent heartbeats of a second are 3 s, of the default period 15.
GRACE_S = 12


def test_a_killed_hosts_tasks_run_elsewhere_and_its_stale_ones_are_gone_when_it_returns(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "6", "busybox", "sleep", "600")
    before = cluster.wait_running("web", 6)
    assert any(task["Node"] == "node-3" for task in before)

    cluster.command("kill", 3)
    try:
        eventually(lambda: "node-3" not in cluster.ready(), GRACE_S)
        eventually(lambda: len([task for task in cluster.running("web") if task["Node"] != "node-3"]) == 6)
    finally:
        cluster.command("start", 3)
    eventually(lambda: "node-3" in cluster.ready())
    eventually(lambda: cluster.node(3)("ps", "-q") == "")
    assert len(cluster.wait_running("web", 6)) == 6


def test_a_host_that_was_cut_off_gives_its_tasks_up_when_it_is_back(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    cluster.wait_running("web", 3)
    kept = cluster.node(3)("ps", "-q")
    cluster.command("cut", 3)
    try:
        eventually(lambda: "node-3" not in cluster.ready(), GRACE_S)
        eventually(lambda: sum(t["Node"] != "node-3" for t in cluster.running("web")) == 3, GRACE_S)
        assert cluster.node(3)("ps", "-q") == kept  # nobody has told it yet
    finally:
        cluster.command("heal", 3)
    eventually(lambda: "node-3" in cluster.ready())
    eventually(lambda: cluster.node(3)("ps", "-q") == "")
    cluster.wait_running("web", 3)


def test_containers_outlive_their_agent_and_the_next_one_adopts_them(cluster: Cluster) -> None:
    node = cluster.node(2)
    loop = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"
    node("run", "-d", "--name", "talker", "busybox", "sh", "-c", loop)
    node("run", "-d", "--name", "short", "busybox", "sh", "-c", "sleep 1.5; exit 42")
    pid = node("inspect", "--format", "{{.State.Pid}}", "talker")

    os.kill(cluster.pid(2, "swarmlet-agent"), signal.SIGKILL)
    eventually(lambda: node.run("version").returncode == 0)

    assert node("inspect", "--format", "{{.State.Pid}} {{.State.Status}}", "talker") == f"{pid} running"
    assert node("exec", "talker", "echo", "still here") == "still here"
    assert node("wait", "short") == "42"
    assert node("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "short") == "exited 42"
    lines = node("logs", "talker").splitlines()
    assert [line.split()[1] for line in lines] == [str(number) for number in range(1, len(lines) + 1)]
    eventually(lambda: len(node("logs", "talker").splitlines()) > len(lines))
    eventually(lambda: "node-2" in cluster.ready())
    node("rm", "-f", "talker", "short")


def test_a_container_that_ends_while_no_agent_runs_keeps_its_exit_code(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "brief", "busybox", "sh", "-c", "sleep 1; exit 7")
    pid = node("inspect", "--format", "{{.State.Pid}}", "brief")
    supervisor = int((cluster.host(2).run_dir / "supervisor.pid").read_text().split()[0])
    agent = cluster.pid(2, "swarmlet-agent")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(agent, signal.SIGKILL)
        eventually(lambda: pid == "0" or not Path("/proc", pid).exists())
    finally:
        os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: node.run("version").returncode == 0)

    assert node("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "brief") == "exited 7"


def test_tasks_go_on_through_the_death_of_their_agent(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    before = {task["ID"] for task in cluster.wait_running("web", 3)}

    # An agent that needs longer than the grace period to come back has lost its tasks. That is not what is looked at
    # here, and a busy machine may well take three seconds.
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "4s")
    try:
        for number in (1, 2, 3):
            os.kill(cluster.pid(number, "swarmlet-agent"), signal.SIGKILL)
        for number in (1, 2, 3):
            eventually(lambda number=number: cluster.node(number).run("version").returncode == 0)
        eventually(lambda: cluster.ready() == {"node-1", "node-2", "node-3"})
        time.sleep(2)
        assert {task["ID"] for task in cluster.wait_running("web", 3)} == before
    finally:
        cluster.view("swarm", "update", "--dispatcher-heartbeat", "1s")


def test_a_killed_manager_comes_back_with_everything(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    before = {task["ID"] for task in cluster.wait_running("web", 3)}
    old, etcd = cluster.pid(1, "swarmlet-manager"), cluster.pid(1, "etcd")

    os.kill(old, signal.SIGKILL)
    eventually(lambda: cluster.view.run("node", "ls").returncode == 0)
    eventually(lambda: cluster.ready() == {"node-1", "node-2", "node-3"})

    assert cluster.pid(1, "swarmlet-manager") != old and cluster.pid(1, "etcd") == etcd
    assert {task["ID"] for task in cluster.wait_running("web", 3)} == before
    cluster.view("service", "scale", "-d", "web=4")
    cluster.wait_running("web", 4)


def test_a_killed_etcd_comes_back_and_nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    made = []
    for number in range(5):
        name = f"web{number}"
        made.append(cluster.view("service", "create", "-d", "--name", name, "busybox", "sleep", "600"))
        if number == 2:
            os.kill(cluster.pid(1, "etcd"), signal.SIGKILL)
            eventually(
                lambda: cluster.view.run("service", "update", "-d", "--label-add", "x=y", "web0").returncode == 0
            )

    assert len(cluster.view("service", "ls", "-q").split()) == 5
    for number in range(5):
        cluster.wait_running(f"web{number}", 1)


def test_manager_and_etcd_killed_at_once_come_back(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    before = {task["ID"] for task in cluster.wait_running("web", 2)}

    for program in ("swarmlet-manager", "etcd"):
        os.kill(cluster.pid(1, program), signal.SIGKILL)
    eventually(lambda: cluster.view.run("node", "ls").returncode == 0)
    eventually(lambda: cluster.ready() == {"node-1", "node-2", "node-3"})

    assert {task["ID"] for task in cluster.wait_running("web", 2)} == before


def test_the_managers_own_host_may_lose_its_power(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    cluster.wait_running("web", 3)
    ident = cluster.node(2)("ps", "-q")

    cluster.command("kill", 1)
    try:
        assert cluster.node(2)("ps", "-q") == ident  # workers go on without a manager
    finally:
        cluster.command("start", 1)
    eventually(lambda: cluster.view.run("node", "ls").returncode == 0)
    eventually(lambda: cluster.ready() == {"node-1", "node-2", "node-3"})
    cluster.wait_running("web", 3)
    assert cluster.node(2)("ps", "-q") == ident
