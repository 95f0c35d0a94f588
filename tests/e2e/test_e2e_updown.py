"""`swarmlet up`, `down` and `host`: repeated, interrupted, mistaken; and leaving and joining by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_cluster import NAME, Cluster, eventually, swarmlet
from e2e_own import own_cluster
from e2e_traces import traces

from swarmlet.local import cluster as clusters

OWN = f"{NAME}-ud"
SWARMLET = str(Path(sys.executable).with_name("swarmlet"))
PROGRAMS = ("swarmlet-agent", "swarmlet-manager", "etcd")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A cluster of this file alone: other tests need theirs as it is."""
    with own_cluster(OWN, 2) as made:
        yield made


@pytest.fixture
def no_cluster() -> Iterator[str]:
    """The name of a cluster that a test makes and unmakes itself."""
    name = f"{NAME}-tmp"
    swarmlet("down", "--name", name)
    try:
        yield name
    finally:
        swarmlet("down", "--name", name)


def works(name: str) -> None:
    """Every node is ready and runs containers."""
    cluster = Cluster(clusters.find(name))
    eventually(lambda: len(cluster.ready()) == len(cluster.layout.nodes))
    for host in cluster.layout.nodes:
        node = cluster.node(host.index)
        assert node("run", "--rm", "busybox", "hostname", "-s") != ""
    cluster.view("service", "create", "-d", "--name", "probe", "--mode", "global", "busybox", "sleep", "600")
    cluster.wait_running("probe", len(cluster.layout.nodes))


# Up


