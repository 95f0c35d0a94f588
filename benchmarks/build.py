"""`docker build` of ten steps, four of them RUN, with the stock command's classic builder: all cached, and cold.

The floor of the cached build is the client alone (`docker version`); that of the cold one the bare conmon and OCI
runtime, run as often as there are RUNs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figure, median
from benchmarks.lab import Floor, agent_bundle, cluster, docker

COUNT = 20
RUNS = 4
DOCKERFILE = """\
FROM busybox
ENV MODE=production
RUN mkdir /srv && echo one > /srv/one
COPY settings.conf /etc/app/
RUN echo two > /srv/two
WORKDIR /srv
RUN echo three > /srv/three
LABEL kind=benchmark
RUN echo four > /srv/four
CMD ["cat", "/srv/one"]
"""


def measure() -> list[Figure]:
    os.environ["DOCKER_BUILDKIT"] = "0"  # the client prefers buildx where it is installed
    with cluster() as layout, tempfile.TemporaryDirectory() as name:
        node, context = layout.nodes[0].agent_socket, Path(name)
        (context / "Dockerfile").write_text(DOCKERFILE)
        (context / "settings.conf").write_text("threads = 4\n")
        floor = Floor(agent_bundle(layout, "true"))
        try:
            floor.measure("run", 3)
            bare = median(floor.measure("run", COUNT)["runs"]) * 1e3 * RUNS
            cold = _times(lambda: docker(node, "build", "--no-cache", "-t", "bench", str(context)))
            cached = _times(lambda: docker(node, "build", "-t", "bench", str(context)))
            client = _times(lambda: docker(node, "version"))
        finally:
            floor.close()
    return [
        Figure("build of 10 steps, all cached", cached, "ms", bound=80, n=COUNT),
        Figure("the same against the client alone", cached, "ms", client, "docker version", 4, COUNT),
        Figure("build of 10 steps, cold", cold, "ms", bound=1000, n=COUNT),
        Figure("the same against what its RUNs cost", cold, "ms", bare, f"{RUNS} x conmon + runtime", 5, COUNT),
    ]


def _times(work: Callable[[], object]) -> float:
    """The median of some runs, in ms, without the first."""
    times = []
    for turn in range(COUNT + 1):
        began = time.perf_counter()
        work()
        if turn:
            times.append((time.perf_counter() - began) * 1e3)
    return median(times)
