"""Whether a bind's source can do what its propagation mode asks (moby daemon/oci_linux.go). Reads mountinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from swarmlet.errors import Internal
from swarmlet_agent.decide.points import MountPoint

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def asks_propagation(points: Sequence[MountPoint]) -> bool:
    """Whether the host's mounts have to be looked at."""
    return any(_wish(point) for point in points)


def fit_propagation(points: Sequence[MountPoint]) -> tuple[MountPoint, ...]:
    """The points as they can be had: rslave that nobody asked for becomes rprivate where the source cannot do it.

    Internal, as dockerd, for shared on a mount that is not shared, slave on one that is neither shared nor a slave.
    """
    mounts = parse_mountinfo(_MOUNTINFO.read_text())
    return tuple([_fitted(point, mounts) for point in points])


def _fitted(point: MountPoint, mounts: Mapping[str, frozenset[str]]) -> MountPoint:
    wish = _wish(point)
    if not wish:
        return point
    real = os.path.realpath(point.source)
    place, kinds = max(
        ((place, kinds) for place, kinds in mounts.items() if _covers(place, real)), key=lambda item: len(item[0])
    )
    allowed, words = ({"shared"}, "shared") if wish == "shared" else ({"shared", "master"}, "shared or slave")
    if allowed & kinds:
        return point
    if point.own_propagation:
        return replace(point, propagation="rprivate")
    raise Internal(f"path {point.source} is mounted on {place} but it is not a {words} mount")


def _wish(point: MountPoint) -> str:
    """shared or slave, which need a source that can do it; else ""."""
    kind = point.propagation.removeprefix("r") if point.type == "bind" else ""
    return kind if kind in ("shared", "slave") else ""


def parse_mountinfo(text: str) -> dict[str, frozenset[str]]:
    """Mount point -> kinds of its optional fields ("shared", "master"; proc(5)); of several the topmost."""
    found = {}
    for line in text.splitlines():
        words = line.split(" ")
        optional = words[6 : words.index("-", 6)]
        place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), words[4])
        found[place] = frozenset(word.partition(":")[0] for word in optional)
    return found


def _covers(place: str, path: str) -> bool:
    return place == "/" or path == place or path.startswith(place + "/")
