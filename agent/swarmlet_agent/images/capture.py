"""What was changed over an image's layers, as a layer of its own: overlayfs's upper folder and the tar it stands for.

The folder itself becomes the layer (overlayfs takes its own upper folders as lower ones), so nothing is copied: the
files are read once, for the digest. Form of the tar: OCI image-spec layer.md, times in whole seconds as Docker has
them, entries in order of their names, so that equal folders give equal tars. Blocking: for threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet_agent.images.recipe import RecipeWriter
from swarmlet_agent.images.unpack import Unpacked

BLOCK = 512
_END = bytes(2 * BLOCK)
_PIECE = 1 << 20
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_OVERLAY = "trusted.overlay."
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_KINDS = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


class Stopped(Exception):
    """The work was told to stop."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where a file's bytes belong in the tar; path below the folder."""

    path: bytes
    size: int


def seal(folder: Path, recipe: Path, stopped: Callable[[], bool] = lambda: False) -> Unpacked | None:
    """Write the recipe of an upper folder that nobody changes any more; None if there is nothing in it.

    Sockets, which a layer cannot hold, are removed. Internal for names a layer cannot have; Stopped; OSError.
    """
    root = os.fsencode(folder)
    digest, size, content, count, links = hashlib.sha256(), 0, 0, 0, list[int]()
    with recipe.open("xb") as target:
        writer = RecipeWriter(target)
        for number, part in _numbered(parts(root, remove_sockets=True, links=links)):
            count += 1
            if stopped():
                raise Stopped
            if isinstance(part, bytes):
                digest.update(part)
                writer.literal(part)
                size += len(part)
                continue
            writer.file(part.path, part.size, number)
            for piece in file_pieces(root, part):
                digest.update(piece)
                if stopped():
                    raise Stopped
            padding = bytes(-part.size % BLOCK)
            digest.update(padding)
            writer.literal(padding)
            size += part.size + len(padding)
            content += part.size
        digest.update(_END)
        writer.literal(_END)
        writer.close()
    if not count:
        return None
    return Unpacked(f"sha256:{digest.hexdigest()}", size + len(_END), content + sum(links), ())


def parts(
    root: bytes, *, remove_sockets: bool = False, links: list[int] | None = None
) -> Iterator[bytes | Content]:
    """Headers, and the places of files' contents, parents first; padding and end mark are the caller's.

    links: the sizes of symbolic links are added to it.
    """
    first: dict[tuple[int, int], bytes] = {}
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        names = sorted(os.listdir(root + b"/" + folder), reverse=True)
        below = []
        for name in reversed(names):
            path = folder + b"/" + name if folder else name
            place = root + b"/" + path
            found = os.lstat(place)
            if stat.S_ISSOCK(found.st_mode):
                if remove_sockets:
                    os.unlink(place)
                continue
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                yield header(folder + b"/" + _WHITEOUT + name if folder else _WHITEOUT + name, found, b"0", size=0)
                continue
            if name.startswith(_WHITEOUT):
                raise Internal(f"a layer cannot hold a file with the reserved name {os.fsdecode(path)!r}")
            if links is not None and stat.S_ISLNK(found.st_mode):
                links.append(found.st_size)
            yield from _entry(place, path, found, first)
            if stat.S_ISDIR(found.st_mode):
                below.append(path)
        waiting.extend(reversed(below))


def _entry(
    place: bytes, path: bytes, found: os.stat_result, first: dict[tuple[int, int], bytes]
) -> Iterator[bytes | Content]:
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    if kind != b"5" and found.st_nlink > 1:
        earlier = first.setdefault((found.st_dev, found.st_ino), path)
        if earlier != path:
            yield header(path, found, b"1", link=earlier)
            return
    xattrs, opaque = _xattrs(place)
    if kind == b"5":
        yield header(path + b"/", found, kind, xattrs=xattrs)
        if opaque:
            yield header(path + b"/" + _OPAQUE, found, b"0", size=0)
        return
    link = os.readlink(place) if kind == b"2" else b""
    yield header(path, found, kind, link=link, xattrs=xattrs)
    if kind == b"0" and found.st_size:
        yield Content(path, found.st_size)


