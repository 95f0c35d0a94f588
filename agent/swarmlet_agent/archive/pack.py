"""A folder or file of a view as a tar stream. Blocking: for threads; a file is read as it is taken.

The container may change its files meanwhile: what has vanished is left out, what was cut short is filled with zeros
(its length has been promised by then). Nothing is opened through a link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path

from swarmlet.errors import Conflict
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.engine.inside import open_in_root
from swarmlet_agent.images.capture import BLOCK, header

PIECE = 1 << 20
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_END = bytes(2 * BLOCK)
_ZEROS = bytes(PIECE)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_KINDS = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_XATTRS_KEPT = ("user.", "security.capability")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_Pieces = Generator[bytes | memoryview, None, None]


def tree(root: int, path: str, name: str, remap: Remap | None = None) -> TarStream:
    """The folder at `path` (links followed) and all below; entries begin with `name`, or are relative if that is "".

    remap: the container's ids, which its files have in the archive.
    """
    folder = open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    return TarStream(_tree(folder, os.fsencode(name), _Writer(remap)), folder)


def single(root: int, folder: str, base: str, name: str, remap: Remap | None = None) -> TarStream:
    """What lies at `base` of a folder, if that is no folder itself: a link stays a link."""
    handle = open_in_root(root, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    return TarStream(_one(handle, os.fsencode(base), os.fsencode(name), _Writer(remap)), handle)


class TarStream:
    """An iterator of pieces of about 1 MiB, the end mark behind the last. `close` it, however far it came."""

    def __init__(self, pieces: _Pieces, folder: int) -> None:
        self._pieces, self._folder = pieces, folder
        self._ended = self._closed = False

    def __iter__(self) -> TarStream:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        waiting: list[bytes | memoryview] = []
        size = 0
        for piece in self._pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= PIECE:
                return b"".join(waiting)
        self._ended = True
        waiting.append(_END)
        return b"".join(waiting)

    def close(self) -> None:
        if not self._closed:
            self._closed = self._ended = True
            self._pieces.close()
            os.close(self._folder)


def layer(upper: Path, skipped: Callable[[bytes], bool]) -> TarStream:
    """The changes over an image in the form of a layer (OCI image-spec layer.md), from overlayfs's upper folder.

    skipped: whether a path is no change. Unlike a sealed folder's (`images.capture`), these files may be changing.
    """
    folder = os.open(upper, _READ | os.O_DIRECTORY)
    return TarStream(_tree(folder, b"", _Writer(None), skipped), folder)


class _Writer:
    """Headers of one archive, and which files have gone into it under another name."""

    def __init__(self, remap: Remap | None) -> None:
        self._remap = remap
        self.links: dict[tuple[int, int], bytes] = {}

    def header(
        self, name: bytes, found: os.stat_result, kind: bytes, *, link: bytes = b"", size: int | None = None,
        xattrs: dict[str, bytes] | None = None,
    ) -> bytes:
        if self._remap is not None:
            fields = list(found)
            fields[stat.ST_UID], fields[stat.ST_GID] = self._remap.inside(found.st_uid, found.st_gid)
            found = os.stat_result(fields, {"st_mtime_ns": found.st_mtime_ns, "st_rdev": found.st_rdev})
        return header(name, found, kind, link=link, size=size, xattrs=xattrs)


def _tree(folder: int, name: bytes, out: _Writer, skipped: Callable[[bytes], bool] | None = None) -> _Pieces:
    """Folders are held open by depth, so that renaming one of them leads nowhere else. skipped: this is a layer."""
    prefix = name.rstrip(b"/") + b"/" if name else b""
    if name:
        yield out.header(prefix, os.fstat(folder), b"5", xattrs=_xattrs(folder))
    below = [(os.dup(folder), prefix, iter(_names(folder)))]
    try:
        while below:
            handle, prefix, names = below[-1]
            base = next(names, None)
            if base is None:
                os.close(below.pop()[0])
                continue
            path = prefix + base
            if skipped is not None and skipped(path):
                continue
            inner = _open_folder(handle, base)
            if inner is None:
                yield from _one(handle, base, path, out) if skipped is None else _changed(handle, base, path, out)
                continue
            below.append((inner, path + b"/", iter(_names(inner))))
            yield out.header(path + b"/", os.fstat(inner), b"5", xattrs=_xattrs(inner))
            if skipped is not None and is_opaque(inner):
                yield out.header(path + b"/" + _OPAQUE, os.fstat(inner), b"0", size=0)
    finally:
        for handle, _, _ in below:
            os.close(handle)


def _changed(handle: int, base: bytes, path: bytes, out: _Writer) -> _Pieces:
    """As `_one`; a file that overlayfs hides what is below with becomes a whiteout."""
    try:
        found = os.stat(base, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return
    if is_whiteout(found):
        yield out.header(path[: len(path) - len(base)] + _WHITEOUT + base, found, b"0", size=0)
        return
    if base.startswith(_WHITEOUT):
        raise Conflict(f"an image cannot hold a file with the reserved name {os.fsdecode(path)!r}")
    yield from _one(handle, base, path, out)


def is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(folder: int) -> bool:
    """Whether overlayfs hides all that lies below this folder."""
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODATA):
            return False
        raise


def _names(folder: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(folder))


def _open_folder(handle: int, base: bytes) -> int | None:
    """None if it is no folder (any more)."""
    try:
        if not stat.S_ISDIR(os.stat(base, dir_fd=handle, follow_symlinks=False).st_mode):
            return None
        return os.open(base, _READ | os.O_DIRECTORY, dir_fd=handle)
    except OSError as err:
        if err.errno in _GONE:
            return None
        raise


def _one(handle: int, base: bytes, name: bytes, out: _Writer) -> _Pieces:
    """Anything but a folder. Sockets are left out: tar has none."""
    try:
        found = os.stat(base, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None or kind == b"5":
        return
    if found.st_nlink > 1:
        earlier = out.links.setdefault((found.st_dev, found.st_ino), name)
        if earlier != name:
            yield out.header(name, found, b"1", link=earlier)
            return
    if kind == b"0":
        yield from _file(handle, base, name, out)
    elif kind == b"2":
        try:
            yield out.header(name, found, kind, link=os.fsencode(os.readlink(base, dir_fd=handle)))
        except OSError as err:
            if err.errno not in (*_GONE, errno.EINVAL):
                raise
    else:
        yield out.header(name, found, kind)


def _file(handle: int, base: bytes, name: bytes, out: _Writer) -> _Pieces:
    try:
        file = os.open(base, _READ, dir_fd=handle)
    except OSError as err:
        if err.errno in _GONE:
            return
        raise
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return
        yield out.header(name, found, b"0", xattrs=_xattrs(file))
        left = found.st_size
        while left and (piece := os.read(file, min(left, PIECE))):
            left -= len(piece)
            yield piece
        while left:
            left -= len(zeros := _ZEROS[: min(left, PIECE)])
            yield zeros
        if padding := -found.st_size % BLOCK:
            yield _ZEROS[:padding]
    finally:
        os.close(file)


def _xattrs(handle: int) -> dict[str, bytes]:
    """Capabilities and the user's own."""
    try:
        return {
            name: os.getxattr(handle, name) for name in os.listxattr(handle)
            if name.startswith(_XATTRS_KEPT) and not name.startswith("user.overlay.")
        }
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODATA):
            return {}
        raise
