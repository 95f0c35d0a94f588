"""The folders of the nodes that have their images, and the same images afterwards as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e_cluster import Cluster, View, eventually

KEPT = {"busybox:latest", "swarmlet-demo:latest"}


@contextmanager
def images_as_before(cluster: Cluster) -> Iterator[None]:
    """Every image that the block brought goes away again, and its layers and half-made files with it."""
    for number in (1, 2, 3):
        remove_images(cluster.node(number))  # what another file's tests may have left
    before = [(layers(cluster, number), blobs(cluster, number)) for number in (1, 2, 3)]
    yield
    for number in (1, 2, 3):
        remove_images(cluster.node(number))
    assert [(layers(cluster, number), blobs(cluster, number)) for number in (1, 2, 3)] == before
    for number in (1, 2, 3):
        for name in ("tmp", "partial"):
            assert not [*image_folder(cluster, number).joinpath(name).iterdir()]


def remove_images(node: View) -> None:
    """All but the cluster's own, and all other names of those."""

    def clean() -> bool:
        rows = node.rows("images", "-a", "--no-trunc")
        kept = {row["ID"] for row in rows if f"{row['Repository']}:{row['Tag']}" in KEPT}
        extra = {row["ID"] for row in rows} - kept
        if extra:
            node.run("rmi", "-f", *extra)
        names = {f"{row['Repository']}:{row['Tag']}" for row in rows if row["ID"] in kept} - KEPT
        if names:
            node.run("rmi", *names)
        return not extra and not names

    eventually(clean)


def image_folder(cluster: Cluster, number: int) -> Path:
    return cluster.host(number).data_dir / "data" / "images"


def blobs(cluster: Cluster, number: int) -> set[str]:
    return {path.name for path in image_folder(cluster, number).joinpath("blobs").iterdir()}


def layers(cluster: Cluster, number: int) -> set[str]:
    """Unpacked layers on a node."""
    return {entry.name for entry in (image_folder(cluster, number) / "layers").iterdir()}
