"""A container's life as a stock client sees it: states, codes, messages, restart policies, recovery."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

import pytest
from docker import DockerClient
from e2e_cluster import Cluster, View, eventually

NEVER = "0001-01-01T00:00:00Z"


def state(view: View, name: str) -> dict[str, Any]:
    found: dict[str, Any] = view.json("inspect", name)[0]["State"]
    return found


def status(view: View, name: str) -> str:
    return view.rows("ps", "-a", "--filter", f"name=^/?{name}$")[0]["Status"]


def told(view: View, *filters: str) -> list[tuple[str, str, dict[str, str]]]:
    """(name, action, attributes) of what the last minute's events tell."""
    options = [word for each in filters for word in ("--filter", each)]
    shown = view("events", "--since", "1m", "--until", f"{time.time():.6f}", *options, "--format", "{{json .}}")
    events = [json.loads(line) for line in shown.splitlines()]
    return [(each["Actor"]["Attributes"].get("name", ""), each["Action"], each["Actor"]["Attributes"])
            for each in events]  # fmt: skip


def kills(view: View, name: str) -> list[float]:
    """When the container was sent a signal, in seconds."""
    ident = view("inspect", "-f", "{{.Id}}", name)
    shown = view("events", "--since", "5m", "--until", f"{time.time():.6f}", "--filter", f"container={ident}",
                 "--filter", "event=kill", "--format", "{{json .}}")  # fmt: skip
    return [json.loads(line)["timeNano"] / 1e9 for line in shown.splitlines()]


def refused(view: View, *args: str) -> str:
    done = view.run(*args)
    assert done.returncode == 1, done
    return done.stderr.decode()


def test_a_life_from_created_to_removed(view: View) -> None:
    ident = view("create", "--name", "box", "busybox", "sh", "-c", "sleep 600 & wait; exit 7")
    made = state(view, "box")
    assert (made["Status"], made["Running"], made["Pid"]) == ("created", False, 0)
    assert (made["StartedAt"], made["FinishedAt"], status(view, "box")) == (NEVER, NEVER, "Created")

    view("start", "box")
    runs = state(view, "box")
    assert (runs["Status"], runs["Running"], runs["FinishedAt"]) == ("running", True, NEVER) and runs["Pid"] > 0
    assert status(view, "box").startswith("Up ")

    view("pause", "box")
    assert (state(view, "box")["Status"], state(view, "box")["Paused"]) == ("paused", True)
    assert status(view, "box").endswith("(Paused)")
    assert f"container {ident} is already paused" in refused(view, "pause", "box")
    assert "is paused, unpause the container before exec" in refused(view, "exec", "box", "true")
    assert "cannot start a paused container, try unpause instead" in refused(view, "start", "box")
    assert 'container is paused: unpause and then stop the container before' in refused(view, "rm", "box")
    view("unpause", "box")
    assert f"Container {ident} is not paused" in refused(view, "unpause", "box")
    assert "container is running: stop the container before removing or force remove" in refused(view, "rm", "box")

    view("stop", "-t", "0", "box")
    over = state(view, "box")
    assert (over["Status"], over["ExitCode"], over["Pid"]) == ("exited", 137, 0)
    assert NEVER < over["StartedAt"] < over["FinishedAt"]
    assert status(view, "box").startswith("Exited (137) ")
    assert view("stop", "box") == "box"  # 304: it is stopped already
    message = f"cannot kill container: box: container {ident} is not running"
    assert message in refused(view, "kill", "box")
    assert f"container {ident} is not running" in refused(view, "pause", "box")
    assert f"container {ident} is not running" in refused(view, "top", "box")
    view("rm", "box")
    assert "No such container: box" in refused(view, "rm", "box")
    said = "Error response from daemon: cannot kill container: box: No such container: box\n"
    assert refused(view, "kill", "box") == said
    assert refused(view, "restart", "box") == "Error response from daemon: No such container: box\n"


def test_a_restart_that_fails_says_that_it_was_one(view: View) -> None:
    view("create", "--name", "box", "busybox", "not-there")
    said = refused(view, "restart", "box")
    assert said.startswith("Error response from daemon: Cannot restart container box: ") and "not-there" in said
    assert refused(view, "restart", "--signal", "ODD", "box") == "Error response from daemon: invalid signal: ODD\n"


