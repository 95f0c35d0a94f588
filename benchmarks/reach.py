"""A task moves to another node: from its manager's knowing that it runs there until a client of a third reaches it.

Three nodes, a service of one replica that is sent to and fro, a client in a container on the manager's node that sends
an echo request each millisecond, each a flow of its own. The container's kernel answers, so that its program's start is
not measured. The manager's word is when it wrote "running" down (the moment before the commit), by the same clock.
"""

from __future__ import annotations

import ctypes
import itertools
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.lab import api, cluster, docker
from swarmlet.local.client import ApiError

MOVES = 60
TIMEOUT_S, PROBE_S, POLL_S = 30.0, 0.001, 0.005
BOUND_MS = 100.0
#: States of a task that has an address which its node knows of, and that may run.
COMING = ("preparing", "ready", "starting", "running")
_ids = itertools.cycle(range(1, 0x10000))


def measure() -> list[Figure]:
    with cluster() as layout:
        manager, own = layout.nodes[0].manager_socket, layout.nodes[0]
        api(manager, "POST", "/networks/create", {"Name": "reach", "Driver": "overlay", "Attachable": True})
        client = docker(own.agent_socket, "run", "-d", "--network", "reach", "busybox", "sleep", "3600")
        pid = int(docker(own.agent_socket, "inspect", "-f", "{{.State.Pid}}", client))
        places = [node.name for node in layout.nodes[1:]]
        api(manager, "POST", "/services/create", _spec(places[0]))
        task = _newest(manager, "", ("running",))
        vip = _vip(manager)
        by_vip: list[float] = []
        by_address: list[float] = []
        shown: list[float] = []
        for turn in range(MOVES):
            before = task["ID"]
            _move(manager, places[(turn + 1) % 2])
            # The one before has ended by now, and was sent nobody even earlier.
            address = _address(_newest(manager, before, COMING))
            watches = Watch(pid, vip), Watch(pid, address)
            task = _newest(manager, before, ("running",))
            seen = time.time()
            known = datetime.fromisoformat(task["UpdatedAt"][:26] + "+00:00").timestamp()
            for times, watch in zip((by_vip, by_address), watches, strict=True):
                times.append(max(0.0, watch.wait() - known) * 1e3)
            shown.append(max(0.0, watches[0].wait() - seen) * 1e3)
        docker(own.agent_socket, "rm", "-f", client)
        api(manager, "DELETE", "/services/moved")
    return [
        Figure("a moved task, by its service's address, p50", statistics.median(by_vip), "ms", n=MOVES),
        Figure("   p99", _p99(by_vip), "ms", n=MOVES),
        Figure("   since the manager's API shows it, p50", statistics.median(shown), "ms", n=MOVES),
        Figure("   p99", _p99(shown), "ms", bound=BOUND_MS - 1e3 * POLL_S, n=MOVES),
        Figure("a moved task, by its own address, p50", statistics.median(by_address), "ms", n=MOVES),
        Figure("   p99", _p99(by_address), "ms", bound=BOUND_MS, n=MOVES),
    ]


class Watch:
    """Asks an address without a pause until there is an answer."""

    def __init__(self, pid: int, address: str) -> None:
        self._address = address
        self._found = 0.0
        self._thread = threading.Thread(target=self._run, args=(pid,))
        self._thread.start()

    def wait(self) -> float:
        """When it was answered first."""
        self._thread.join()
        if not self._found:
            raise RuntimeError(f"{self._address} does not answer after {TIMEOUT_S} s")
        return self._found

    def _run(self, pid: int) -> None:
        _enter(pid)
        deadline = time.monotonic() + TIMEOUT_S
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as channel:
            channel.settimeout(PROBE_S)
            while time.monotonic() < deadline:
                try:
                    channel.sendto(_echo_request(next(_ids)), (self._address, 0))
                except OSError:
                    time.sleep(PROBE_S)  # a service without tasks refuses
                    continue
                if self._address in _answers(channel):
                    self._found = time.time()
                    return


def _answers(channel: socket.socket) -> Iterator[str]:
    """Who has answered; until nobody does for a moment."""
    while True:
        try:
            packet, (source, _) = channel.recvfrom(1500)
        except TimeoutError:
            return
        if packet[(packet[0] & 15) * 4] == 0:
            yield source


def _echo_request(ident: int) -> bytes:
    """An ICMP echo request (RFC 792), with nothing in it."""
    total = 0x0800 + ident
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", 8, 0, checksum, ident, 0)


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
            "ContainerSpec": {"Image": "busybox:latest", "Command": ["sleep", "86400"], "StopSignal": "SIGKILL"},
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


def _newest(manager: Path, before: str, states: tuple[str, ...]) -> dict[str, Any]:
    """The service's task, once it is another one and in one of these states."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for task in api(manager, "GET", '/tasks?filters={"service":["moved"],"desired-state":["running"]}'):
            if task["ID"] != before and task["Status"]["State"] in states:
                found: dict[str, Any] = task
                return found
        time.sleep(POLL_S)
    raise RuntimeError(f"no new task is {states[0]} after {TIMEOUT_S} s")


def _address(task: dict[str, Any]) -> str:
    text: str = task["NetworksAttachments"][0]["Addresses"][0]
    return text.partition("/")[0]


def _vip(manager: Path) -> str:
    text: str = api(manager, "GET", "/services/moved")["Endpoint"]["VirtualIPs"][0]["Addr"]
    return text.partition("/")[0]


def _p99(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]
