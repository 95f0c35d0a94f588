"""Events of containers as stock clients see them: every action with Docker's attributes, filters, replay."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from docker import DockerClient
from e2e_cluster import Cluster, View, eventually, hang_up
from terminals import terminal


def told(view: View, *options: str) -> list[dict[str, Any]]:
    """The last two minutes' events."""
    shown = view("events", "--since", "2m", "--until", f"{time.time():.6f}", *options, "--format", "{{json .}}")
    return [json.loads(line) for line in shown.splitlines()]


def actions(view: View, ident: str) -> list[str]:
    return [each["Action"] for each in told(view, "--filter", f"container={ident}", "--filter", "type=container")]


def test_each_action_is_told_with_its_attributes(view: View, tmp_path: Path) -> None:
    ident = view("create", "--name", "one", "--label", "a=b", "busybox", "sh", "-c", "sleep 600 & wait; exit 3")
    view("start", "one")
    view("rename", "one", "two")
    view("update", "--cpu-shares", "512", "two")
    view("pause", "two")
    view("unpause", "two")
    view("top", "two")
    view("exec", "two", "true")
    view("kill", "-s", "CONT", "two")
    view("restart", "-t", "0", "two")
    (tmp_path / "file").write_text("text")
    view("cp", str(tmp_path / "file"), "two:/file")
    view("cp", "two:/file", str(tmp_path / "again"))
    view("export", "-o", str(tmp_path / "tar"), "two")
    view("stop", "-t", "0", "two")
    view("rm", "two")

    assert [action for action in actions(view, ident) if not action.startswith("exec_")] == [
        "create", "start", "rename", "update", "pause", "unpause", "top", "kill",
        "kill", "kill", "die", "stop", "start", "restart",
        "extract-to-dir", "archive-path", "export", "kill", "kill", "die", "stop", "destroy",
    ]  # fmt: skip
    events = told(view, "--filter", f"container={ident}", "--filter", "type=container")
    first = {each["Action"].partition(":")[0]: each["Actor"]["Attributes"] for each in reversed(events)}
    assert all({"a", "image", "name"} <= set(each) and each["image"] == "busybox" for each in first.values())
    assert (first["create"]["name"], first["rename"]["oldName"], first["rename"]["name"]) == ("one", "/one", "two")
    assert first["kill"]["signal"] == "18"
    assert first["die"]["exitCode"] == "137" and int(first["die"]["execDuration"]) < 120
    assert len(first["exec_create"]["execID"]) == 64 and first["exec_die"]["exitCode"] == "0"
    event = events[0]
    assert (event["status"], event["id"], event["from"], event["Type"], event["scope"]) == (
        "create", ident, "busybox", "container", "local",
    )  # fmt: skip
    assert event["timeNano"] // 10**9 == event["time"] and event["Actor"]["ID"] == ident


def test_filters_and_times_choose_events(view: View) -> None:
    began = time.time()
    mine = view("run", "-d", "--name", "mine", "--label", "team=blue", "busybox", "true")
    other = view("run", "-d", "--name", "other", "--label", "team=red", "busybox", "true")
    eventually(lambda: "die" in actions(view, mine) and "die" in actions(view, other))

    def ids(*options: str) -> set[str]:
        since = f"{began:.6f}"
        shown = view("events", "--since", since, "--until", f"{time.time():.6f}", *options, "--format", "{{.Actor.ID}}")
        return set(shown.split())

    assert ids("--filter", "label=team=blue") == {mine} == ids("--filter", "container=mine")
    assert ids("--filter", "label=team", "--filter", "event=die") == {mine, other}
    assert ids("--filter", "container=mine", "--filter", "container=other", "--filter", "event=start") == {mine, other}
    assert ids("--filter", "image=busybox", "--filter", "event=create", "--filter", "type=container") == {mine, other}
    assert ids("--filter", "type=volume") == set()
    middle = next(each["timeNano"] for each in told(view, "--filter", f"container={other}"))
    later = view("events", "--since", f"{middle // 10**9}.{middle % 10**9:09}", "--until", f"{time.time():.6f}",
                 "--filter", "event=create", "--format", "{{.Actor.Attributes.name}}")  # fmt: skip
    assert later.split() == ["other"]  # since is inclusive, and what was before is not told again
    assert b"invalid filter" in view.run("events", "--filter", "nonsense=1", "--until", "1").stderr


