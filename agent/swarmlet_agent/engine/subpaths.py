"""`volume-subpath`: a folder or file inside a volume, mounted instead of the whole.

Other containers may write to the volume while we look, so a name that was safe may lead elsewhere a moment later. The
path is resolved inside the volume with a descriptor held on what was found, and once the mounts are made, before
the program runs, what is mounted is compared with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.engine.inside import open_in_root
from swarmlet_agent.runtime.types import StartFailed
from swarmlet_agent.volumes.parts import open_part


class Subpaths:
    """Blocking calls, for threads. `close` when the container has been made, or could not be."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def resolve(self, points: Iterable[MountPoint]) -> dict[str, str]:
        """Destination -> host path of every point with a subpath. InvalidArgument if there is nothing."""
        found = {}
        for point in points:
            if not point.subpath:
                continue
            descriptor = open_part(point.source, point.subpath)
            self._open[point.destination] = descriptor
            found[point.destination] = os.readlink(f"/proc/self/fd/{descriptor}")
        return found

    def check(self, pid: int) -> None:
        """pid: the container's init, with its mounts made. StartFailed if something else was mounted."""
        if not self._open:
            return
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for destination, wanted in self._open.items():
                mounted = open_in_root(root, destination, os.O_PATH)
                try:
                    if not os.path.sameopenfile(mounted, wanted):
                        raise StartFailed(f"the volume's subpath for {destination} was exchanged while it was mounted")
                finally:
                    os.close(mounted)
        finally:
            os.close(root)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
