"""A task moves to another node: from its manager's knowing that it runs there until a client of a third reaches it.

Three nodes, a service of one replica that is sent to and fro, a client on the manager's node that asks without a pause.
The manager's word is when it wrote "running" down (the moment before the commit), by the same clock.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import statistics
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.lab import api, cluster, docker
from swarmlet.local.client import ApiError

MOVES = 60
PORT, TIMEOUT_S, PATIENCE_S = 8080, 30.0, 0.05
BOUND_MS = 100.0
#: Tells who answers: its container's host name.
SERVER = f"mkdir -p /w; hostname >/w/index.html; exec httpd -f -p {PORT} -h /w"


def measure() -> list[Figure]:
    with cluster() as layout:
        manager, own = layout.nodes[0].manager_socket, layout.nodes[0]
        api(manager, "POST", "/networks/create", {"Name": "reach", "Driver": "overlay", "Attachable": True})
        client = docker(own.agent_socket, "run", "-d", "--network", "reach", "busybox", "sleep", "3600")
        pid = int(docker(own.agent_socket, "inspect", "-f", "{{.State.Pid}}", client))
        places = [node.name for node in layout.nodes[1:]]
        api(manager, "POST", "/services/create", _spec(places[0]))
        task = _running(manager, "")
        vip = _vip(manager)
        by_vip, by_address = [], []
        for turn in range(MOVES):
            watch = Watch(pid, vip, task["ID"])
            _move(manager, places[(turn + 1) % 2])
            task = _running(manager, task["ID"])
            known = datetime.fromisoformat(task["UpdatedAt"][:26] + "+00:00").timestamp()
            direct = _first(pid, _address(task))
            by_address.append((direct - known) * 1e3)
            by_vip.append((watch.wait() - known) * 1e3)
        docker(own.agent_socket, "rm", "-f", client)
        api(manager, "DELETE", "/services/moved")
    return [
        figure for name, times in (("by its service's address", by_vip), ("by its own address", by_address))
        for figure in (
            Figure(f"a moved task reached {name}, p50", statistics.median(times), "ms", n=MOVES),
            Figure("   p99", _p99(times), "ms", bound=BOUND_MS, n=MOVES),
        )
    ]


class Watch:
    """Asks a virtual address without a pause, until someone else than `before` answers."""

    def __init__(self, pid: int, vip: str, before: str) -> None:
        self._found = 0.0
        self._thread = threading.Thread(target=self._run, args=(pid, vip, before))
        self._thread.start()

    def wait(self) -> float:
        self._thread.join()
        if not self._found:
            raise RuntimeError(f"nobody new answers after {TIMEOUT_S} s")
        return self._found

    def _run(self, pid: int, vip: str, before: str) -> None:
        _enter(pid)
        self._found = _until(lambda: _ask(vip) not in ("", before))


def _first(pid: int, address: str) -> float:
    """When it first answered, from now on."""
    found: list[float] = []

    def work() -> None:
        _enter(pid)
        found.append(_until(lambda: bool(_ask(address))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not found or not found[0]:
        raise RuntimeError(f"{address} does not answer after {TIMEOUT_S} s")
    return found[0]


def _until(check: Callable[[], bool]) -> float:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if check():
            return time.time()
        time.sleep(0.001)
    return 0.0


def _ask(address: str) -> str:
    """What one connection is answered, "" if it is not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as channel:
        channel.setblocking(False)
        if channel.connect_ex((address, PORT)) not in (0, errno.EINPROGRESS):
            return ""
        if not select.select([], [channel], [], PATIENCE_S)[1]:
            return ""
        try:
            channel.send(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while select.select([channel], [], [], PATIENCE_S)[0] and (piece := channel.recv(4096)):
                answer += piece
            return answer.decode().rstrip().rpartition("\n")[2]
        except OSError:
            return ""


def _enter(pid: int) -> None:
    """This thread's network is that process's, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{pid}/ns/net").open() as space:
        if libc.setns(space.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "entering a container's network")


def _spec(node: str) -> dict[str, Any]:
    return {
        "Name": "moved",
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "busybox:latest", "Command": ["sh", "-c", SERVER], "StopSignal": "SIGKILL",
                "Hostname": "{{.Task.ID}}",
            },
            "Networks": [{"Target": "reach"}], "Placement": {"Constraints": [f"node.hostname=={node}"]},
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "UpdateConfig": {"Parallelism": 1, "Order": "stop-first", "Monitor": 1000000},
    }


def _move(manager: Path, node: str) -> None:
    while True:
        version = api(manager, "GET", "/services/moved")["Version"]["Index"]
        try:
            api(manager, "POST", f"/services/moved/update?version={version}", _spec(node))
            return
        except ApiError as err:
            if "out of sequence" not in str(err):  # the update before has just been found complete
                raise


def _running(manager: Path, before: str) -> dict[str, Any]:
    """The service's task, once it runs and is another one."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for task in api(manager, "GET", '/tasks?filters={"service":["moved"],"desired-state":["running"]}'):
            if task["ID"] != before and task["Status"]["State"] == "running":
                found: dict[str, Any] = task
                return found
        time.sleep(0.004)
    raise RuntimeError(f"no new task runs after {TIMEOUT_S} s")


def _address(task: dict[str, Any]) -> str:
    text: str = task["NetworksAttachments"][0]["Addresses"][0]
    return text.partition("/")[0]


def _vip(manager: Path) -> str:
    text: str = api(manager, "GET", "/services/moved")["Endpoint"]["VirtualIPs"][0]["Addr"]
    return text.partition("/")[0]


def _p99(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]
