"""Whether a bind's source can do what its propagation mode asks (moby daemon/oci_linux.go). Reads mountinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from swarmlet.errors import InvalidArgument
from swarmlet_agent.decide.points import MountPoint

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def check_propagation(points: Iterable[MountPoint]) -> None:
    """InvalidArgument for shared on a mount that is not shared, slave on one that is neither shared nor a slave."""
    wishes = [(point.source, point.propagation.removeprefix("r")) for point in points if point.type == "bind"]
    wishes = [(source, wish) for source, wish in wishes if wish in ("shared", "slave")]
    if not wishes:
        return
    mounts = parse_mountinfo(_MOUNTINFO.read_text())
    for source, wish in wishes:
        real = os.path.realpath(source)
        place, kinds = max(
            ((place, kinds) for place, kinds in mounts.items() if _covers(place, real)), key=lambda item: len(item[0])
        )
        allowed, words = ({"shared"}, "shared") if wish == "shared" else ({"shared", "master"}, "shared or slave")
        if not allowed & kinds:
            raise InvalidArgument(f"path {source} is mounted on {place} but it is not a {words} mount")


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
