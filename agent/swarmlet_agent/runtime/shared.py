"""Mount propagation: what the agent mounts later must appear, and disappear, where the OCI runtime looks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from swarmlet_agent.runtime import linux
from swarmlet_agent.runtime.cgroup_files import mount_fields


def is_shared(path: Path) -> bool:
    """True if the mount that holds the path passes mounts on (mount_namespaces(7))."""
    holder, _ = _holder(path)
    return any(word.startswith("shared:") for word in holder)


def ensure_shared(path: Path) -> None:
    """Make the folder's mount a shared one; if need be, by mounting the folder on itself. Blocking. OSError."""
    path.mkdir(parents=True, exist_ok=True)
    real = path.resolve()
    if is_shared(real):
        return
    if _holder(real)[1] != str(real):
        linux.mount(str(real), str(real), flags=linux.MS_BIND | linux.MS_REC)
    linux.mount("", str(real), flags=linux.MS_SHARED)


def release_shared(path: Path) -> None:
    """Undo `ensure_shared`: nothing mounted there is fine. Blocking. OSError.

    Files that were opened through it, such as the journal and the agent's lock, stay usable.
    """
    real = path.resolve()
    holder, point = _holder(real)
    # Only a mount of the folder on itself is ours: its root within the file system is not "/".
    if point == str(real) and holder and holder[0] != "/":
        linux.umount(str(real), linux.MNT_DETACH)


def appearance(paths: Sequence[str], besides: Sequence[Path]) -> list[tuple[object, ...]]:
    """What paths lead to in the calling thread's mount namespace, and what is mounted below them there.

    besides: folders whose mounts are left out.
    """
    found: list[tuple[object, ...]] = []
    for path in paths:
        try:
            info = os.stat(path)
        except OSError:
            found.append((path,))
        else:
            found.append((path, info.st_dev, info.st_ino))
    inside = tuple(f"{os.path.realpath(path).rstrip('/')}/" for path in paths)
    below = []
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        root, point, _ = mount_fields(line)
        if point.startswith(inside) and not any(Path(point).is_relative_to(folder) for folder in besides):
            below.append((point, line.split(" ", 3)[2], root))
    return [*found, *sorted(below)]


def _holder(path: Path) -> tuple[list[str], str]:
    """The mount that holds a path: ([root, optional fields…], mount point)."""
    best: tuple[list[str], str] = ([], "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        root, point, optional = mount_fields(line)
        inside = point == "/" or str(path) == point or str(path).startswith(point + "/")
        # A later line covers an earlier one at the same place.
        if inside and len(point) >= len(best[1]):
            best = ([root, *optional], point)
    return best
