"""What the end-to-end tests of builds share: contexts, and the stock command's classic builder."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e_cluster import View

CLASSIC = {"DOCKER_BUILDKIT": "0"}


@contextmanager
def clean_node(view: View) -> Iterator[View]:
    """Without what the block has left of containers, images and cache."""
    yield view
    left = view.run("ps", "-aq").stdout.decode().split()
    if left:
        view.run("rm", "-f", "-v", *left)
    view.run("image", "prune", "-af", "--filter", "label=e2e.build")
    view.run("builder", "prune", "-af")


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return folder


def run_build(view: View, folder: Path, *options: str, timeout: float = 90) -> subprocess.CompletedProcess[bytes]:
    return view.run("build", "--label", "e2e.build=1", *options, str(folder), env=CLASSIC, timeout=timeout)


def build(view: View, folder: Path, *options: str) -> str:
    """What it says."""
    done = run_build(view, folder, *options)
    assert done.returncode == 0, (done.stdout.decode(), done.stderr.decode())
    return done.stdout.decode()


def refused(view: View, folder: Path, *options: str) -> str:
    """What it says on stderr."""
    done = run_build(view, folder, *options)
    assert done.returncode != 0, done.stdout.decode()
    return done.stderr.decode()


def tar_of(files: Mapping[str, bytes], how: str = "w", **attributes: int) -> bytes:
    """attributes: of each entry (uid, mode)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=how) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()
