"""A worker loses its power: how long until its tasks run elsewhere."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figure, median
from benchmarks.lab import api, cluster
from swarmlet.local import cluster as clusters

REPLICAS = 6
ROUNDS = 3
TIMEOUT_S = 60.0


def measure() -> list[Figure]:
    detected, recovered, rejoined = [], [], []
    with cluster() as layout:
        socket = layout.nodes[0].manager_socket
        victim = layout.nodes[2]
        spec = {
            "Name": "load",
            "TaskTemplate": {"ContainerSpec": {"Image": "busybox:latest", "Args": ["sleep", "86400"]}},
            "Mode": {"Replicated": {"Replicas": REPLICAS}},
        }
        for _ in range(ROUNDS):
            api(socket, "POST", "/services/create", spec)
            _wait(lambda: _running(socket, None) == REPLICAS)
            ident = next(n["ID"] for n in api(socket, "GET", "/nodes") if n["Description"]["Hostname"] == victim.name)
            began = time.perf_counter()
            clusters.kill(layout, victim)
            _wait(functools.partial(_is, socket, ident, "down"))
            detected.append(time.perf_counter() - began)
            _wait(functools.partial(_moved, socket, ident))
            recovered.append(time.perf_counter() - began)
            began = time.perf_counter()
            clusters.start(layout, victim)
            _wait(functools.partial(_is, socket, ident, "ready"))
            rejoined.append(time.perf_counter() - began)
            api(socket, "DELETE", "/services/load")
            _wait(lambda: not api(socket, "GET", "/tasks"))
    return [
        Figure("worker killed: seen down", median(detected), "s", n=ROUNDS),
        Figure("worker killed: its tasks run elsewhere", median(recovered), "s", bound=5, n=ROUNDS),
        Figure("worker started again: ready", median(rejoined), "s", n=ROUNDS),
    ]


def _is(socket: Path, ident: str, state: str) -> bool:
    return bool(api(socket, "GET", f"/nodes/{ident}")["Status"]["State"] == state)


def _moved(socket: Path, ident: str) -> bool:
    return _running(socket, ident) == REPLICAS


def _running(socket: Path, not_on: str | None) -> int:
    """Running tasks that are meant to run, on other nodes than this one."""
    tasks = api(socket, "GET", '/tasks?filters={"desired-state":["running"]}')
    return sum(task["Status"]["State"] == "running" and task.get("NodeID") != not_on for task in tasks)


def _wait(check: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + TIMEOUT_S
    while not check():
        if time.perf_counter() > deadline:
            raise RuntimeError(f"not so after {TIMEOUT_S} s")
        time.sleep(0.02)
