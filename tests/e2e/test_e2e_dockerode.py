"""dockerode, the JavaScript client: the script in node/ drives a node's engine and the cluster's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from e2e_cluster import Cluster, View
from installed_clients import node_modules
from registry_fill import busybox_image, push

SUITE = Path(__file__).parent / "node/dockerode_suite.js"


def run(view: View, registry: str, kind: str) -> str:
    node = shutil.which("node")
    assert node, "node is missing: ./dev test installs it"
    push(registry, "rode/image", "1", busybox_image().on({"from": b"dockerode"}))
    done = subprocess.run(
        [node, str(SUITE), str(view.socket), registry, kind], capture_output=True, text=True, timeout=110,
        env=os.environ | {"NODE_PATH": str(node_modules())},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dockerode_on_a_node(cluster: Cluster, registry: str) -> None:
    assert run(cluster.node(1), registry, "node").endswith("all well\n")


def test_dockerode_on_the_cluster(cluster: Cluster, registry: str) -> None:
    assert run(cluster.view, registry, "cluster").endswith("all well\n")