def _xattrs(place: bytes) -> tuple[dict[str, bytes], bool]:
    """Capabilities and the user's own attributes; and whether overlayfs hides what lies below."""
    kept: dict[str, bytes] = {}
    opaque = False
    try:
        for name in os.listxattr(place, follow_symlinks=False):
            if name == _OVERLAY + "opaque":
                opaque = os.getxattr(place, name, follow_symlinks=False) == b"y"
            elif name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
                kept[name] = os.getxattr(place, name, follow_symlinks=False)
    except OSError as err:
        if err.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    return kept, opaque


def header(
    path: bytes, found: os.stat_result, kind: bytes, *, link: bytes = b"", size: int | None = None,
    xattrs: dict[str, bytes] | None = None,
) -> bytes:
    """One tar header: plain ustar where everything fits, pax records before it where not."""
    if size is None:
        size = found.st_size if kind == b"0" else 0
    mode, mtime = stat.S_IMODE(found.st_mode), max(0, found.st_mtime_ns // 1_000_000_000)
    major, minor = (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in b"34" else (0, 0)
    plain = (
        not xattrs and len(path) <= 100 and len(link) <= 100 and size < 1 << 33 and mtime < 1 << 33
        and found.st_uid < 1 << 21 and found.st_gid < 1 << 21 and major < 1 << 21 and minor < 1 << 21
        and path.isascii() and link.isascii()
    )
    if plain:
        block = _HEADER.pack(
            path, b"%07o\0" % mode, b"%07o\0" % found.st_uid, b"%07o\0" % found.st_gid, b"%011o\0" % size,
            b"%011o\0" % mtime, b" " * 8, kind, link, b"ustar\0", b"00", b"", b"", b"%07o\0" % major,
            b"%07o\0" % minor, b"",
        )
        return block[:148] + b"%06o\0 " % sum(block) + block[156:]
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type, info.linkname, info.size, info.mode, info.mtime = kind, os.fsdecode(link), size, mode, mtime
    info.uid, info.gid, info.devmajor, info.devminor = found.st_uid, found.st_gid, major, minor
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in (xattrs or {}).items()
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def file_pieces(root: bytes, content: Content) -> Iterator[bytes]:
    """A file's bytes, exactly as many as were promised. Internal if it has become shorter."""
    handle = os.open(root + b"/" + content.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = content.size
        while left and (piece := os.read(handle, min(left, _PIECE))):
            left -= len(piece)
            yield piece
        if left:
            raise Internal(f"{os.fsdecode(content.path)} became shorter while it was read")
    finally:
        os.close(handle)


def _numbered(source: Iterator[bytes | Content]) -> Iterator[tuple[int, bytes | Content]]:
    number = 0
    for part in source:
        yield number, part
        if isinstance(part, Content):
            number += 1


def forget_mount_points(upper: Path, lower: Sequence[Path], targets: Iterable[str]) -> None:
    """Remove what the runtime had to make so that something could be mounted there: it is not the container's change.

    lower: the layers below, highest first. A folder on the way that is left empty goes too if it is as it is below,
    or is not there.
    """
    for target in sorted(set(targets), key=len, reverse=True):
        words = [word for word in target.split("/") if word]
        if not words or ".." in words:
            continue
        path = upper.joinpath(*words)
        if not _reached_by_folders(upper, words[:-1]) or not _remove_if_empty(path):
            continue
        for count in range(len(words) - 1, 0, -1):
            parent = upper.joinpath(*words[:count])
            below = next((found for layer in lower if (found := _look(layer, words[:count])) is not None), None)
            if below is not None and not _alike(os.lstat(parent), below):
                break
            xattrs, opaque = _xattrs(os.fsencode(parent))
            if xattrs or opaque or not _remove_if_empty(parent):
                break


def _reached_by_folders(root: Path, words: Sequence[str]) -> bool:
    for count in range(1, len(words) + 1):
        found = _look(root, words[:count])
        if found is None or not stat.S_ISDIR(found.st_mode):
            return False
    return True


def _look(root: Path, words: Sequence[str]) -> os.stat_result | None:
    try:
        return os.lstat(root.joinpath(*words))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove_if_empty(path: Path) -> bool:
    """Whether it is gone now."""
    try:
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(path)
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            os.unlink(path)
        else:
            return False
    except FileNotFoundError:
        return False
    except OSError as err:
        if err.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
