"""docker version, info, node ls, node inspect and node update on the cluster."""

from __future__ import annotations

from e2e_cluster import Cluster, View, eventually


def test_version_and_info_describe_both_views(cluster: Cluster) -> None:
    for view in (cluster.node(2), cluster.view):
        shown = view.json("version", "--format", "{{json .Server}}")
        assert shown["ApiVersion"] == "1.50" and shown["MinAPIVersion"] == "1.24"
        assert view.json("info", "--format", "{{json .}}")["Swarm"]["LocalNodeState"] == "active"
    whole = cluster.view.json("info", "--format", "{{json .}}")
    one = cluster.node(2).json("info", "--format", "{{json .}}")
    assert whole["NCPU"] == 3 * one["NCPU"] and whole["Swarm"]["Nodes"] == 3 and whole["Swarm"]["ControlAvailable"]
    assert one["Name"] == "node-2" and not one["Swarm"]["ControlAvailable"]


def test_node_ls_shows_every_host_and_the_leader(cluster: Cluster) -> None:
    rows = {row["Hostname"]: row for row in cluster.view.rows("node", "ls")}

    assert set(rows) == {"node-1", "node-2", "node-3"}
    assert {row["Status"] for row in rows.values()} == {"Ready"}
    assert rows["node-1"]["ManagerStatus"] == "Leader" and rows["node-2"]["ManagerStatus"] == ""


def test_a_manager_hosts_own_socket_answers_swarm_commands_and_a_workers_refuses(cluster: Cluster) -> None:
    assert len(cluster.node(1).rows("node", "ls")) == 3
    refused = cluster.node(2).run("node", "ls")
    assert refused.returncode == 1 and b"This node is not a swarm manager" in refused.stderr


def test_node_inspect_tells_resources_and_address(cluster: Cluster) -> None:
    node = cluster.view.json("node", "inspect", "node-2")[0]

    assert node["Status"] == {"State": "ready", "Addr": cluster.host(2).address}
    assert node["Description"]["Resources"]["NanoCPUs"] >= 1e9
    assert node["Description"]["Resources"]["MemoryBytes"] > 1 << 28
    assert "BEGIN CERTIFICATE" in node["Description"]["TLSInfo"]["TrustRoot"]
    assert "node-2" in cluster.view("node", "inspect", "--pretty", "node-2")


def test_labels_are_added_and_removed(cluster: Cluster) -> None:
    cluster.view("node", "update", "--label-add", "zone=west", "--label-add", "ssd", "node-2")
    assert cluster.view.json("node", "inspect", "node-2")[0]["Spec"]["Labels"] == {"zone": "west", "ssd": ""}
    assert [row["Hostname"] for row in cluster.view.rows("node", "ls", "--filter", "node.label=zone=west")] == [
        "node-2"
    ]

    cluster.view("node", "update", "--label-rm", "zone", "--label-rm", "ssd", "node-2")
    assert cluster.view.json("node", "inspect", "node-2")[0]["Spec"]["Labels"] == {}


def test_drain_moves_tasks_away_and_active_takes_new_ones(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "6", "busybox", "sleep", "600")
    before = cluster.wait_running("web", 6)
    assert {task["Node"] for task in before} == {"node-1", "node-2", "node-3"}

    cluster.view("node", "update", "--availability", "drain", "node-3")
    try:
        after = eventually(lambda: _all_off(cluster, "node-3"))
        assert len(after) == 6
        eventually(lambda: cluster.node(3)("ps", "-q") == "")
    finally:
        cluster.view("node", "update", "--availability", "active", "node-3")
    cluster.view("service", "scale", "-d", "web=9")
    tasks = cluster.wait_running("web", 9)
    assert sum(task["Node"] == "node-3" for task in tasks) == 3


def test_pause_keeps_what_runs_and_takes_nothing_new(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    cluster.wait_running("web", 3)
    cluster.view("node", "update", "--availability", "pause", "node-3")
    try:
        cluster.view("service", "scale", "-d", "web=7")
        tasks = cluster.wait_running("web", 7)
        assert sum(task["Node"] == "node-3" for task in tasks) == 1
    finally:
        cluster.view("node", "update", "--availability", "active", "node-3")


def test_a_bad_node_update_changes_nothing(cluster: Cluster, view: View) -> None:
    unknown = cluster.view.run("node", "update", "--availability", "drain", "nowhere")
    assert unknown.returncode == 1 and b"nowhere not found" in unknown.stderr
    wrong = cluster.view.run("node", "update", "--availability", "asleep", "node-2")
    assert wrong.returncode == 1 and b"asleep" in wrong.stderr
    assert cluster.view.json("node", "inspect", "node-2")[0]["Spec"]["Availability"] == "active"


def _all_off(cluster: Cluster, host: str) -> list[dict[str, str]]:
    running = cluster.running("web")
    assert len(running) == 6 and all(task["Node"] != host for task in running), running
    return running
