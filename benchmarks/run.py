"""`docker run --rm busybox true` against the bare conmon and OCI runtime on the same bundle."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.figures import Figure, median
from benchmarks.lab import Floor, agent_bundle, cluster, docker

COUNT = 30


def measure() -> list[Figure]:
    figures = []
    with cluster() as layout:
        floor = Floor(agent_bundle(layout, "true"))
        try:
            node = layout.nodes[0].agent_socket
            ways: tuple[tuple[str, Path, tuple[str, ...]], ...] = (
                ("docker run --rm, network none", node, ("--network", "none")),
                ("docker run --rm, default bridge", node, ()),
                ("the same through the cluster view", layout.nodes[0].manager_socket, ()),
            )
            floor.measure("run", 3)
            for name, socket, options in ways:
                bare = median(floor.measure("run", COUNT)["runs"]) * 1e3
                times = []
                for turn in range(COUNT + 1):
                    began = time.perf_counter()
                    docker(socket, "run", "--rm", *options, "busybox", "true")
                    if turn:
                        times.append((time.perf_counter() - began) * 1e3)
                figures.append(Figure(name, median(times), "ms", bare, "conmon + runtime", 2.5, COUNT))
            began = time.perf_counter()
            for _ in range(10):
                docker(node, "version")
            client = (time.perf_counter() - began) * 100
            figures.append(Figure("of which the client alone (docker version)", client, "ms"))
        finally:
            floor.close()
    return figures
