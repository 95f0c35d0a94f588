"""The journald log driver against the real systemd-journald: what it is told, and what `docker logs` gives back.

On a machine whose journal is at its place that one is used. Elsewhere one is started with folders of the test's, and a
link leads to its socket: nobody else on such a machine has a journal.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_cluster import Cluster, eventually

from swarmlet.journald import JOURNAL_SOCKET

DAEMON = Path("/usr/lib/systemd/systemd-journald")
#: In a mount namespace of its own, since its places are fixed.
_START = 'mount --bind "$1" /run/systemd/journal; mount -t tmpfs none /run/log; mkdir /run/log/journal; \
mount --bind "$2" /run/log/journal; exec "$3"'
Journal = Callable[[str], list[dict[str, Any]]]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tried:
        return tried.connect_ex(str(path)) == 0


def _read(ident: str, *where: str) -> list[dict[str, Any]]:
    argv = ["journalctl", *where, "-o", "json", f"CONTAINER_ID_FULL={ident}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """What the journal has of a container."""
    place = Path(JOURNAL_SOCKET)
    if _answers(place):
        yield lambda ident: _read(ident)
        return
    assert DAEMON.exists(), f"{DAEMON} is missing: ./dev test installs systemd"
    sockets, logs = tmp_path / "sockets", tmp_path / "logs"
    for folder in (sockets, logs):
        folder.mkdir()
    made = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    argv = ["unshare", "-m", "sh", "-ec", _START, "sh", str(sockets), str(logs), str(DAEMON)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers(sockets / "socket"))
        os.symlink(sockets / "socket", place)
        yield lambda ident: _read(ident, "-D", str(logs))
    finally:
        place.unlink(missing_ok=True)
        process.terminate()
        process.wait(20)
        for folder in made:
            folder.rmdir()


def test_the_journal_has_a_containers_lines_and_docker_logs_reads_them(cluster: Cluster, journal: Journal) -> None:
    node = cluster.node(2)
    ident = node(
        "run", "-d", "--name", "told", "--log-driver", "journald", "--log-opt", "tag={{.Name}}/{{.ID}}",
        "--log-opt", "labels=com.shop", "--label", "com.shop=books", "busybox",
        "sh", "-c", "echo one; echo two >&2; sleep 0.2; echo three",
    )  # fmt: skip
    node("wait", "told")
    entries = eventually(lambda: len(found := journal(ident)) == 3 and found)
    assert entries
    assert [(entry["MESSAGE"], entry["PRIORITY"]) for entry in entries] in (
        [("one", "6"), ("two", "3"), ("three", "6")], [("two", "3"), ("one", "6"), ("three", "6")],
    )  # fmt: skip
    first = entries[0]
    assert first["CONTAINER_NAME"] == "told" and first["CONTAINER_ID"] == ident[:12]
    assert first["CONTAINER_TAG"] == first["SYSLOG_IDENTIFIER"] == f"told/{ident[:12]}"
    assert first["IMAGE_NAME"] == "busybox" and first["COM_SHOP"] == "books"

    done = node.run("logs", "told")
    assert sorted(done.stdout.split()) == [b"one", b"three"] and done.stderr == b"two\n"
    assert node("logs", "--tail", "1", "told") == "three" == node("logs", "--since", "1h", "told").split()[-1]


def test_without_a_copy_on_the_host_docker_logs_says_so(cluster: Cluster, journal: Journal) -> None:
    node = cluster.node(2)
    options = ("--log-driver", "journald", "--log-opt", "cache-disabled=true")
    ident = node("run", "-d", *options, "--name", "kept", "busybox", "echo", "hello")
    node("wait", "kept")
    entries = eventually(lambda: journal(ident))
    assert [entry["MESSAGE"] for entry in entries] == ["hello"]
    done = node.run("logs", "kept")
    assert done.returncode == 1 and b"configured logging driver does not support reading" in done.stderr


def test_services_log_to_the_journal(cluster: Cluster, journal: Journal) -> None:
    cluster.view(
        "service", "create", "--detach", "--name", "told", "--log-driver", "journald", "--constraint",
        "node.hostname==node-3", "busybox", "sh", "-c", "echo up; sleep 600",
    )  # fmt: skip
    (task,) = cluster.wait_running("told", 1)
    ident = cluster.view.json("inspect", task["ID"])[0]["Status"]["ContainerStatus"]["ContainerID"]
    entries = eventually(lambda: journal(ident))
    assert entries[0]["MESSAGE"] == "up" and entries[0]["CONTAINER_NAME"].startswith("told.1.")
    eventually(lambda: "up" in cluster.view("service", "logs", "told"))
