"""The rules of `docker cp` for paths and names, and how a file is described to its clients. Pure.

What a path means depends on how it ends: "/a" is the thing itself, "/a/" what it leads to if that is a folder, and
"/a/." the contents of that folder (docs.docker.com, "docker container cp"; moby pkg/archive).
"""

from __future__ import annotations

import base64
import posixpath
import stat
from dataclasses import dataclass

import msgspec

from swarmlet.errors import InvalidArgument
from swarmlet.model.times import rfc3339

#: Go's FileMode bits (io/fs), by the file type of stat(2).
_GO_TYPES = {
    stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFBLK: 1 << 26, stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24, stat.S_IFCHR: 1 << 26 | 1 << 21,
}
_GO_SETUID, _GO_SETGID, _GO_STICKY = 1 << 23, 1 << 22, 1 << 20
STAT_HEADER = "X-Docker-Container-Path-Stat"


@dataclass(frozen=True, slots=True)
class PathStat:
    """What a client learns of a path. mode: as stat(2) has it; mtime in ns; target: where a link ends, "" if none."""

    name: str
    size: int
    mode: int
    mtime: int
    target: str = ""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def header(self) -> str:
        """The value of X-Docker-Container-Path-Stat: base64 of JSON."""
        shown = {
            "name": _shown(self.name), "size": self.size, "mode": go_mode(self.mode), "mtime": rfc3339(self.mtime),
            "linkTarget": _shown(self.target),
        }
        return base64.b64encode(msgspec.json.encode(shown)).decode()


def go_mode(mode: int) -> int:
    """stat(2)'s mode as Go's io/fs.FileMode."""
    bits = stat.S_IMODE(mode) & 0o777 | _GO_TYPES.get(stat.S_IFMT(mode), 0)
    for own, theirs in ((stat.S_ISUID, _GO_SETUID), (stat.S_ISGID, _GO_SETGID), (stat.S_ISVTX, _GO_STICKY)):
        if mode & own:
            bits |= theirs
    return bits


def absolute(path: str) -> str:
    """From the container's root, cleaned, but ending as it was given: with a slash, "/." or neither.

    InvalidArgument for a path that no system call takes.
    """
    if "\0" in path:
        raise InvalidArgument("bad parameter: 'path' contains a null byte")
    cleaned = clean(path)
    if _ends_in_dot(path) and not _ends_in_dot(cleaned):
        cleaned = cleaned.rstrip("/") + "/."
    if path.endswith("/") and not cleaned.endswith("/"):
        cleaned += "/"
    return cleaned


def clean(path: str) -> str:
    """From the container's root, without ".", ".." and empty parts."""
    # normpath keeps two slashes in front, as POSIX allows it to.
    return posixpath.normpath("/" + path.lstrip("/"))


def base_name(path: str) -> str:
    """Go's filepath.Base: slashes at the end do not count; "/" and "." for what has no name."""
    if not path:
        return "."
    return path.rstrip("/").rpartition("/")[2] or "/"


def archive_name(path: str) -> str:
    """What the entries of an archive of `path` (as `absolute` gives it) begin with."""
    return base_name(path)


def entry_path(name: bytes, where: str) -> bytes:
    """Where a member of an archive goes, below the folder `where`; b"" for that folder itself.

    InvalidArgument if it would be outside, or cannot be a name.
    """
    if b"\0" in name or len(name) > 4096:
        raise InvalidArgument("invalid tar archive: an entry has an impossible name")
    relative = posixpath.normpath(name)
    if relative == b".." or relative.startswith(b"../"):
        raise InvalidArgument(f"{name.decode(errors='replace')!r} is outside of {where!r}")
    relative = relative.lstrip(b"/")
    # "/.." is "/": normpath has taken care of those behind a slash in front.
    return b"" if relative == b"." else relative


def _shown(text: str) -> str:
    """For JSON, which has no place for bytes that are not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _ends_in_dot(path: str) -> bool:
    return base_name(path) == "."
