"""A service of 100 replicas on three nodes against 100 bare bundles, four at a time."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.lab import Floor, agent_bundle, api, cluster

REPLICAS = (20, 100)
TIMEOUT_S = 120.0


def measure() -> list[Figure]:
    figures = []
    with cluster() as layout:
        socket = layout.nodes[0].manager_socket
        floor = Floor(agent_bundle(layout, "sleep", "86400"))
        try:
            floor.measure("start", 8, 4)
            for count in REPLICAS:
                bare = floor.measure("start", count, 4)["all"][0]
                took, gone = _service(socket, count)
                figures.append(
                    Figure(f"service create --replicas {count}, running", took, "s", bare, "bundles, 4 at a time", 2.5)
                )
                figures.append(Figure(f"service rm of {count}, no task left", gone, "s"))
        finally:
            floor.close()
    return figures


def _service(socket: Path, count: int) -> tuple[float, float]:
    spec = {
        "Name": "load",
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "busybox:latest", "Args": ["sleep", "86400"], "StopSignal": "SIGKILL",
            },
            "Networks": [{"Target": "none"}],
        },
        "Mode": {"Replicated": {"Replicas": count}},
    }
    began = time.perf_counter()
    api(socket, "POST", "/services/create", spec)
    deadline = began + TIMEOUT_S
    while time.perf_counter() < deadline:
        tasks = api(socket, "GET", '/tasks?filters={"service":["load"]}')
        if sum(task["Status"]["State"] == "running" for task in tasks) == count:
            break
        time.sleep(0.02)
    else:
        raise RuntimeError(f"not running after {TIMEOUT_S} s")
    took = time.perf_counter() - began
    began = time.perf_counter()
    api(socket, "DELETE", "/services/load")
    while api(socket, "GET", "/tasks") and time.perf_counter() < began + TIMEOUT_S:
        time.sleep(0.02)
    return took, time.perf_counter() - began
