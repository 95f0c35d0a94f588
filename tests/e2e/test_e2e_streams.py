"""Attach and exec as stock clients use them: streams both ways, terminals, WebSockets, much data, exit codes."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiodocker
import aiohttp
import docker.errors
import pytest
from docker import DockerClient
from e2e_cluster import Cluster, View, eventually, hang_up
from terminals import terminal

#: docker-py and aiodocker leave the sockets of hijacked connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:Unclosed (connection|response):ResourceWarning"
)
MB = 1 << 20


@pytest.fixture
def client(view: View) -> Iterator[DockerClient]:
    client = DockerClient(base_url=view.url, timeout=60)
    yield client
    client.close()
    del client
    gc.collect()


def running(view: View, name: str) -> bool:
    return view("inspect", "-f", "{{.State.Running}}", name) == "true"


def test_detach_keys_of_ones_own_leave_container_and_exec_running(view: View) -> None:
    with terminal(view, "run", "-it", "--name", "box", "--detach-keys", "ctrl-x,y", "busybox", "sh") as shell:
        shell.until("#")
        shell.type(b"echo a$((1+1))\n")
        shell.until("a2")
        shell.type(b"\x18")  # might be the beginning of the sequence, and is not
        shell.type(b"\x15echo b$((1+1))\n")
        shell.until("b2")
        shell.type(b"\x18y")
        shell.wait()
    assert running(view, "box")
    with terminal(view, "attach", "--detach-keys", "ctrl-a", "box") as shell:
        time.sleep(0.3)
        shell.type(b"echo c$((1+1))\n")
        shell.until("c2")
        shell.type(b"\x01")
        shell.wait()
    assert running(view, "box")
    with terminal(view, "exec", "-it", "--detach-keys", "ctrl-e,e", "box", "sh") as shell:
        shell.until("#")
        shell.type(b"exec sleep 601\n")
        eventually(lambda: "sleep 601" in view("top", "box"))
        shell.type(b"\x05e")
        assert shell.wait() in (0, 1)  # the client says: read escape sequence
    assert "sleep 601" in view("top", "box")
    done = view.run("exec", "--detach-keys", "nonsense-", "-it", "box", "sh")
    assert done.returncode == 1


def test_a_terminals_size_is_the_clients_from_the_beginning_and_follows_it(view: View) -> None:
    with terminal(view, "run", "--rm", "-it", "--name", "box", "busybox", "sh", rows=31, columns=97) as shell:
        shell.until("#")
        shell.type(b"stty size\n")
        shell.until("31 97")
        shell.resize(40, 120)
        shell.process.send_signal(28)  # SIGWINCH
        eventually(lambda: (shell.type(b"stty size\n"), shell.until("#"))[1].count("40 120"))
        with terminal(view, "exec", "-it", "box", "sh", rows=17, columns=71) as other:
            other.until("#")
            other.type(b"stty size; exit 4\n")
            other.until("17 71")
            assert other.wait() == 4
        shell.type(b"exit 3\n")
        assert shell.wait() == 3


def test_signals_of_the_client_reach_the_container_unless_told_otherwise(view: View) -> None:
    script = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.1; done"
    process = view.popen("run", "--name", "told", "busybox", "sh", "-c", script, stdout=-1, stderr=-1)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.send_signal(10)
    assert process.communicate(timeout=20)[0] == b"got\n" and process.returncode == 9

    options = ("--sig-proxy=false", "--name", "free")
    process = view.popen("run", *options, "busybox", "sh", "-c", script, stdout=-1, stderr=-1)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    while process.poll() is None:  # the client goes at the third that it sees; some may reach it as one
        process.terminate()
        time.sleep(0.1)
    process.communicate(timeout=20)
    assert running(view, "free")


def test_several_clients_see_the_same_and_all_can_type(view: View, client: DockerClient) -> None:
    ident = view("run", "-di", "--name", "box", "busybox", "sh", "-c", "while read x; do echo got $x; done")
    heard: list[list[bytes]] = [[], []]
    threads = [
        threading.Thread(target=lambda mine: mine.extend(client.api.attach("box", stream=True)), args=(mine,))
        for mine in heard
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: view("events", "--since", "2m", "--until", f"{time.time():.6f}", "--filter", "event=attach",
                            "--filter", f"container={ident}").count("attach") == 2)  # fmt: skip
    for word in (b"one", b"two"):
        connection = client.api.attach_socket("box", params={"stdin": 1, "stream": 1})
        connection._sock.sendall(word + b"\n")
        eventually(lambda word=word: all(b"got " + word in b"".join(mine) for mine in heard))
        hang_up(connection)
    view("kill", "box")
    for thread in threads:
        thread.join(20)
    assert [b"".join(mine) for mine in heard] == [b"got one\ngot two\n"] * 2


async def test_websocket_attach_carries_both_ways_and_replays_logs(view: View) -> None:
    api = aiodocker.Docker(url=view.url)
    try:
        view("run", "-di", "--name", "box", "busybox", "sh", "-c", "while read x; do echo got $x; done; echo bye >&2")
        box = await api.containers.get("box")
        socket = await box.websocket(stdin=True, stdout=True, stderr=True, stream=True)
        await socket.send_str("text\n")
        assert (await socket.receive(timeout=20)).data == b"got text\n"
        await socket.send_bytes(b"bytes\n")
        assert (await socket.receive(timeout=20)).data == b"got bytes\n"
        await socket.close()
        assert running(view, "box")

        again = await box.websocket(stdout=True, stderr=True, stream=True, logs=True)
        replayed = b""
        while replayed != b"got text\ngot bytes\n":
            replayed += (await again.receive(timeout=20)).data
        await box.kill()
        assert (await again.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE  # its end is the socket's
        await again.close()
    finally:
        await api.close()


def test_an_exec_is_inspected_from_its_making_to_its_end(view: View, client: DockerClient) -> None:
    ident = view("run", "-d", "--name", "box", "-e", "A=1", "busybox", "sleep", "600")
    script = "echo $A$B $(pwd) $(id -u):$(id -g); read x; exit $x"
    made = client.api.exec_create(
        "box", ["sh", "-c", script], stdin=True, environment={"B": "2"}, workdir="/tmp", user="1000:50"
    )["Id"]
    shown = client.api.exec_inspect(made)
    assert (shown["Running"], shown["ExitCode"], shown["Pid"], shown["ContainerID"]) == (False, None, 0, ident)
    assert shown["ProcessConfig"] == {
        "entrypoint": "sh", "arguments": ["-c", script], "tty": False, "privileged": False, "user": "1000:50",
    }
    assert (shown["OpenStdin"], shown["OpenStdout"], shown["OpenStderr"]) == (True, True, True)
    assert client.api.inspect_container("box")["ExecIDs"] == [made]

    connection = client.api.exec_start(made, socket=True)
    assert connection._sock.recv(8)[4:] == (len(b"12 /tmp 1000:50\n")).to_bytes(4, "big")
    assert connection._sock.recv(100) == b"12 /tmp 1000:50\n"
    shown = client.api.exec_inspect(made)
    assert shown["Running"] and shown["Pid"] > 0 and shown["ExitCode"] is None
    with pytest.raises(docker.errors.APIError, match="is already running"):
        client.api.exec_start(made)
    connection._sock.sendall(b"7\n")
    assert connection._sock.recv(100) == b""
    hang_up(connection)
    shown = client.api.exec_inspect(made)
    assert (shown["Running"], shown["ExitCode"]) == (False, 7)
    assert client.api.inspect_container("box")["ExecIDs"] in (None, [])
    with pytest.raises(docker.errors.APIError, match="has already run"):
        client.api.exec_start(made)
    with pytest.raises(docker.errors.NotFound, match="No such exec instance"):
        client.api.exec_inspect("nothing")


def test_an_execs_terminal_gets_the_size_that_is_sent_while_it_starts(view: View, client: DockerClient) -> None:
    view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    made = client.api.exec_create("box", ["sh", "-c", "read x; stty size"], stdin=True, tty=True)["Id"]
    connection = client.api.exec_start(made, tty=True, socket=True)
    client.api.exec_resize(made, height=33, width=99)
    connection._sock.sendall(b"now\n")
    shown = b""
    while data := connection._sock.recv(1000):
        shown += data
    hang_up(connection)
    assert b"33 99" in shown
    with pytest.raises(docker.errors.APIError, match="no such exec"):
        client.api.exec_resize(made, height=10, width=10)


def test_what_execs_end_with(view: View) -> None:
    view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    for command, code, says in (
        (["true"], 0, b""), (["sh", "-c", "exit 3"], 3, b""), (["sh", "-c", "kill -9 $$"], 137, b""),
        (["nothing-there"], 127, b"executable file not found in $PATH"),
        (["/etc/passwd"], 126, b"permission denied"),
    ):  # fmt: skip
        done = view.run("exec", "box", *command)
        assert done.returncode == code and says in done.stdout + done.stderr, (command, done)
    assert view.run("exec", "-u", "nobody-here", "box", "true").returncode == 126
    assert b"needs to be an absolute path" in view.run("exec", "-w", "relative", "box", "true").stderr
    usual = view("exec", "box", "grep", "CapEff", "/proc/self/status").split()[1]
    every = view("exec", "--privileged", "box", "grep", "CapEff", "/proc/self/status").split()[1]
    assert int(usual, 16) == 0xA80425FB and int(every, 16) & ~int(usual, 16)
    view("stop", "-t", "0", "box")
    assert b"is not running" in view.run("exec", "box", "true").stderr


def test_a_detached_exec_outlives_its_client_and_the_agent(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "box", "busybox", "sleep", "600")
    node("exec", "-d", "box", "sh", "-c", "for i in $(seq 30); do echo $i; sleep 0.1; done; touch /tmp/done")
    os.kill(cluster.pid(2, "swarmlet-agent"), 9)
    eventually(lambda: node.run("exec", "box", "test", "-e", "/tmp/done").returncode == 0)


def test_events_tell_of_execs(view: View) -> None:
    ident = view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    view.run("exec", "box", "sh", "-c", "exit 5")
    view("exec", "box", "env", "true")

    def told() -> list[str]:
        return view(
            "events", "--since", "2m", "--until", f"{time.time():.6f}", "--filter", f"container={ident}",
            "--filter", "event=exec_create", "--filter", "event=exec_start", "--filter", "event=exec_die",
            "--format", "{{.Action}}|{{.Actor.Attributes.exitCode}}",
        ).splitlines()  # fmt: skip

    expected = [
        "exec_create: sh -c exit 5|<no value>", "exec_start: sh -c exit 5|<no value>", "exec_die|5",
        "exec_create: env true|<no value>", "exec_start: env true|<no value>", "exec_die|0",
    ]  # fmt: skip
    eventually(lambda: len(told()) == 6)
    assert [line.replace("|", "|<no value>") if line.endswith("|") else line for line in told()] == expected


@pytest.mark.parametrize("how", ["run", "exec"])
def test_a_megabyte_goes_in_and_out_unchanged(view: View, how: str) -> None:
    data = os.urandom(MB)
    if how == "run":
        words = ["run", "--rm", "-i", "busybox", "cat"]
    else:
        view("run", "-d", "--name", "box", "busybox", "sleep", "600")
        words = ["exec", "-i", "box", "cat"]
    assert view.run(*words, input=data).stdout == data
    counted = view.run(*words[:-1], "sh", "-c", "cat | md5sum; echo err >&2", input=data)
    assert counted.stdout.split()[0].decode() == hashlib.md5(data).hexdigest() and counted.stderr == b"err\n"


@pytest.mark.parametrize("how", ["run", "exec"])
def test_a_gigabyte_goes_through_while_the_agents_memory_stays_small(cluster: Cluster, how: str) -> None:
    """In through stdin of one process, out through stdout of another; the first is counted, the second hashed."""
    node, total = cluster.node(2), 1 << 30
    agent = cluster.pid(2, "swarmlet-agent")
    node("run", "-d", "--name", "box", "busybox", "sleep", "600")
    base = ["run", "--rm", "-i", "--log-driver", "none", "busybox"] if how == "run" else ["exec", "-i", "box"]
    before = _resident(agent)
    block = os.urandom(MB)
    process = node.popen(*base, "wc", "-c", stdin=-1, stdout=-1)
    assert process.stdin and process.stdout
    for _ in range(total // MB):
        process.stdin.write(block)
    process.stdin.close()
    assert process.stdout.read().strip() == b"%d" % total and process.wait(60) == 0
    process.stdout.close()

    script = "dd if=/dev/zero bs=1M count=1024 2>/dev/null; echo end"
    process = node.popen(*base, "sh", "-c", script, stdin=-1, stdout=-1)
    assert process.stdin and process.stdout
    process.stdin.close()
    time.sleep(0.5)  # a client that does not read for a while is waited for
    size, last = 0, b""
    while data := process.stdout.read(MB):
        size += len(data)
        last = data
    assert size == total + 4 and last.endswith(b"end\n") and process.wait(60) == 0
    process.stdout.close()
    assert _resident(agent) - before < 24 * MB


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_end_of_input_is_passed_on_while_output_goes_on(view: View) -> None:
    script = "cat > /dev/null; echo eof; sleep 0.5; echo later"
    assert view.run("run", "--rm", "-i", "busybox", "sh", "-c", script, input=b"x").stdout == b"eof\nlater\n"
    view("run", "-d", "--name", "box", "busybox", "sleep", "600")
    assert view.run("exec", "-i", "box", "sh", "-c", script, input=b"x").stdout == b"eof\nlater\n"
