"""Logs as stock clients read them: what is asked for, nothing lost, files kept within their limits, drivers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from docker import DockerClient
from e2e_cluster import Cluster, View, eventually

from swarmlet.model.times import parse_rfc3339


def log_sizes(node: View, name: str) -> list[int]:
    path = Path(node("inspect", "-f", "{{.LogPath}}", name))
    return [each.stat().st_size for each in path.parent.glob(f"{path.name}*")]


def _within(node: View, name: str, limit: int) -> bool:
    sizes = log_sizes(node, name)
    assert max(sizes) <= limit, sizes
    return True


def test_the_wanted_part_of_a_log(view: View) -> None:
    view("run", "--name", "count", "busybox", "sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.3; done; echo e >&2")
    assert view.run("logs", "count").stderr == b"e\n"
    assert view("logs", "-n", "3", "count").split() == ["3", "4"]  # the third is on stderr
    assert view("logs", "--tail", "all", "count") == view("logs", "--tail", "10", "count") == "1\n2\n3\n4"
    assert view("logs", "-n", "0", "count") == ""

    stamped = [line.split() for line in view("logs", "-t", "count").splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp, _ in stamped)
    third = stamped[2][0]
    assert view("logs", "--since", third, "count").split() == ["3", "4"]
    assert view("logs", "--until", third, "count").split() == ["1", "2", "3"]
    second = parse_rfc3339(stamped[1][0])
    fraction = f"{second // 10**9}.{second % 10**9:09}"
    assert view("logs", "--since", fraction, "--until", third, "count").split() == ["2", "3"]
    assert view("logs", "--since", "10m", "count").split() == ["1", "2", "3", "4"]
    assert view("logs", "--since", "2099-01-01", "count") == view("logs", "--until", "10m", "count") == ""


def test_details_show_what_the_log_options_name(view: View) -> None:
    options = ("--log-opt", "labels=team", "--log-opt", "env=STAGE", "--log-opt", "tag={{.Name}}")
    view("run", "--name", "told", *options, "--label", "team=blue", "-e", "STAGE=test", "busybox", "echo", "hello")
    assert view("logs", "--details", "told") == "STAGE=test,tag=told,team=blue hello"
    assert view("logs", "told") == "hello"


def test_following_ends_with_the_container_and_each_line_is_one_frame(view: View) -> None:
    again = "[ ! -e /again ] || while [ ! -e /done ]; do echo beat; sleep 0.1; done; touch /again"
    lines = f"for i in $(seq 200); do echo line $i; done; {again}"
    script = f"{lines}; sleep 0.3; printf 'a part'; sleep 0.3; echo ' of a line'"
    view("run", "-d", "--name", "follow", "busybox", "sh", "-c", script)
    client = DockerClient(base_url=view.url, timeout=60)
    try:
        frames = list(client.api.logs("follow", stream=True, follow=True))
    finally:
        client.close()
    assert frames == [b"line %d\n" % number for number in range(1, 201)] + [b"a part of a line\n"]
    assert view("logs", "-f", "follow").splitlines()[-1] == "a part of a line"  # of one that has ended: ends at once
    view("start", "follow")
    following = view.popen("logs", "-f", "-n", "0", "follow", stdout=subprocess.PIPE)
    assert following.stdout is not None
    with following.stdout:
        shown = [following.stdout.readline()]
        view("exec", "follow", "touch", "/done")
        shown += following.stdout
    assert following.wait(30) == 0 and shown[-1] == b"a part of a line\n"
    told = view.run("logs", "follow").stdout.splitlines(keepends=True)
    assert shown == told[-len(shown) :] and len(shown) <= len(told) - 201  # nothing of the first run


def test_long_lines_and_a_last_one_without_end_come_out_whole(view: View) -> None:
    script = "head -c 100000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo; printf end"
    view("run", "--name", "long", "busybox", "sh", "-c", script)
    assert view.run("logs", "long").stdout == b"x" * 100_000 + b"\n" + b"y" * 16384 + b"\nend"
    stamped = view.run("logs", "-t", "long").stdout.splitlines()
    assert [len(line) - 31 for line in stamped] == [100_000, 16384, 3]
    assert view.run("logs", "-n", "1", "long").stdout == b"end"


def test_a_terminals_log_is_its_bytes(view: View) -> None:
    view("run", "-t", "--name", "term", "busybox", "sh", "-c", "echo out; echo err >&2; printf '\\033[1mbold'")
    assert view.run("logs", "term").stdout == b"out\r\nerr\r\n\x1b[1mbold"
    assert re.fullmatch(rb"\S{30} err\r\n\S{30} \x1b\[1mbold", view.run("logs", "-t", "-n", "2", "term").stdout)


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_a_log_is_kept_within_its_limits_however_fast_it_grows(cluster: Cluster, driver: str) -> None:
    node = cluster.node(2)
    limits = ("max-size=100k", "max-file=3", "compress=false")
    options = ("--log-driver", driver, *(word for each in limits for word in ("--log-opt", each)))
    node("run", "--name", "brief", *options, "busybox", "seq", "1", "50000")
    kept = node("logs", "brief").splitlines()
    assert kept == [str(number) for number in range(50001 - len(kept), 50001)] and len(kept) > 3000
    assert len(sizes := log_sizes(node, "brief")) == 3 and max(sizes) <= 125 << 10

    node("run", "-d", "--name", "fast", *options, "busybox", "sh", "-c", "seq 1 400000; sleep 600")
    eventually(lambda: node("logs", "-n", "1", "fast") == "400000")
    eventually(lambda: _within(node, "fast", 125 << 10))
    kept = node("logs", "fast").splitlines()
    assert kept == [str(number) for number in range(400001 - len(kept), 400001)] and len(kept) > 1000


def test_a_follower_misses_nothing_over_rotations(cluster: Cluster) -> None:
    node = cluster.node(2)
    options = ("--log-opt", "max-size=20k", "--log-opt", "max-file=3", "--log-opt", "compress=true")
    script = "for i in $(seq 60); do seq $((i * 100)) $((i * 100 + 99)); sleep 0.05; done"
    node("run", "-d", "--name", "turns", *options, "busybox", "sh", "-c", script)
    assert node("logs", "-f", "turns").split() == [str(number) for number in range(100, 6100)]
    kept = node("logs", "turns").split()
    assert kept == [str(number) for number in range(6100 - len(kept), 6100)] and len(kept) < 3000


def test_nothing_is_lost_or_repeated_over_the_agents_death(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "writes", "busybox", "sh", "-c", "for i in $(seq 150); do echo $i; sleep 0.02; done")
    following = node.popen("logs", "-f", "writes", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert following.stdout and following.stdout.readline() == b"1\n"
    os.kill(cluster.pid(2, "swarmlet-agent"), signal.SIGKILL)
    following.communicate(timeout=20)
    eventually(lambda: node("inspect", "-f", "{{.State.Status}}", "writes") == "exited")
    assert node("logs", "writes").split() == [str(number) for number in range(1, 151)]


def test_drivers_that_keep_nothing_or_are_not_there_say_so(view: View) -> None:
    view("run", "--name", "mute", "--log-driver", "none", "busybox", "echo", "hello")
    done = view.run("logs", "mute")
    assert done.returncode == 1 and b"configured logging driver does not support reading" in done.stderr
    for options, says in (
        (["--log-driver", "nonsense"], b'plugin "nonsense" not found'),
        (["--log-opt", "nonsense=1"], b"unknown log opt 'nonsense' for json-file log driver"),
        (["--log-opt", "max-file=0"], b"max-file cannot be less than 1"),
        (["--log-driver", "syslog", "--log-opt", "syslog-address=udp://127.0.0.1:5140000"], b"5140000"),
    ):
        done = view.run("run", "--rm", *options, "busybox", "true")
        assert done.returncode == 125 and says in done.stderr, done.stderr


def test_syslog_gets_every_line_though_it_is_away_for_a_while(cluster: Cluster, tmp_path: Path) -> None:
    node, path = cluster.node(2), tmp_path / "log"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    server.settimeout(20)
    options = ("--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{path}", "--log-opt", "tag={{.Name}}",
               "--log-opt", "syslog-facility=local3", "--log-opt", "syslog-format=rfc5424")  # fmt: skip
    node("run", "-d", "--name", "sends", *options, "busybox", "sh", "-c", "echo one; echo two >&2; sleep 1; echo three")
    lines = [server.recv(65536) for _ in range(2)]
    form = re.compile(rb"<(\d+)>1 \S+ \S+ sends \d+ sends - (\w+)")
    found = {match.groups() for line in lines if (match := form.match(line))}
    assert found == {(b"158", b"one"), (b"155", b"two")}  # local3.info and local3.err
    server.close()
    path.unlink()
    time.sleep(1.2)  # three is written while nobody listens
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    server.settimeout(20)
    while not (line := server.recv(65536)).rstrip().endswith(b"three"):
        assert line.rstrip().endswith((b"one", b"two"))
    server.close()
    assert node.run("logs", "sends").stdout == b"one\nthree\n"


def test_a_full_disk_costs_the_logs_last_lines_and_nothing_else(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("create", "--name", "full", "busybox", "sh", "-c", "seq 1 50000; echo finished; exit 5")
    folder = Path(node("inspect", "-f", "{{.LogPath}}", "full")).parent
    cluster.exec(2, "mkdir", "-p", str(folder))
    cluster.exec(2, "mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder))
    try:
        done = node.run("start", "-a", "full")
        assert done.returncode == 5 and done.stdout.endswith(b"50000\nfinished\n")
        kept = node("logs", "full").split()
        assert kept == [str(number) for number in range(1, len(kept) + 1)] and 100 < len(kept) < 50000
    finally:
        node.run("rm", "-f", "full")
        cluster.exec(2, "umount", str(folder))
        cluster.exec(2, "rm", "-rf", str(folder), check=False)
