"""Three managers on one etcd: a write and a read through one that does not lead, against the leader itself."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, median
from benchmarks.lab import NAME, api
from swarmlet.config import EtcdSettings
from swarmlet.local import cluster as clusters
from swarmlet.local.layout import ClusterLayout

#: An address of this machine's loopback interface, which the hosts reach by their gateway.
ADDRESS, PORT = "10.215.0.1", 23890
ROUNDS = 200


def measure() -> list[Figure]:
    with _managed() as layout:
        nodes = api(layout.nodes[0].manager_socket, "GET", "/nodes")
        leading = next(node["Description"]["Hostname"] for node in nodes if node["ManagerStatus"].get("Leader"))
        sockets = {host.name: host.manager_socket for host in layout.nodes}
        through = {"leader": sockets.pop(leading), "follower": next(iter(sockets.values()))}
        took: dict[tuple[str, str], list[float]] = {}
        for number in range(ROUNDS):
            for who, socket in through.items():
                name = f"{who}-{number}"
                made = {"Name": name, "Data": base64.b64encode(b"x").decode()}
                for what, method, path, body in (
                    ("write", "POST", "/configs/create", made), ("read", "GET", f"/configs/{name}", None),
                ):
                    began = time.perf_counter()
                    api(socket, method, path, body)
                    took.setdefault((who, what), []).append(time.perf_counter() - began)
    return [
        Figure(
            f"a config {done} through a follower", median(took["follower", what]) * 1000, "ms",
            median(took["leader", what]) * 1000, "through the leader", bound, ROUNDS,
        )
        for what, done, bound in (("write", "made", 2.5), ("read", "inspected", 5.0))
    ]


@contextlib.contextmanager
def _managed() -> Iterator[ClusterLayout]:
    name = f"{NAME}-mm"
    if name in clusters.all_names():
        clusters.down(name)
    with tempfile.TemporaryDirectory() as folder, _etcd(Path(folder)) as url:
        try:
            yield clusters.up(name, 3, lambda line: None, EtcdSettings(endpoints=(url,)), managers=3)
        finally:
            if name in clusters.all_names():
                clusters.down(name)


@contextlib.contextmanager
def _etcd(folder: Path) -> Iterator[str]:
    url, peer = f"http://{ADDRESS}:{PORT}", f"http://{ADDRESS}:{PORT + 1}"
    subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)
    argv = [
        "etcd", "--name=bench", f"--data-dir={folder}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=bench={peer}",
    ]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield url
    finally:
        process.kill()
        process.wait()
        subprocess.run(["ip", "address", "delete", f"{ADDRESS}/32", "dev", "lo"], check=True)
