"""Secrets and configs in end-to-end tests: where a service's task is, and what is left of one on the hosts."""

from __future__ import annotations

import subprocess

from e2e_cluster import Cluster, View, eventually


def place_of(cluster: Cluster, service: str) -> tuple[int, View, str]:
    """(host number, its engine, container id) of the one task of a service that runs."""
    number = int(cluster.wait_running(service, 1)[0]["Node"].rpartition("-")[2])
    node = cluster.node(number)
    label = f"label=com.docker.swarm.service.name={service}"
    ident = eventually(lambda: node("ps", "-q", "--no-trunc", "--filter", label))
    assert "\n" not in ident
    return number, node, ident


def read(cluster: Cluster, service: str, path: str) -> str:
    _, node, ident = place_of(cluster, service)
    return node("exec", ident, "cat", path)


def supplies(cluster: Cluster, number: int) -> list[str]:
    """Container ids with a tmpfs of supplied files on a host."""
    mounts = cluster.exec(number, "cat", "/proc/mounts").splitlines()
    found = [line.split()[1] for line in mounts if "/supplies/" in line and line.split()[2] == "tmpfs"]
    return sorted({path.rpartition("/")[2] for path in found if path.split("/supplies/")[0].endswith(f"node-{number}")})


def files_with(cluster: Cluster, *values: bytes) -> list[str]:
    """Files of the cluster that hold one of the values: data folders, logs, stores. Not the mounts of containers."""
    found: list[str] = []
    for folder in (cluster.layout.data_dir, cluster.layout.run_dir):
        for value in values:
            done = subprocess.run(
                ["grep", "-rlaF", "--devices=skip", "-e", value.decode(), str(folder)], capture_output=True, text=True,
                timeout=120,
            )
            found += [line for line in done.stdout.splitlines() if "/supplies/" not in line and "/merged/" not in line]
    return found


def remove_all(cluster: Cluster) -> None:
    """Services, then every secret and config."""
    view = cluster.view
    if services := view("service", "ls", "-q").split():
        view("service", "rm", *services)
    for kind in ("secret", "config"):
        if left := view(kind, "ls", "-q").split():
            view(kind, "rm", *left)


