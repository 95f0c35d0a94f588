"""One real agent in a network namespace of its own, with a busybox image, for all tests here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_node import RealNode, busybox_archive

from swarmlet.local import hosts


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    node = RealNode(f"swlnode{os.getpid()}", tmp_path_factory.mktemp("real"))
    subprocess.run(["ip", "netns", "add", node.name], check=True)
    try:
        node.start()
        with node.client() as client:
            client.images.load(busybox_archive())
        yield node
        with node.client() as client:
            for container in client.containers.list(all=True):
                container.remove(force=True)
    finally:
        node.end(signal.SIGTERM)
        for pid in _left(node):
            os.kill(pid, signal.SIGKILL)
        hosts.remove_mounts_below(Path(f"/run/{node.name}"), node.base)
        subprocess.run(["ip", "netns", "delete", node.name], check=True)
        shutil.rmtree(f"/run/{node.name}", ignore_errors=True)
        hosts.remove_cgroups(f"/{node.name}")


def _left(node: RealNode) -> list[int]:
    """What a broken test may have left in the node's cgroups."""
    found = set()
    for hierarchy in hosts.cgroup_hierarchies():
        for folder, _, _ in os.walk(f"{hierarchy}/{node.name}"):
            found |= {int(word) for word in Path(folder, "cgroup.procs").read_text().split()}
    return sorted(found - {0})
