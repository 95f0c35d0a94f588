"""Containers through a node's own socket and through the cluster view, with the stock docker command."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
from e2e_cluster import Cluster, View, eventually


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("busybox", "true"), 0),
        (("busybox", "sh", "-c", "exit 3"), 3),
        (("busybox", "no-such-program"), 127),
        (("busybox", "/etc"), 126),
        (("busybox", "/etc/passwd"), 126),
        (("--memory", "1", "busybox", "true"), 125),
        (("--no-such-flag", "busybox"), 125),
    ],
)
def test_run_ends_with_the_right_exit_code(view: View, args: tuple[str, ...], code: int) -> None:
    done = view.run("run", "--rm", *args)
    assert done.returncode == code, done.stderr
    assert view("ps", "-aq") == ""


def test_run_gives_stdout_and_stderr_apart_and_takes_stdin(view: View) -> None:
    done = view.run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    data = os.urandom(3 << 20)
    assert view.run("run", "--rm", "-i", "busybox", "cat", input=data).stdout == data
    assert view.run("run", "--rm", "-i", "busybox", "wc", "-c", input=data).stdout.strip() == b"%d" % len(data)


def test_run_in_the_background_then_ps_logs_stop_and_rm(view: View) -> None:
    ident = view("run", "-d", "--name", "web", "--label", "a=b", "busybox", "sh", "-c", "echo hello; sleep 600")
    row = view.rows("ps", "--no-trunc", "--filter", "label=a=b")[0]
    assert (row["ID"], row["Names"], row["State"]) == (ident, "web", "running") and row["Status"].startswith("Up ")
    eventually(lambda: view("logs", "web") == "hello")

    assert view("stop", "-t", "1", "web") == "web"
    assert view("ps", "-q") == "" and view.rows("ps", "-a")[0]["Status"].startswith("Exited (137)")
    assert view("rm", "web") == "web" and view("ps", "-aq") == ""


def test_a_taken_name_is_refused_and_can_be_used_again_after_rm(view: View) -> None:
    view("create", "--name", "one", "busybox")
    again = view.run("create", "--name", "one", "busybox")
    assert again.returncode == 1 and b'The container name "/one" is already in use' in again.stderr
    view("rename", "one", "two")
    view("create", "--name", "one", "busybox")
    view("rm", "one", "two")


def test_logs_follow_tail_and_timestamps(view: View) -> None:
    view("run", "-d", "--name", "tick", "busybox", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo t$i; sleep 0.2; done")
    assert view("logs", "-f", "tick").split() == [f"t{i}" for i in range(1, 9)]
    assert view("logs", "--tail", "2", "tick").split() == ["t7", "t8"]
    stamped = view("logs", "-t", "--tail", "1", "tick")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z t8", stamped)
    stamp = stamped.split()[0]
    assert view("logs", "--since", stamp, "tick") == "t8"


def test_exec_runs_beside_with_env_user_workdir_and_exit_code(view: View) -> None:
    view("run", "-d", "--name", "box", "-e", "A=1", "busybox", "sleep", "600")
    assert view("exec", "box", "sh", "-c", "echo $A; hostname").startswith("1\n")
    shown = view("exec", "-e", "B=2", "-u", "1000:1000", "-w", "/tmp", "box", "sh", "-c", "echo $A$B; id -u; pwd")
    assert shown.split() == ["12", "1000", "/tmp"]
    assert view.run("exec", "box", "sh", "-c", "exit 9").returncode == 9
    assert view.run("exec", "box", "nothing-there").returncode == 127
    assert view.run("exec", "-i", "box", "cat", input=b"abc" * 100_000).stdout == b"abc" * 100_000
    assert view("exec", "-d", "box", "touch", "/tmp/made") == ""
    eventually(lambda: view.run("exec", "box", "test", "-e", "/tmp/made").returncode == 0)


def test_a_terminal_is_a_terminal(view: View) -> None:
    output, code = _on_terminal(view, ["run", "--rm", "-it", "busybox", "sh"], b"tty; stty size; exit 5\n")
    assert "/dev/pts/0" in output and "24 80" in output and code == 5
    view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    output, code = _on_terminal(view, ["exec", "-it", "box", "sh"], b"tty; stty size; exit 6\n")
    assert "/dev/pts/" in output and "24 80" in output and code == 6


def test_attach_sees_what_comes_and_sends_what_is_typed(view: View) -> None:
    script = 'while read x; do [ "$x" = end ] && exit 4; echo "got $x"; done'
    view("run", "-d", "-i", "--name", "echo", "busybox", "sh", "-c", script)
    process = view.popen("attach", "echo", stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin and process.stdout
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got one\n"
    process.stdin.write(b"two\nend\n")
    process.stdin.flush()  # as in Docker, the end of a client's input would end its attachment here
    assert process.stdout.read() == b"got two\n" and process.wait(20) == 4
    process.stdin.close()
    process.stdout.close()
    assert process.stderr
    process.stderr.close()


def test_detach_keys_leave_the_container_running(view: View) -> None:
    output, code = _on_terminal(
        view, ["run", "-it", "--name", "stay", "busybox", "sh"], b"echo here\n", then=b"\x10\x11"
    )
    assert "here" in output and code == 0
    assert view("inspect", "--format", "{{.State.Status}}", "stay") == "running"


def test_ctrl_c_ends_a_foreground_run(view: View) -> None:
    script = "trap 'exit 0' INT; echo ready; sleep 600 & wait"
    process = view.popen("run", "--rm", "busybox", "sh", "-c", script, stdout=-1, stderr=-1)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode in (0, 130)
    eventually(lambda: view("ps", "-aq") == "")


def test_start_restart_kill_and_wait(view: View) -> None:
    view("create", "--name", "box", "busybox", "sh", "-c", "echo up; sleep 600")
    assert view("inspect", "--format", "{{.State.Status}}", "box") == "created"
    view("start", "box")
    waiting = view.popen("wait", "box", stdout=-1)
    time.sleep(0.3)
    view("kill", "--signal", "KILL", "box")
    assert waiting.communicate(timeout=20)[0].strip() == b"137"
    view("start", "box")
    first = view("inspect", "--format", "{{.State.Pid}}", "box")
    view("restart", "-t", "0", "box")
    assert view("inspect", "--format", "{{.State.Pid}}", "box") not in (first, "0")
    eventually(lambda: view("logs", "box").split() == ["up", "up", "up"])
    assert view.run("start", "box").returncode == 0  # already running: nothing to do
    view("rm", "-f", "box")


def test_a_stop_signal_reaches_a_program_that_is_still_starting(view: View) -> None:
    script = "sleep 1; trap 'exit 5' TERM; while :; do sleep 0.1; done"
    view("run", "-d", "--name", "slow", "busybox", "sh", "-c", script)
    view("stop", "-t", "50", "slow")
    assert view("inspect", "--format", "{{.State.ExitCode}}", "slow") == "5"  # by the signal: 137 after the time


def test_top_stats_and_inspect(view: View) -> None:
    view("run", "-d", "--name", "box", "--memory", "64m", "busybox", "sh", "-c", "sleep 601 & sleep 602")
    top = view("top", "box")
    assert "sleep 601" in top and "sleep 602" in top and top.startswith("UID")
    assert "sleep 602" in view("top", "box", "-o", "pid,args")
    stats = view.json("stats", "--no-stream", "--format", "{{json .}}", "box")
    assert stats["PIDs"] == "2" and stats["MemUsage"].endswith("64MiB") and stats["Name"] == "box"
    shown = view.json("inspect", "box")[0]
    assert shown["Path"] == "sh" and shown["HostConfig"]["Memory"] == 64 << 20 and shown["State"]["Running"]


def test_restart_policies_of_plain_containers(view: View) -> None:
    view("run", "-d", "--name", "flaky", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 1")
    eventually(lambda: view("inspect", "--format", "{{.State.Status}} {{.RestartCount}}", "flaky") == "exited 2")
    view("run", "-d", "--name", "always", "--restart", "always", "busybox", "sh", "-c", "sleep 0.2")
    eventually(lambda: int(view("inspect", "--format", "{{.RestartCount}}", "always")) >= 2)


def test_volumes_keep_data_between_containers(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("volume", "create", "e2e-data")
    try:
        node("run", "--rm", "-v", "e2e-data:/data", "busybox", "sh", "-c", "echo kept > /data/file")
        assert node("run", "--rm", "-v", "e2e-data:/data:ro", "busybox", "cat", "/data/file") == "kept"
        assert node("run", "--rm", "-v", "/etc/passwd:/file:ro", "busybox", "head", "-c", "5", "/file") == "root:"
        busy = node("run", "-d", "-v", "e2e-data:/data", "busybox", "sleep", "600")
        assert b"volume is in use" in node.run("volume", "rm", "e2e-data").stderr
        node("rm", "-f", busy)
    finally:
        node("volume", "rm", "e2e-data")


def test_the_cluster_view_places_plain_containers_and_reaches_them_all(cluster: Cluster) -> None:
    names = [f"box{number}" for number in range(6)]
    for name in names:
        cluster.view("run", "-d", "--name", name, "busybox", "sleep", "600")
    per_node = [len(cluster.node(number)("ps", "-q").split()) for number in (1, 2, 3)]
    assert per_node == [2, 2, 2]
    assert {row["Names"] for row in cluster.view.rows("ps")} == set(names)
    for name in names:
        assert cluster.view("exec", name, "echo", name) == name
    ident = cluster.view("run", "-d", "-e", "constraint:node.hostname==node-3", "busybox", "sleep", "600")
    assert ident in cluster.node(3)("ps", "-q", "--no-trunc").split()
    refused = cluster.view.run("run", "-d", "-e", "constraint:node.hostname==nowhere", "busybox", "sleep", "600")
    assert refused.returncode == 125 and b"constraints not satisfied on 3 nodes" in refused.stderr


def test_through_the_cluster_containers_go_where_their_companions_and_volumes_are(cluster: Cluster) -> None:
    view = cluster.view
    home = "constraint:node.hostname==node-3"
    view("run", "-d", "--name", "pod", "--hostname", "pod", "-v", "/shared", "-e", home, "busybox", "sleep", "600")
    view("exec", "pod", "sh", "-c", "echo kept > /shared/file")
    try:
        for sharing in (("--network", "container:pod"), ("--link", "pod:x"), ("--pid", "container:pod")):
            assert view("run", "--rm", *sharing, "busybox", "echo", "there") == "there"
        assert view("run", "--rm", "--network", "container:pod", "busybox", "hostname") == "pod"
        assert view("run", "--rm", "--volumes-from", "pod", "busybox", "cat", "/shared/file") == "kept"
        refused = view.run("run", "--rm", "-e", home[:-1] + "1", "--volumes-from", "pod", "busybox", "true")
        assert refused.returncode == 125 and b"constraints not satisfied on 1 node" in refused.stderr
        view("volume", "create", "e2e-tied")
        view("run", "--rm", "-v", "e2e-tied:/data", "busybox", "sh", "-c", "echo first > /data/file")
        # The emptiest node is another one each time; the data are on one.
        for number in range(3):
            view("run", "-d", "--name", f"filler{number}", "busybox", "sleep", "600")
            assert view("run", "--rm", "-v", "e2e-tied:/data", "busybox", "cat", "/data/file") == "first"
    finally:
        view("rm", "-f", "-v", "pod", *(f"filler{number}" for number in range(3)))
        view("volume", "rm", "-f", "e2e-tied")


def test_events_tell_a_containers_life(view: View) -> None:
    since = view("run", "--rm", "busybox", "date", "+%s")
    view("run", "--rm", "--name", "short", "busybox", "true")
    time.sleep(1.1)
    until = str(int(time.time()))
    shown = view("events", "--since", since, "--until", until, "--filter", "container=short", "--format", "{{.Action}}")
    actions = shown.split()
    assert [action for action in actions if action in ("create", "start", "die", "destroy")] == [
        "create", "start", "die", "destroy",
    ]  # fmt: skip


def _on_terminal(view: View, args: list[str], typed: bytes, then: bytes = b"") -> tuple[str, int]:
    """Run docker on a pseudo-terminal of 24x80; returns what it showed and its exit code."""
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        ["docker", *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"DOCKER_HOST": view.url},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    output, deadline, sent = b"", time.monotonic() + 60, False
    try:
        while time.monotonic() < deadline:
            readable, _, _ = select.select([master], [], [], 0.2)
            if readable:
                try:
                    data = os.read(master, 65536)
                except OSError:
                    break
                if not data:
                    break
                output += data
            if not sent and (b"#" in output or b"$" in output):
                os.write(master, typed)
                sent = True
            elif sent and then and b"here" in output.split(b"\n", 1)[-1]:
                time.sleep(0.3)
                os.write(master, then)
                then = b""
            if process.poll() is not None and not readable:
                break
        return output.decode(errors="replace"), process.wait(30)
    finally:
        os.close(master)
        if process.poll() is None:
            process.kill()
            process.wait(30)
