"""`docker diff`: how a container's files differ from its image's, from overlayfs's upper folder. Blocking.

Only what is in the upper folder is looked at, beside what lies below it. The answer is that of moby's comparison of
whole trees (pkg/archive changes.go): folders above a change are modified too; what lies in a deleted one is not told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from swarmlet_agent.archive.pack import is_opaque, is_whiteout
from swarmlet_agent.engine.inside import open_in_root

#: What the runtime makes where an image lacks it, to mount something there. Docker has it in a layer of its own that
#: is neither the image's nor the container's.
PLACES = frozenset(
    f"/{path}".encode()
    for path in (
        "dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/console", "proc", "sys", "etc", "etc/hosts", "etc/hostname",
        "etc/resolv.conf", "etc/mtab", ".dockerenv",
    )
)
_READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Kind(IntEnum):
    """Engine API FilesystemChange.Kind."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    kind: Kind



def find_changes(upper: Path, lower: int | None) -> list[Change]:
    """lower: a descriptor of the image's files; None if it has none. In order, each folder before what is in it."""
    folder = os.open(upper, _READ_FOLDER)
    try:
        return list(_walk(folder, b"", _Lower(lower), hidden=False))
    finally:
        os.close(folder)


class _Lower:
    """What the image has."""

    def __init__(self, root: int | None) -> None:
        self._root = root

    def stat(self, path: bytes) -> os.stat_result | None:
        """Not through links: what overlayfs has merged with is a plain way of folders."""
        handle = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        if handle is None:
            return None
        try:
            found = os.fstat(handle)
        finally:
            os.close(handle)
        return None if is_whiteout(found) else found  # of the lowest layer, where it hides nothing

    def names(self, path: bytes) -> set[bytes]:
        handle = self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if handle is None:
            return set()
        try:
            return {os.fsencode(name) for name in os.listdir(handle)}
        finally:
            os.close(handle)

    def _open(self, path: bytes, flags: int) -> int | None:
        if self._root is None:
            return None
        try:
            return open_in_root(self._root, os.fsdecode(path), flags)
        except (FileNotFoundError, NotADirectoryError):
            return None


def is_place(path: bytes, found: os.stat_result) -> bool:
    """Whether this is a mere place to mount something at, given that the image does not have it."""
    return path in PLACES and (stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and not found.st_size))


def places_made(upper: Path, lower: int | None) -> frozenset[bytes]:
    """Which of PLACES (without the slash) the upper folder holds only because something was mounted there."""
    below = _Lower(lower)
    made: set[bytes] = set()
    folder = os.open(upper, _READ_FOLDER)
    try:
        for path in sorted(PLACES, key=len, reverse=True):
            found = _stat(folder, path)
            if found is None or below.stat(path) is not None or not is_place(path, found):
                continue
            if stat.S_ISDIR(found.st_mode) and {path[1:] + b"/" + name for name in _listed(folder, path)} - made:
                continue  # the container has put something there: the layer needs the folder
            made.add(path[1:])
    finally:
        os.close(folder)
    return frozenset(made)


def _stat(folder: int, path: bytes) -> os.stat_result | None:
    try:
        handle = open_in_root(folder, os.fsdecode(path), os.O_PATH | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.fstat(handle)
    finally:
        os.close(handle)


def _listed(folder: int, path: bytes) -> list[bytes]:
    handle = open_in_root(folder, os.fsdecode(path), _READ_FOLDER)
    try:
        return [os.fsencode(name) for name in os.listdir(handle)]
    finally:
        os.close(handle)


def _walk(folder: int, path: bytes, lower: _Lower, *, hidden: bool) -> Iterator[Change]:
    """hidden: nothing of the image shows in this folder."""
    here = sorted(os.fsencode(name) for name in os.listdir(folder))
    names = set(here)
    if not hidden and is_opaque(folder):
        names |= lower.names(path)
    for name in sorted(names):
        place = path + b"/" + name
        before = None if hidden else lower.stat(place)
        found = _entry(folder, name) if name in here else None
        if found is None or is_whiteout(found):
            if before is not None:
                yield _change(place, Kind.DELETED)
            continue
        yield from _compare(folder, name, place, found, before, lower)


def _compare(
    folder: int, name: bytes, place: bytes, found: os.stat_result, before: os.stat_result | None, lower: _Lower
) -> Iterator[Change]:
    own: Kind | None = None
    if before is None:
        own = None if is_place(place, found) else Kind.ADDED
    elif _differ(before, found):
        own = Kind.MODIFIED
    inside: Iterator[Change] = iter(())
    if stat.S_ISDIR(found.st_mode):
        hidden = before is None or not stat.S_ISDIR(before.st_mode)
        inside = _below(folder, name, place, lower, hidden=hidden)
    first = next(inside, None)
    if own is None and first is not None:
        own = Kind.MODIFIED
    if own is not None:
        yield _change(place, own)
    if first is not None:
        yield first
        yield from inside


def _below(folder: int, name: bytes, place: bytes, lower: _Lower, *, hidden: bool) -> Iterator[Change]:
    try:
        inner = os.open(name, _READ_FOLDER, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):  # the container has just replaced it
        return
    try:
        yield from _walk(inner, place, lower, hidden=hidden)
    finally:
        os.close(inner)


def _entry(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _differ(before: os.stat_result, now: os.stat_result) -> bool:
    """A folder's size and time say nothing. Times of images are whole seconds, the files' own are finer."""
    if (before.st_mode, before.st_uid, before.st_gid, before.st_rdev) != (
        now.st_mode, now.st_uid, now.st_gid, now.st_rdev
    ):
        return True
    return not stat.S_ISDIR(now.st_mode) and (before.st_mtime_ns, before.st_size) != (now.st_mtime_ns, now.st_size)


def _change(path: bytes, kind: Kind) -> Change:
    return Change(path.decode(errors="replace"), kind)