def test_a_listener_hears_what_happens_until_its_time_is_up(view: View) -> None:
    view("create", "--name", "heard", "busybox", "sh", "-c", "exit 7")
    until = f"{time.time() + 8:.3f}"
    listening = view.popen("events", "--until", until, "--filter", "event=die", "--filter", "container=heard",
                           "--format", "{{.Actor.Attributes.exitCode}}", stdout=subprocess.PIPE)  # fmt: skip
    while listening.poll() is None:  # it may not be listening yet at first
        view.run("start", "heard")
        view("wait", "heard")
    heard = listening.communicate(timeout=30)[0]
    assert set(heard.split()) == {b"7"} and listening.returncode == 0
    view("rm", "heard")


def test_terminals_detaching_and_running_out_of_memory_are_told(cluster: Cluster) -> None:
    node = cluster.node(2)
    ident = node("run", "-dit", "--name", "term", "busybox", "sh")
    with terminal(node, "attach", "--detach-keys", "ctrl-a", "term") as shell:
        shell.type(b"echo a$((1+1))\n")
        shell.until("a2")
        shell.type(b"\x01")  # the command leaves by itself: the engine sees no keys
        shell.wait()
    client = DockerClient(base_url=node.url, timeout=30)
    try:
        options = {"stdin": 1, "stdout": 1, "stream": 1, "detachKeys": "ctrl-a,b"}
        connection = client.api.attach_socket("term", params=options)
        connection._sock.sendall(b"\x01b")
        while connection._sock.recv(1000):
            pass
        hang_up(connection)
    finally:
        client.close()
    eventually(lambda: "detach" in actions(node, ident))
    assert "resize" in actions(node, ident)
    sizes = [each["Actor"]["Attributes"] for each in told(node, "--filter", "event=resize")]
    assert {"height", "width"} <= set(sizes[-1])
    full = node("run", "-d", "-m", "8m", "busybox", "tail", "/dev/zero")
    eventually(lambda: actions(node, full)[-2:] == ["oom", "die"])


def test_what_vanished_or_is_stuck_gives_errors_and_never_hangs(cluster: Cluster) -> None:
    """A container whose files somebody deleted still stops and goes; one whose process cannot die is told."""
    node = cluster.node(2)
    ident = node("run", "-d", "--name", "gone", "busybox", "sleep", "600")
    log = Path(node("inspect", "-f", "{{.LogPath}}", "gone"))
    shutil.rmtree(log.parent)
    assert node("logs", "gone") == ""
    node("stop", "-t", "0", "gone")
    done = node.run("start", "gone", timeout=30)
    assert done.returncode == 0 or b"Error response from daemon" in done.stderr
    node("rm", "-f", "gone")
    assert node("ps", "-aq", "--filter", f"id={ident}") == ""

    node("run", "-d", "--name", "stuck", "busybox", "sleep", "600")
    frozen = _freezer(int(node("inspect", "-f", "{{.State.Pid}}", "stuck")))
    frozen.write_text("FROZEN" if frozen.name == "freezer.state" else "1")
    try:
        done = node.run("kill", "stuck", timeout=40)
        stuck = b"did not receive an exit event" in done.stderr
        assert done.returncode == 0 or stuck, done.stderr
    finally:
        frozen.write_text("THAWED" if frozen.name == "freezer.state" else "0")
    eventually(lambda: node("inspect", "-f", "{{.State.Status}}", "stuck") == "exited")


def _freezer(pid: int) -> Path:
    """The file that freezes a process's cgroup; cgroup v1 keeps even SIGKILL waiting then, v2 does not."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/freezer{path}/freezer.state")
    return Path(f"/sys/fs/cgroup{path}/cgroup.freeze")
