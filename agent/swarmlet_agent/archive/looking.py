"""Looking at a path inside a view. Blocking. Links lead nowhere but into the container."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet_agent.archive.paths import PathStat, base_name
from swarmlet_agent.engine.inside import open_in_root

_MOST_LINKS = 255


def stat_path(root: int, path: str, container: str, given: str) -> PathStat:
    """What lies at `path` (as `paths.absolute` gives it): a link itself, unless a slash follows it.

    given: the path in the client's words. NotFound; InvalidArgument ("not a directory").
    """
    try:
        handle = open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as err:
        raise cannot_reach(err, container, given) from err
    try:
        found = os.fstat(handle)
    finally:
        os.close(handle)
    target = end_of_links(root, path) if stat.S_ISLNK(found.st_mode) else ""
    return PathStat(base_name(path), found.st_size, found.st_mode, found.st_mtime_ns, target)


def open_folder(root: int, path: str, container: str, given: str) -> int:
    """A descriptor of the folder at `path`, links followed. NotFound, InvalidArgument if it is no folder."""
    try:
        return open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    except OSError as err:
        if err.errno == errno.ENOTDIR:
            raise InvalidArgument("extraction point is not a directory") from err
        raise cannot_reach(err, container, given) from err


def cannot_reach(err: OSError, container: str, given: str) -> Exception:
    """The answer for a path that cannot be opened, in dockerd's words."""
    if err.errno == errno.ENOENT:
        return NotFound("file", given, f"Could not find the file {given} in container {container}")
    if err.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return InvalidArgument(f"{given}: {(err.strerror or '').lower()}")
    return err


def end_of_links(root: int, path: str) -> str:
    """Where a path really leads, as far as there is anything: every link on the way is followed.

    Only ever shown to clients, who use it as another path: nothing is opened through it. InvalidArgument for a loop.
    """
    done: list[str] = []
    waiting = deque(word for word in path.split("/") if word)
    links = 0
    while waiting:
        word = waiting.popleft()
        if word in ("", "."):
            continue
        if word == "..":
            del done[-1:]
            continue
        target = _link(root, "/".join([*done, word]))
        if target is None:
            done.append(word)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InvalidArgument(f"{path}: too many levels of symbolic links")
        if target.startswith("/"):
            done.clear()
        waiting.extendleft(reversed(target.split("/")))
    return "/" + "/".join(done)


def _link(root: int, path: str) -> str | None:
    """The text of the link at `path`; None if there is something else, or nothing."""
    try:
        handle = open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise
    try:
        if not stat.S_ISLNK(os.fstat(handle).st_mode):
            return None
        return os.readlink("", dir_fd=handle)
    finally:
        os.close(handle)