def test_a_program_that_cannot_be_started_says_why_in_the_state(view: View) -> None:
    for name, command, code, reason in (
        ("none", "nothing-there", 127, "executable file not found in $PATH"), ("folder", "/etc", 126, "is a directory"),
    ):  # fmt: skip
        view("create", "--name", name, "busybox", command)
        assert reason in refused(view, "start", name)
        found = state(view, name)
        assert (found["Status"], found["ExitCode"], found["StartedAt"]) == ("created", code, NEVER)
        assert reason in found["Error"] and status(view, name) == "Created"


def test_a_container_out_of_memory_says_so(view: View) -> None:
    assert view.run("run", "--name", "full", "-m", "8m", "busybox", "tail", "/dev/zero").returncode == 137
    assert state(view, "full")["OOMKilled"]
    assert ("full", "oom") in [(name, action) for name, action, _ in told(view, "container=full")]


def test_signals_reach_a_paused_container_which_then_goes_on(view: View) -> None:
    view("run", "-d", "--name", "box", "busybox", "sh", "-c", "trap 'echo usr' USR1; while :; do sleep 0.1; done")
    view("exec", "box", "true")
    view("pause", "box")
    view("kill", "-s", "USR1", "box")
    assert state(view, "box")["Status"] == "running"
    eventually(lambda: view("logs", "box") == "usr")
    view("pause", "box")
    view("stop", "-t", "0", "box")
    assert state(view, "box")["ExitCode"] == 137


def test_the_containers_own_stop_signal_and_timeout_are_used(view: View) -> None:
    script = "trap 'exit 3' TERM; trap 'exit 4' QUIT; while :; do sleep 0.1; done"
    view("run", "-d", "--name", "quit", "--stop-signal", "QUIT", "busybox", "sh", "-c", script)
    view("stop", "quit")
    assert state(view, "quit")["ExitCode"] == 4
    view("start", "quit")
    view("stop", "-s", "TERM", "quit")
    assert state(view, "quit")["ExitCode"] == 3

    script = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"
    view("run", "-d", "--name", "deaf", "--stop-timeout", "1", "busybox", "sh", "-c", script)
    eventually(lambda: view("logs", "deaf") == "deaf")
    view("stop", "deaf")
    first, last = kills(view, "deaf")
    assert 0.9 < last - first < 8 and state(view, "deaf")["ExitCode"] == 137  # without the option it would be 10

    script = "trap 'sleep 1; exit 5' TERM; echo slow; while :; do sleep 0.1; done"
    view("run", "-d", "--name", "slow", "--stop-timeout", "0", "busybox", "sh", "-c", script)
    eventually(lambda: view("logs", "slow") == "slow")
    view("stop", "-t", "-1", "slow")  # waits as long as it takes
    assert state(view, "slow")["ExitCode"] == 5


def test_start_attached_takes_input_and_ends_with_the_exit_code(view: View) -> None:
    view("create", "-i", "--name", "cat", "busybox", "sh", "-c", "read x; echo got $x; exit 3")
    done = view.run("start", "-a", "-i", "cat", input=b"this\n")
    assert (done.stdout, done.returncode) == (b"got this\n", 3)
    done = view.run("start", "-a", "-i", "cat", input=b"that\n")
    assert (done.stdout, done.returncode) == (b"got that\n", 3)


def test_waiting_for_each_condition(view: View) -> None:
    client = DockerClient(base_url=view.url, timeout=30)
    try:
        view("create", "--name", "box", "busybox", "sh", "-c", "sleep 0.3; exit 6")
        assert client.api.wait("box")["StatusCode"] == 0  # not-running: it never ran
        started = view.popen("start", "box", stdout=subprocess.DEVNULL)
        assert client.api.wait("box", condition="next-exit")["StatusCode"] == 6
        assert started.wait(20) == 0
        assert client.api.wait("box", condition="not-running")["StatusCode"] == 6
        removing = view.popen("run", "--rm", "--name", "gone", "busybox", "sh", "-c", "sleep 1; exit 4")
        eventually(lambda: view("ps", "-q", "--filter", "name=gone"))
        assert client.api.wait("gone", condition="removed")["StatusCode"] == 4
        assert view("ps", "-aq", "--filter", "name=gone") == "" and removing.wait(20) == 4
    finally:
        client.close()


