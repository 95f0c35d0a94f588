"""Services with the stock docker command: create with every option, look, scale, update, remove."""

from __future__ import annotations

import json
import os
import time

import pytest
from e2e_cluster import Cluster, eventually


def test_create_in_the_foreground_ends_when_the_service_has_converged(cluster: Cluster) -> None:
    done = cluster.view.run("service", "create", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")

    assert done.returncode == 0, done.stderr
    assert b"converged" in done.stdout and b"3 out of 3 tasks" in done.stdout
    assert len(cluster.running("web")) == 3


def test_every_option_reaches_the_container(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "full", "--replicas", "1", "--constraint", "node.hostname==node-2",
        "--env", "COLOUR=blue", "--env", "WHERE={{.Node.Hostname}}/{{.Task.Slot}}", "--label", "team=a",
        "--container-label", "tier=b", "--user", "1000:1001", "--workdir", "/var", "--hostname", "box-{{.Task.Slot}}",
        "--limit-memory", "64m", "--limit-cpu", "0.5", "--limit-pids", "50", "--reserve-memory", "16m",
        "--reserve-cpu", "0.1", "--mount", "type=tmpfs,target=/scratch,tmpfs-size=1m", "--mount",
        "type=volume,source=e2e-full,target=/data", "--mount", "type=bind,source=/etc,target=/host-etc,readonly",
        "--stop-grace-period", "3s", "--stop-signal", "SIGINT", "--restart-condition", "none", "--read-only",
        "--publish", "mode=host,target=80,published=18080", "--host", "db:192.0.2.7", "--cap-drop", "CHOWN",
        "--ulimit", "nofile=512:1024", "--sysctl", "net.ipv4.ip_unprivileged_port_start=0", "--init=false",
        "busybox", "sh", "-c", "sleep 600",
    )  # fmt: skip
    cluster.wait_running("full", 1)
    node = cluster.node(2)
    ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=full")
    shown = node.json("inspect", ident)[0]
    config, host = shown["Config"], shown["HostConfig"]

    assert shown["Name"].startswith("/full.1.")
    assert {"COLOUR=blue", "WHERE=node-2/1"} <= set(config["Env"])
    assert config["Labels"]["tier"] == "b" and config["Labels"]["com.docker.swarm.service.name"] == "full"
    assert (config["User"], config["WorkingDir"], config["Hostname"]) == ("1000:1001", "/var", "box-1")
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert config["StopSignal"] == "SIGINT" and host["ReadonlyRootfs"]
    assert shown["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"] == "18080"
    inside = node(
        "exec", ident, "sh", "-c", "id -u; id -g; pwd; hostname; ulimit -n; cat /etc/hosts; mount; touch /x 2>&1; true"
    )
    lines = inside.splitlines()
    assert lines[:5] == ["1000", "1001", "/var", "box-1", "512"]
    assert "192.0.2.7\tdb" in inside and "on /scratch type tmpfs" in inside and "on /data type" in inside
    assert "Read-only file system" in inside
    spec = cluster.view.json("service", "inspect", "full")[0]["Spec"]
    assert spec["Labels"] == {"team": "a"} and spec["TaskTemplate"]["RestartPolicy"]["Condition"] == "none"
    assert cluster.view("service", "inspect", "--pretty", "full")
    ports = cluster.tasks("full")[0]["Ports"]
    assert "18080->80/tcp" in ports


def test_a_published_host_port_answers_on_the_node(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "web", "--mode", "global", "--publish",
        "mode=host,target=80,published=18081",
        "busybox", "sh", "-c", "mkdir /www; hostname > /www/index.html; httpd -f -h /www",
    )  # fmt: skip
    cluster.wait_running("web", 3)

    for number in (1, 2, 3):
        url = f"http://{cluster.host(number).address}:18081/"
        assert eventually(lambda url=url: cluster.exec(1, "busybox", "wget", "-qO-", url).strip())


def test_ls_ps_and_inspect_tell_the_same(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "web", "--replicas", "2", "--label", "a=b", "busybox", "sleep", "600"
    )
    cluster.wait_running("web", 2)

    row = cluster.view.rows("service", "ls", "--filter", "name=web")[0]
    assert (row["Name"], row["Mode"], row["Replicas"], row["Image"]) == ("web", "replicated", "2/2", "busybox:latest")
    assert [r["Name"] for r in cluster.view.rows("service", "ls", "--filter", "label=a=b")] == ["web"]
    tasks = cluster.tasks("web")
    assert sorted(task["Name"] for task in tasks) == ["web.1", "web.2"]
    assert cluster.view.rows("node", "ps", tasks[0]["Node"])
    inspected = cluster.view.json("inspect", tasks[0]["ID"])[0]
    assert inspected["Status"]["State"] == "running" and inspected["Slot"] in (1, 2)


def test_scaling_up_and_down_keeps_the_oldest_slots(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    first = {task["ID"] for task in cluster.wait_running("web", 2)}

    done = cluster.view.run("service", "scale", "web=6")
    assert done.returncode == 0 and b"converged" in done.stdout
    assert first <= {task["ID"] for task in cluster.wait_running("web", 6)}
    cluster.view("service", "scale", "-d", "web=2")
    assert {task["Name"] for task in cluster.wait_running("web", 2)} == {"web.1", "web.2"}
    cluster.view("service", "scale", "-d", "web=0")
    eventually(lambda: cluster.tasks("web") == [])
    eventually(lambda: all(cluster.node(number)("ps", "-aq") == "" for number in (1, 2, 3)))


def test_a_global_service_runs_once_on_every_node_that_fits(cluster: Cluster) -> None:
    cluster.view("node", "update", "--label-add", "disk=ssd", "node-1")
    cluster.view("node", "update", "--label-add", "disk=ssd", "node-3")
    try:
        cluster.view(
            "service", "create", "--name", "everywhere", "--mode", "global", "--constraint", "node.labels.disk == ssd",
            "busybox", "sleep", "600",
        )  # fmt: skip
        assert {task["Node"] for task in cluster.wait_running("everywhere", 2)} == {"node-1", "node-3"}
        cluster.view("node", "update", "--label-rm", "disk", "node-3")
        assert {task["Node"] for task in cluster.wait_running("everywhere", 1)} == {"node-1"}
        cluster.view("node", "update", "--label-add", "disk=ssd", "node-2")
        assert {task["Node"] for task in cluster.wait_running("everywhere", 2)} == {"node-1", "node-2"}
    finally:
        for number in (1, 2, 3):
            cluster.view.run("node", "update", "--label-rm", "disk", f"node-{number}")


def test_a_task_that_cannot_be_placed_says_why_and_goes_on_once_it_can(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "picky", "--constraint", "node.labels.gpu==yes", "busybox", "sleep", "600"
    )
    task = eventually(lambda: _pending(cluster, "picky"))
    assert "no suitable node (scheduling constraints not satisfied on 3 nodes)" in task["Error"]
    cluster.view("node", "update", "--label-add", "gpu=yes", "node-2")
    try:
        assert cluster.wait_running("picky", 1)[0]["Node"] == "node-2"
    finally:
        cluster.view("node", "update", "--label-rm", "gpu", "node-2")


def test_reservations_that_no_node_has_leave_the_task_pending(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "huge", "--reserve-memory", "900g", "busybox", "sleep", "600")
    assert "insufficient resources on 3 nodes" in eventually(lambda: _pending(cluster, "huge"))["Error"]


def test_host_ports_spread_a_service_over_nodes_and_the_surplus_waits(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "web", "--replicas", "4", "--publish",
        "mode=host,target=80,published=18082",
        "busybox", "sleep", "600",
    )  # fmt: skip
    eventually(lambda: len(cluster.running("web")) == 3)
    waiting = eventually(lambda: _pending(cluster, "web"))
    assert "host-mode port already in use on 3 nodes" in waiting["Error"]


def test_a_rolling_update_replaces_tasks_a_few_at_a_time(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "4", "busybox", "sleep", "600")
    old = {task["ID"] for task in cluster.wait_running("web", 4)}

    done = cluster.view.run(
        "service", "update", "--env-add", "VERSION=2", "--update-parallelism", "2", "--update-delay", "1s",
        "--update-monitor", "1s", "--update-order", "start-first", "web", timeout=90,
    )  # fmt: skip
    assert done.returncode == 0 and b"converged" in done.stdout, done.stdout
    new = cluster.wait_running("web", 4)
    assert not old & {task["ID"] for task in new}
    status = eventually(lambda: _completed(cluster, "web"))
    assert status["StartedAt"] < status["CompletedAt"]


def test_start_first_never_runs_fewer_tasks_than_wanted(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    cluster.wait_running("web", 3)
    cluster.view(
        "service",
        "update",
        "-d",
        "--env-add",
        "VERSION=2",
        "--update-order",
        "start-first",
        "--update-monitor",
        "1s",
        "web",
    )
    deadline, seen = time.monotonic() + 40, []
    while time.monotonic() < deadline:
        tasks = json.loads(_tasks(cluster))
        seen.append(sum(task["Status"]["State"] == "running" for task in tasks))
        if cluster.view.json("service", "inspect", "web")[0]["UpdateStatus"]["State"] == "completed":
            break
    assert min(seen) >= 3, seen


def test_a_failing_update_pauses_and_rollback_brings_the_old_spec_back(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    cluster.wait_running("web", 2)
    cluster.view("service", "update", "-d", "--args", "false", "--update-delay", "3s", "--restart-delay", "1s", "web")
    eventually(lambda: cluster.view.json("service", "inspect", "web")[0]["UpdateStatus"]["State"] == "paused")
    assert len(cluster.running("web")) == 1

    cluster.view("service", "rollback", "-d", "web")
    cluster.wait_running("web", 2)
    assert cluster.view.json("service", "inspect", "web")[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Args"] == [
        "sleep",
        "600",
    ]


def test_an_update_with_rollback_as_failure_action_heals_itself(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    cluster.wait_running("web", 2)
    cluster.view(
        "service", "update", "-d", "--args", "no-such-program", "--update-failure-action", "rollback",
        "--update-monitor", "2s",
        "--rollback-monitor", "1s", "web",
    )  # fmt: skip
    eventually(
        lambda: cluster.view.json("service", "inspect", "web")[0]["UpdateStatus"]["State"] == "rollback_completed", 40
    )
    cluster.wait_running("web", 2)


@pytest.mark.parametrize(
    ("condition", "command", "expected"),
    [("none", "exit 0", 1), ("on-failure", "exit 0", 1), ("on-failure", "exit 3", 3), ("any", "exit 0", 3)],
)
def test_restart_policies_decide_over_replacements(
    cluster: Cluster, condition: str, command: str, expected: int
) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "once", "--restart-condition", condition, "--restart-delay", "100ms",
        "--restart-max-attempts", "2", "busybox", "sh", "-c", command,
    )  # fmt: skip
    eventually(lambda: len(cluster.view.rows("service", "ps", "once")) == expected)
    time.sleep(0.5)
    tasks = cluster.view.rows("service", "ps", "once", "--no-trunc")
    assert len(tasks) == expected, tasks
    if command == "exit 3":
        assert "task: non-zero exit (3)" in tasks[-1]["Error"]


def test_an_unhealthy_task_is_replaced(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "ill", "--restart-delay", "100ms", "--health-cmd", "test ! -e /tmp/ill",
        "--health-interval", "300ms", "--health-retries", "2", "busybox", "sleep", "600",
    )  # fmt: skip
    task = cluster.wait_running("ill", 1)[0]
    node = cluster.node(int(task["Node"][-1]))
    ident = node("ps", "-q", "--filter", "name=ill.1")
    node("exec", ident, "touch", "/tmp/ill")

    def replaced() -> bool:
        running = cluster.running("ill")
        return len(running) == 1 and running[0]["ID"] != task["ID"]

    eventually(replaced)


def test_an_image_that_does_not_exist_is_told_in_service_ps(cluster: Cluster, registry: str) -> None:
    cluster.view("service", "create", "-d", "--name", "lost", "--restart-delay", "10s", f"{registry}/no/such:image")
    failed = eventually(lambda: [t for t in cluster.view.rows("service", "ps", "lost", "--no-trunc") if t["Error"]])
    assert "no/such" in failed[0]["Error"] and failed[0]["CurrentState"].startswith("Rejected")


def test_service_logs_come_from_every_node_with_names(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "talk", "--replicas", "3", "busybox", "sh", "-c",
        "echo one; echo two >&2; sleep 600",
    )  # fmt: skip
    cluster.wait_running("talk", 3)

    def complete() -> str:
        done = cluster.view.run("service", "logs", "talk")
        text = (done.stdout + done.stderr).decode()
        assert text.count("one") == 3 and text.count("two") == 3, text
        return text

    text = eventually(complete)
    for number in (1, 2, 3):
        assert f"talk.{number}." in text and f"@node-{number}" in text
    assert cluster.view("service", "logs", "--raw", "--tail", "1", "talk").splitlines().count("one") <= 3
    task = cluster.tasks("talk")[0]["ID"]
    assert "one" in cluster.view("service", "logs", "--raw", "--timestamps", task)


def test_service_logs_follow_sees_what_comes(cluster: Cluster) -> None:
    cluster.view(
        "service",
        "create",
        "-d",
        "--name",
        "tick",
        "busybox",
        "sh",
        "-c",
        "i=0; while :; do i=$((i+1)); echo t$i; sleep 0.2; done",
    )
    cluster.wait_running("tick", 1)
    process = cluster.view.popen("service", "logs", "-f", "--raw", "tick", stdout=-1, stderr=-1)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode().strip() for _ in range(8)]
    finally:
        process.kill()
        process.communicate()
    numbers = [int(line.removeprefix("t")) for line in lines]
    assert numbers == list(range(numbers[0], numbers[0] + 8))


def test_followed_service_logs_go_on_after_their_agent_was_killed(cluster: Cluster) -> None:
    cluster.view(
        "service", "create", "-d", "--name", "tick", "--constraint", "node.hostname==node-3", "busybox", "sh", "-c",
        "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done",
    )  # fmt: skip
    cluster.wait_running("tick", 1)
    process = cluster.view.popen("service", "logs", "-f", "--raw", "tick", stdout=-1, stderr=-1)
    try:
        assert process.stdout is not None
        lines = [int(process.stdout.readline()) for _ in range(10)]
        agent = cluster.pid(3, "swarmlet-agent")
        os.kill(agent, 9)
        eventually(lambda: cluster.pid(3, "swarmlet-agent") != agent)
        # What the container wrote meanwhile, and what the next agent has told since.
        goal = int(eventually(lambda: cluster.node(3)("logs", "-n", "1", _containers(cluster, 3)[0])))
        while lines[-1] <= goal:
            lines.append(int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()
    assert lines == list(range(1, len(lines) + 1))


def _containers(cluster: Cluster, number: int) -> list[str]:
    return cluster.node(number)("ps", "-q").split()


def test_removing_a_service_leaves_no_container(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "busybox", "sleep", "600")
    cluster.wait_running("web", 3)

    assert cluster.view("service", "rm", "web") == "web"
    assert cluster.view.run("service", "inspect", "web").returncode == 1
    eventually(lambda: all(cluster.node(number)("ps", "-aq") == "" for number in (1, 2, 3)))
    cluster.view("service", "create", "-d", "--name", "web", "busybox", "sleep", "600")
    cluster.wait_running("web", 1)


def _completed(cluster: Cluster, service: str) -> dict[str, str] | None:
    status: dict[str, str] = cluster.view.json("service", "inspect", service)[0]["UpdateStatus"]
    return status if status["State"] == "completed" else None


def _pending(cluster: Cluster, service: str) -> dict[str, str] | None:
    return next(
        (task for task in cluster.tasks(service) if task["CurrentState"].startswith("Pending") and task["Error"]), None
    )


def _tasks(cluster: Cluster) -> str:
    from swarmlet.local.client import call

    found = call(cluster.view.socket, "GET", '/tasks?filters={"service":["web"],"desired-state":["running"]}')
    return json.dumps(found)