def test_a_second_up_is_quick_and_changes_nothing_that_runs(two_nodes: Cluster) -> None:
    view = two_nodes.view
    view("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    two_nodes.wait_running("web", 2)
    two_nodes.node(2)("run", "-d", "--name", "plain", "busybox", "sleep", "600")

    def running() -> dict[str, object]:
        shown: dict[str, object] = {f"{program} 1": two_nodes.pid(1, program) for program in PROGRAMS}
        shown["swarmlet-agent 2"] = two_nodes.pid(2, "swarmlet-agent")
        for number in (1, 2):
            node = two_nodes.node(number)
            idents = node("ps", "-q", "--no-trunc").split()
            shown[f"containers {number}"] = sorted(
                (each["Id"], each["State"]["Pid"], each["State"]["StartedAt"]) for each in node.json("inspect", *idents)
            )
        shown["tasks"] = sorted(task["ID"] for task in two_nodes.tasks("web"))
        shown["nodes"] = sorted(node["ID"] for node in view.rows("node", "ls"))
        return shown

    before = running()
    swarmlet("up", "--name", OWN, "--nodes", "2", timeout=30)  # about half a second where nothing else runs
    swarmlet("up", "--name", OWN)  # as many nodes as it has
    assert running() == before

    view("service", "rm", "web")
    two_nodes.node(2)("rm", "-f", "plain")


def test_up_brings_back_what_is_missing(two_nodes: Cluster) -> None:
    two_nodes.command("kill", 2)
    assert two_nodes.node(2).run("version").returncode != 0
    swarmlet("up", "--name", OWN)

    eventually(lambda: two_nodes.ready() == {"node-1", "node-2"})
    assert two_nodes.node(2)("run", "--rm", "busybox", "echo", "back") == "back"


@pytest.mark.parametrize(
    ("number", "delays"),
    [(signal.SIGINT, (0.15, 0.5, 1.2)), (signal.SIGKILL, (0.2, 0.35, 0.8, 1.6))],
    ids=["SIGINT", "SIGKILL"],
)
def test_an_interrupted_up_is_finished_by_the_next(
    no_cluster: str, number: signal.Signals, delays: tuple[float, ...]
) -> None:
    """Each try goes on from what the one before has left."""
    for delay in delays:
        process = _start("up", "--name", no_cluster, "--nodes", "2")
        time.sleep(delay)
        os.kill(process.pid, number)
        assert process.wait(30) in (0, 1, -number)
    done = swarmlet("up", "--name", no_cluster, "--nodes", "2", check=False)
    logs = [host.log_file.read_text()[-2000:] for host in clusters.find(no_cluster).nodes if host.log_file.exists()]
    assert done.returncode == 0, "\n".join([done.stderr, *logs])
    works(no_cluster)
    swarmlet("down", "--name", no_cluster)
    assert traces(no_cluster) == []


@pytest.mark.parametrize("delay", [0.2, 0.4, 0.9])
def test_what_an_interrupted_up_has_made_can_be_removed(no_cluster: str, delay: float) -> None:
    process = _start("up", "--name", no_cluster, "--nodes", "2")
    time.sleep(delay)
    process.kill()
    process.wait(30)
    swarmlet("down", "--name", no_cluster)
    assert traces(no_cluster) == []


def test_two_commands_do_not_change_a_cluster_at_once(no_cluster: str) -> None:
    first = _start("up", "--name", no_cluster, "--nodes", "1")
    try:

        def refused() -> str:
            if first.poll() is not None:
                raise AssertionError("the first command ended before the second could be tried")
            second = swarmlet("down", "--name", no_cluster, check=False)
            return second.stderr if second.returncode == 1 else ""

        said = eventually(refused, period_s=0.02)
    finally:
        first.wait(60)
    assert said == f"Error: cluster {no_cluster!r} is being changed by another command: try again when it is done\n"
    works(no_cluster)


# Down


def test_down_leaves_nothing_of_a_busy_cluster(no_cluster: str) -> None:
    swarmlet("up", "--name", no_cluster, "--nodes", "2")
    cluster = Cluster(clusters.find(no_cluster))
    cluster.view(
        "service", "create", "-d", "--name", "web", "--replicas", "4", "--publish", "mode=host,target=80",
        "--mount", "type=volume,target=/data", "busybox", "sleep", "600",
    )  # fmt: skip
    cluster.wait_running("web", 4)
    node = cluster.node(1)
    node("network", "create", "inner")
    deaf = ["busybox", "sh", "-c", "trap '' TERM; sleep 600"]
    node("run", "-d", "--name", "deaf", "--network", "inner", "-v", "kept:/kept", *deaf)
    node("exec", "-d", "deaf", "sleep", "600")
    node("run", "-d", "--name", "frozen", "--memory", "64m", "--cpus", "0.5", "busybox", "sleep", "600")
    node("pause", "frozen")
    kinds = {line.split()[0] for line in traces(no_cluster)}
    assert kinds == {"process", "mount", "netns", "cgroup", "link", "table", "folder", "record"}

    swarmlet("down", "--name", no_cluster)
    assert traces(no_cluster) == []
    again = swarmlet("down", "--name", no_cluster)
    assert again.stderr == f"There is no cluster {no_cluster!r} on this machine.\n"


@pytest.mark.parametrize("delay", [0.15, 0.25, 0.4, 0.6])
@pytest.mark.parametrize("then", ["down", "up"])
def test_a_down_that_was_killed_is_finished_by_the_next_command(no_cluster: str, delay: float, then: str) -> None:
    swarmlet("up", "--name", no_cluster, "--nodes", "2")
    Cluster(clusters.find(no_cluster)).node(2)("run", "-d", "busybox", "sleep", "600")
    process = _start("down", "--name", no_cluster)
    time.sleep(delay)
    process.kill()
    process.wait(30)
    if then == "up":
        swarmlet("up", "--name", no_cluster, "--nodes", "2")
        works(no_cluster)
    swarmlet("down", "--name", no_cluster)
    assert traces(no_cluster) == []


# Mistakes


@pytest.mark.parametrize(
    ("code", "says", "args"),
    [
        (1, "Error: invalid cluster name 'Bad Name': use lower case letters", ["up", "--name", "Bad Name"]),
        (1, "Error: invalid cluster name '../up'", ["up", "--name", "../up"]),
        (1, "Error: invalid cluster name '../up'", ["env", "--name", "../up"]),
        (1, "Error: invalid number of nodes 0: it must be from 1 to 200", ["up", "--name", "fresh", "--nodes", "0"]),
        (1, "Error: invalid number of nodes 201", ["up", "--name", "fresh", "--nodes", "201"]),
        (2, "'many' is not a valid integer", ["up", "--name", "fresh", "--nodes", "many"]),
        (1, f"Error: cluster '{OWN}' has 2 nodes already", ["up", "--name", OWN, "--nodes", "3"]),
        (1, f"Error: cluster '{OWN}' keeps its state in", ["up", "--name", OWN, "--etcd", "http://192.0.2.1:2379"]),
        (1, "Error: invalid etcd endpoint 'ftp://x'", ["up", "--name", "fresh", "--etcd", "ftp://x"]),
        (1, "need --etcd-ca, --etcd-cert and --etcd-key", ["up", "--name", "fresh", "--etcd", "https://192.0.2.1:2379"]),
        (1, "Error: --etcd-ca, --etcd-cert and --etcd-key go with --etcd", ["up", "--name", "fresh", "--etcd-ca", "x"]),
        (1, "there is no cluster 'nowhere' on this machine: start it with swarmlet up", ["env", "--name", "nowhere"]),
        (1, "Error: there is no cluster 'nowhere'", ["host", "kill", "node-1", "--name", "nowhere"]),
        (1, "Error: no node 'node-9'; there are node-1, node-2", ["env", "node-9", "--name", OWN]),
        (1, "Error: no node 'node-9'; there are node-1, node-2", ["host", "exec", "--name", OWN, "node-9", "true"]),
        (2, "Missing argument 'NODE'", ["host", "cut", "--name", OWN]),
        (2, "No such command 'explode'", ["host", "explode"]),
    ],
)
def test_a_mistake_is_answered_with_one_clear_line(two_nodes: Cluster, code: int, says: str, args: list[str]) -> None:
    done = swarmlet(*args, check=False)

    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1
    assert two_nodes.ready() == {"node-1", "node-2"}
    assert clusters.all_names().count("fresh") == 0 and traces("fresh") == []


# Looking and breaking


def test_env_prints_where_each_view_is(two_nodes: Cluster) -> None:
    host = two_nodes.host(2)
    assert swarmlet("env", "--name", OWN).stdout == f"export DOCKER_HOST={two_nodes.view.url}\n"
    for ref in ("node-2", "2"):
        assert swarmlet("env", ref, "--name", OWN).stdout == f"export DOCKER_HOST=unix://{host.agent_socket}\n"


def test_host_exec_runs_inside_with_the_commands_exit_code(two_nodes: Cluster) -> None:
    command = "hostname; ip -4 -o addr show eth0; exit 7"
    shown = swarmlet("host", "exec", "--name", OWN, "node-2", "sh", "-c", command, check=False)
    assert shown.returncode == 7
    assert shown.stdout.splitlines()[0] == "node-2" and f" {two_nodes.host(2).address}/24 " in shown.stdout


def test_host_ls_tells_hosts_from_what_the_cluster_thinks_of_them(two_nodes: Cluster) -> None:
    def rows() -> dict[str, list[str]]:
        lines = swarmlet("host", "ls", "--name", OWN).stdout.splitlines()[1:]
        return {line.split()[0]: line.split()[1:] for line in lines}

    assert [rows()[name][index] for name in ("node-1", "node-2") for index in (1, 3)] == ["running", "ready"] * 2
    assert int(rows()["node-1"][2]) >= 4  # shell, agent, manager, etcd

    two_nodes.command("cut", 2)
    try:
        eventually(lambda: rows()["node-2"][1:] == ["running", rows()["node-2"][2], "down"])
        assert two_nodes.exec(2, "ping", "-c1", "-W1", two_nodes.host(1).address, check=False).count("1 received") == 0
    finally:
        two_nodes.command("heal", 2)
    eventually(lambda: rows()["node-2"][3] == "ready")

    two_nodes.command("kill", 2)
    assert rows()["node-2"][1:3] == ["stopped", "0"]
    two_nodes.command("start", 2)
    two_nodes.command("start", 2)  # it runs already: nothing happens
    eventually(lambda: rows()["node-2"][1:] == ["running", rows()["node-2"][2], "ready"])


# Leaving and joining by hand


def test_a_worker_leaves_is_removed_and_joins_again(two_nodes: Cluster) -> None:
    manager, worker = two_nodes.node(1), two_nodes.node(2)
    manager("service", "create", "-d", "--name", "web", "--mode", "global", "busybox", "sleep", "600")
    two_nodes.wait_running("web", 2)
    old = _node_id(two_nodes, "node-2")
    refused = manager.run("node", "rm", old)
    assert refused.returncode == 1 and b"is not down and can't be removed" in refused.stderr

    assert worker("swarm", "leave") == "Node left the swarm."
    assert worker("info", "--format", "{{.Swarm.LocalNodeState}}") == "inactive"
    eventually(lambda: worker("ps", "-aq", "--filter", "label=com.docker.swarm.service.name") == "")
    again = worker.run("swarm", "leave")
    assert again.returncode == 1 and b"This node is not part of a swarm" in again.stderr
    eventually(lambda: two_nodes.ready() == {"node-1"})
    assert manager("node", "rm", old) == old
    assert [row["Hostname"] for row in manager.rows("node", "ls")] == ["node-1"]

    _join(two_nodes)
    eventually(lambda: two_nodes.ready() == {"node-1", "node-2"})
    assert _node_id(two_nodes, "node-2") != old
    two_nodes.wait_running("web", 2)
    manager("service", "rm", "web")


def test_a_wrong_token_or_address_leaves_the_node_as_it_was(two_nodes: Cluster) -> None:
    worker, address = two_nodes.node(2), f"{two_nodes.host(1).address}:2377"
    token = two_nodes.view("swarm", "join-token", "-q", "worker")
    worker("swarm", "leave")
    try:
        for wrong, where, says in (
            ("nonsense", address, b"valid join token"),
            (token[:-25] + "0" * 25, address, b"token"),
            (f"SWMTKN-1-{'0' * 50}-{token[-25:]}", address, b"does not match fingerprint"),
            (token, f"{two_nodes.host(1).address}:1", b""),
            ("", address, b""),
        ):
            done = worker.run("swarm", "join", "--token", wrong, where)
            assert done.returncode == 1 and says in done.stderr, (wrong, where, done.stderr)
            assert worker("info", "--format", "{{.Swarm.LocalNodeState}}") == "inactive"
    finally:
        _join(two_nodes)
    eventually(lambda: two_nodes.ready() == {"node-1", "node-2"})
    twice = worker.run("swarm", "join", "--token", token, address)
    assert twice.returncode == 1 and b"already part of a swarm" in twice.stderr


def test_a_node_that_was_removed_by_force_says_so_and_can_come_again(two_nodes: Cluster) -> None:
    worker = two_nodes.node(2)
    two_nodes.view("node", "rm", "--force", "node-2" if _count(two_nodes) == 1 else _node_id(two_nodes, "node-2"))
    eventually(lambda: worker("info", "--format", "{{.Swarm.LocalNodeState}}") == "error")
    assert worker("info", "--format", "{{.Swarm.Error}}")
    worker("swarm", "leave", "--force")
    _join(two_nodes)
    eventually(lambda: two_nodes.ready() == {"node-1", "node-2"})


def test_a_rotated_token_ends_the_old_one(two_nodes: Cluster) -> None:
    view, worker = two_nodes.view, two_nodes.node(2)
    old = view("swarm", "join-token", "-q", "worker")
    view("swarm", "join-token", "--rotate", "worker")
    assert view("swarm", "join-token", "-q", "worker") != old
    worker("swarm", "leave")
    refused = worker.run("swarm", "join", "--token", old, f"{two_nodes.host(1).address}:2377")
    assert refused.returncode == 1
    _join(two_nodes)
    eventually(lambda: "node-2" in two_nodes.ready())


def test_the_last_manager_leaves_only_by_force_and_a_new_cluster_begins_empty(two_nodes: Cluster) -> None:
    manager, worker = two_nodes.node(1), two_nodes.node(2)
    manager("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    two_nodes.wait_running("web", 2)
    refused = manager.run("swarm", "leave")
    assert refused.returncode == 1 and b"Use `--force`" in refused.stderr
    assert len(two_nodes.running("web")) == 2
    etcd = two_nodes.pid(1, "etcd")

    assert manager("swarm", "leave", "--force") == "Node left the swarm."
    eventually(lambda: not Path(f"/proc/{etcd}").exists())
    with pytest.raises(LookupError):
        two_nodes.pid(1, "swarmlet-manager")
    assert manager.run("node", "ls").returncode == 1
    worker("swarm", "leave", "--force")

    said = manager("swarm", "init", "--advertise-addr", two_nodes.host(1).address)
    assert "docker swarm join --token SWMTKN-1-" in said
    assert manager("service", "ls", "-q") == ""
    _join(two_nodes)
    eventually(lambda: two_nodes.ready() == {"node-1", "node-2"})
    for node in (manager, worker):
        eventually(lambda node=node: node("ps", "-aq") == "")


def _join(cluster: Cluster) -> None:
    """The second node, with the worker's token."""
    token = cluster.node(1)("swarm", "join-token", "-q", "worker")
    host = cluster.host(2)
    said = cluster.node(2)(
        "swarm", "join", "--token", token, "--advertise-addr", host.address, f"{cluster.host(1).address}:2377"
    )
    assert said == "This node joined a swarm as a worker."


def _node_id(cluster: Cluster, hostname: str) -> str:
    """Of the node that is ready: records of earlier ones may be left."""
    rows = cluster.view.rows("node", "ls")
    found = [row["ID"] for row in rows if row["Hostname"] == hostname and row["Status"] == "Ready"]
    assert len(found) == 1, json.dumps(rows)
    return found[0]


def _count(cluster: Cluster) -> int:
    return sum(row["Hostname"] == "node-2" for row in cluster.view.rows("node", "ls"))


def _start(*args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [SWARMLET, *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