def test_an_on_failure_policy_counts_its_restarts_and_stop_ends_any_policy(view: View) -> None:
    view("run", "-d", "--name", "fails", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 4")
    view("run", "-d", "--name", "works", "--restart", "on-failure:2", "busybox", "true")
    view("run", "-d", "--name", "loops", "--restart", "unless-stopped", "busybox", "sh", "-c", "exit 1")
    eventually(lambda: view("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "fails") == "exited 2")
    assert state(view, "fails")["ExitCode"] == 4
    eventually(lambda: state(view, "works")["Status"] == "exited")
    assert view("inspect", "-f", "{{.RestartCount}}", "works") == "0"

    waiting = eventually(lambda: (found := state(view, "loops"))["Status"] == "restarting" and found)
    assert waiting["Running"] and waiting["Restarting"] and waiting["ExitCode"] == 1
    eventually(lambda: status(view, "loops").startswith("Restarting (1) "))
    view("stop", "loops")
    count = view("inspect", "-f", "{{.RestartCount}}", "loops")
    time.sleep(0.5)
    assert view("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "loops") == f"exited {count}"


def test_a_policy_may_be_changed_and_the_limits_with_it(view: View) -> None:
    view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    view("update", "--restart", "on-failure:3", "--memory", "32m", "--memory-swap", "64m", "--cpus", "0.5", "box")
    host = view.json("inspect", "box")[0]["HostConfig"]
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert (host["Memory"], host["NanoCpus"]) == (32 << 20, 500_000_000)
    pid = state(view, "box")["Pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: view("inspect", "-f", "{{.RestartCount}}", "box") == "1")
    view("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "600")
    assert "because AutoRemove is enabled" in refused(view, "update", "--restart", "always", "brief")
    assert "Minimum memory limit allowed is 6MB" in refused(view, "update", "--memory", "4m", "box")


def test_a_running_container_can_be_renamed(view: View) -> None:
    ident = view("run", "-d", "--name", "before", "busybox", "sleep", "600")
    other = view("create", "--name", "other", "busybox")
    view("rename", "before", "after")
    assert view("inspect", "-f", "{{.Id}} {{.Name}}", "after") == f"{ident} /after"
    assert "No such container: before" in refused(view, "stop", "before")
    taken = refused(view, "rename", "after", "other")
    assert taken.startswith(
        "Error response from daemon: Error when allocating new name: Conflict. The container name \"/other\" is "
        f'already in use by container "{other}". You have to remove (or rename) that container to be able to reuse '
        "that name.\n"
    )
    assert "Renaming a container with the same name as its current name" in refused(view, "rename", "after", "after")
    assert "Error when allocating new name: Invalid container name (/a/b)" in refused(view, "rename", "after", "a/b")


def test_removal_takes_anonymous_volumes_only_when_asked(cluster: Cluster) -> None:
    node = cluster.node(2)
    before = set(node("volume", "ls", "-q").split())
    node("run", "--name", "keeps", "-v", "/data", "busybox", "true")
    node("run", "--name", "takes", "-v", "/data", "-v", "life-named:/named", "busybox", "true")
    node("rm", "-v", "takes")
    node("rm", "keeps")
    left = set(node("volume", "ls", "-q").split()) - before
    assert len(left) == 2 and "life-named" in left
    node("run", "--rm", "-v", "/data", "-v", "life-named:/named", "busybox", "true")
    assert set(node("volume", "ls", "-q").split()) - before == left
    node("volume", "rm", *left)


def test_a_link_is_removed_without_its_container(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "database", "busybox", "sleep", "600")
    node("run", "-d", "--name", "client", "--link", "database:db", "busybox", "sleep", "600")
    assert node.json("inspect", "client")[0]["HostConfig"]["Links"] == ["/database:/client/db"]
    node("rm", "--link", "client/db")
    assert node.json("inspect", "client")[0]["HostConfig"]["Links"] is None
    assert state(node, "client")["Running"]


def test_pruning_takes_what_does_not_run_and_matches(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "--name", "old", "--label", "kind=test", "busybox", "true")
    node("run", "--name", "kept", "--label", "keep=1", "busybox", "true")
    node("create", "--name", "made", "busybox")
    node("run", "-d", "--name", "runs", "--label", "kind=test", "busybox", "sleep", "600")
    assert node("container", "prune", "-f", "--filter", "until=1h").endswith("Total reclaimed space: 0B")
    assert len(node("ps", "-aq").split()) == 4
    assert node("inspect", "-f", "{{.Id}}", "old") in node("container", "prune", "-f", "--filter", "label=kind=test")
    node("container", "prune", "-f", "--filter", "label!=keep")
    assert {row["Names"] for row in node.rows("ps", "-a")} == {"kept", "runs"}
    prunes = told(node, "event=prune", "type=container")
    assert [list(attributes) for _, _, attributes in prunes[-3:]] == [["reclaimed"]] * 3


def test_ps_shows_sizes(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "--name", "writes", "busybox", "sh", "-c", "head -c 3000000 /dev/zero > /file")
    size = node.rows("ps", "-a", "-s")[0]["Size"]
    assert size.startswith("3") and "MB (virtual " in size
    assert node.json("inspect", "-s", "writes")[0]["SizeRw"] >= 3_000_000


def test_restart_policies_hold_over_the_agents_death(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "stays", "--restart", "unless-stopped", "busybox", "sh", "-c", "echo run; sleep 600")
    node("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "600")
    node("stop", "-t", "0", "stopped")
    node("run", "-d", "--name", "loops", "--restart", "always", "busybox", "sh", "-c", "sleep 0.3; exit 1")
    node("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "1")
    pid = state(node, "stays")["Pid"]
    os.kill(cluster.pid(2, "swarmlet-agent"), signal.SIGKILL)
    time.sleep(1.2)  # brief ends while nobody looks, or while the next agent takes things up

    eventually(lambda: node("ps", "-aq", "--filter", "name=brief") == "")
    assert state(node, "stays")["Pid"] == pid and state(node, "stopped")["Status"] == "exited"
    count = int(node("inspect", "-f", "{{.RestartCount}}", "loops"))
    eventually(lambda: int(node("inspect", "-f", "{{.RestartCount}}", "loops")) > count)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: node("logs", "stays").split() == ["run", "run"])


def test_a_reboot_starts_what_its_policy_wants_started(cluster: Cluster) -> None:
    node = cluster.node(3)
    policies = {"always": "always", "unless": "unless-stopped", "failure": "on-failure", "never": "no"}
    for name, policy in policies.items():
        node("run", "-d", "--name", name, "--restart", policy, "busybox", "sleep", "600")
    node("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "600")
    node("run", "-d", "--name", "again", "--restart", "always", "busybox", "sleep", "600")
    node("stop", "-t", "0", "stopped", "again")
    node("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "600")
    cluster.command("kill", 3)
    cluster.command("start", 3)

    eventually(lambda: node.run("ps").returncode == 0)
    wanted = {"always": "running", "unless": "running", "failure": "running", "again": "running",
              "never": "exited", "stopped": "exited"}  # fmt: skip
    eventually(lambda: {row["Names"]: row["State"] for row in node.rows("ps", "-a")} == wanted)
    assert state(node, "never")["ExitCode"] == 255
    eventually(lambda: "node-3" in cluster.ready())


@pytest.mark.parametrize("options", [["aux"], ["-o", "pid,user,args"], ["-eo", "pid,comm"], []])
def test_top_takes_the_options_of_ps(view: View, options: list[str]) -> None:
    view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    assert "PID" in (shown := view("top", "box", *options)) and "sleep" in shown
    assert "ps: error: " in refused(view, "top", "box", "--no-such-option")
    assert "Couldn't find PID field in ps output" in refused(view, "top", "box", "-o", "user")


def test_stats_have_what_dockers_formula_needs(view: View) -> None:
    view("run", "-d", "--name", "busy", "--cpus", "0.2", "busybox", "sh", "-c", "while :; do :; done")
    client = DockerClient(base_url=view.url, timeout=30)
    try:
        samples = client.api.stats("busy", decode=True)
        first, second = next(samples), next(samples)
        samples.close()
        assert first["precpu_stats"].get("system_cpu_usage", 0) == 0
        used = second["cpu_stats"]["cpu_usage"]["total_usage"] - second["precpu_stats"]["cpu_usage"]["total_usage"]
        system = second["cpu_stats"]["system_cpu_usage"] - second["precpu_stats"]["system_cpu_usage"]
        percent = used / system * second["cpu_stats"]["online_cpus"] * 100
        assert 2 < percent < 40, percent
        assert second["memory_stats"]["usage"] > 0 and second["memory_stats"]["limit"] > second["memory_stats"]["usage"]
        assert second["networks"]["eth0"]["rx_bytes"] >= 0 and second["pids_stats"]["current"] == 1
        once = client.api.stats("busy", stream=False, one_shot=True)
        assert once["precpu_stats"]["cpu_usage"]["total_usage"] == 0 and once["name"] == "/busy"
        assert client.api.stats("busy", stream=False)["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    finally:
        client.close()
