"""A folder as the root of all paths: how the builder touches contexts and images. Blocking: for threads.

Whatever is in the folder may be a link to anywhere, so each path is opened with openat2(2), where the folder is the
root for links and "..". Nothing else in the builder opens a path that a client or an image had a say in.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from pathlib import Path
from types import TracebackType

from swarmlet_agent.engine.inside import open_in_root

#: "Not there", in all the ways a path can be not there.
_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_MAX_LINKS = 40


class Root:
    """`with Root(path) as root:`. Paths are relative to it, however many slashes they begin with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def __enter__(self) -> Root:
        self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int = os.O_PATH | os.O_DIRECTORY) -> int | None:
        """A descriptor, links followed; None if it is not there (or no folder, if one is asked for)."""
        try:
            return open_in_root(self.fd, path.lstrip("/") or ".", flags)
        except OSError as err:
            if err.errno in _MISSING:
                return None
            raise

    def stat(self, path: str) -> os.stat_result | None:
        """Of what a path leads to."""
        found = self.open(path, os.O_PATH)
        if found is None:
            return None
        try:
            return os.fstat(found)
        finally:
            os.close(found)

    def real_path(self, path: str) -> str | None:
        """Without links, relative to the root; None if it is not there."""
        found = self.open(path, os.O_PATH)
        if found is None:
            return None
        try:
            here, top = os.readlink(f"/proc/self/fd/{found}"), os.readlink(f"/proc/self/fd/{self.fd}")
            return here.removeprefix(top).lstrip("/")
        finally:
            os.close(found)

    def make_folders(self, path: str, owner: tuple[int, int] = (0, 0), *, links: int = 0) -> int:
        """A descriptor of the folder, made with all above it where they are missing (0755). OSError.

        A link to a folder that is missing has that made, inside the root. links: how many such were followed so far.
        """
        found = self.open(path)
        if found is not None:
            return found
        words = [word for word in path.split("/") if word not in ("", ".")]
        for count, word in enumerate(words):
            above = "/".join(words[:count])
            parent = open_in_root(self.fd, above or ".", os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(word, 0o755, dir_fd=parent)
                os.chmod(word, 0o755, dir_fd=parent)  # whatever the umask
                os.chown(word, *owner, dir_fd=parent)
            except FileExistsError:
                here = "/".join(words[: count + 1])
                if self.stat(here) is None:
                    if links >= _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    target = os.readlink(word, dir_fd=parent)
                    beyond = posixpath.normpath(posixpath.join("/", self.real_path(above) or "", target))
                    return self.make_folders("/".join([beyond, *words[count + 1 :]]), owner, links=links + 1)
            finally:
                os.close(parent)
        return open_in_root(self.fd, "/".join(words) or ".", os.O_PATH | os.O_DIRECTORY)

    @staticmethod
    def is_folder(parent: int, name: str) -> bool:
        """A folder itself, not a link to one."""
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    @staticmethod
    def remove(parent: int, name: str) -> None:
        """Whatever has this name; a folder with all it holds."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            shutil.rmtree(name, dir_fd=parent)
