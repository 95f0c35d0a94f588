"""A cluster of one file alone, for tests that cannot leave the shared one as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e_cluster import Cluster, swarmlet
from e2e_traces import traces

from swarmlet.local import cluster as clusters


@contextmanager
def own_cluster(name: str, nodes: int) -> Iterator[Cluster]:
    """Made anew for the block; nothing of it is on the machine afterwards."""
    swarmlet("down", "--name", name)
    try:
        swarmlet("up", "--name", name, "--nodes", str(nodes))
        yield Cluster(clusters.find(name))
    finally:
        swarmlet("down", "--name", name)
        assert traces(name) == []
