"""Unpacking one layer into a folder of its own, as overlayfs wants it. Blocking: for worker processes and tests.

The layer is not trusted. The folder starts empty and only this code writes to it, so a model of what has been
made so far (path -> kind) is the truth: a name is followed through folders the model knows, never through the
file system. Absolute names and links begin at the layer's root; names and links that lead out of it, and hard links to
what the layer does not contain, are errors. The caller adds a second wall (chroot).

Decompressing and hashing may run in a thread beside the one that writes: both release the interpreter.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images import tarstream
from swarmlet_agent.images.feed import BadLayer, Feed
from swarmlet_agent.images.recipe import RecipeWriter
from swarmlet_agent.images.tarstream import Entry, TarReader

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
#: Attributes by which overlayfs steers itself: an image must not be able to write them.
_PRIVATE_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_MAX_LINK_STEPS = 40
_MAX_PATH = 4096
_MAX_DEPTH = 500
_MAX_FOLDERS_REPLACED = 100
#: How often (bytes written) the free space is looked at.
_SPACE_EVERY = 64 << 20

#: What a path of the model is; numbers from 0 are regular files, counted.
_DIR, _IMPLIED, _OTHER, _LINK = -1, -2, -3, -4
_FOLDERS = frozenset((_DIR, _IMPLIED))
#: Errors that an impossible entry causes, not the disk.
_ENTRY_ERRORS = frozenset((errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG, errno.E2BIG, errno.ERANGE))


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one layer. reserve_bytes: free disk space that unpacking leaves alone."""

    tar_bytes: int = 64 << 30
    entries: int = 4_000_000
    reserve_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer turned out to be. size_bytes: sum of its files' sizes, those of symbolic links included; implied:
    folders without an entry."""

    diff_id: str
    tar_bytes: int
    size_bytes: int
    implied: tuple[bytes, ...]


def unpack_layer(
    source: BinaryIO, length: int, root: bytes, kept: bytes, recipe: BinaryIO, *,
    label: str, expected: str | None = None, limits: Limits = Limits(), report: Callable[[int], None] | None = None,
    ahead: bool = True,
) -> Unpacked:
    """Unpack `length` bytes of `source` (compressed or not) into the empty folder `root`.

    expected: the diff id it must have, or None. label names the layer in errors. report is called now and then with
    the source bytes consumed. ahead: see Feed. BadLayer if it is broken, escapes or is something else than promised;
    OSError from the disk. What was written so far is the caller's to remove.
    """
    feed = Feed(source, length, limits.tar_bytes, ahead=ahead)
    with feed:
        writer = _Writer(TarReader(feed.pieces(report)), root, kept, RecipeWriter(recipe), label, limits)
        try:
            writer.run()
        except BadLayer:
            raise
        except InvalidArgument as err:
            raise BadLayer(f"layer {label} cannot be unpacked: {err}") from err
    diff_id = feed.diff_id
    if expected is not None and diff_id != expected:
        raise BadLayer(
            f"layer {label} failed verification: its content has digest {diff_id}, the image wants {expected}"
        )
    return Unpacked(diff_id, feed.size, writer.size_bytes, tuple(writer.implied()))


class _Writer:
    """Makes the entries' files and keeps the model of what exists."""

    def __init__(
        self, reader: TarReader, root: bytes, kept: bytes, recipe: RecipeWriter, label: str, limits: Limits
    ) -> None:
        self._reader, self._root, self._kept, self._recipe = reader, root, kept, recipe
        self._label, self._limits = label, limits
        self._model: dict[bytes, int] = {b"": _DIR}
        self._links: dict[bytes, bytes] = {}
        self._folders: dict[bytes, Entry] = {}
        self._number = 0
        self._folders_replaced = 0
        self._since_space = self._limits.reserve_bytes and _SPACE_EVERY
        self.size_bytes = 0

    def run(self) -> None:
        before = os.umask(0)  # modes are exactly the entries'
        try:
            for count, entry in enumerate(self._reader.entries()):
                if count >= self._limits.entries:
                    raise self._bad(f"has more than {self._limits.entries} entries")
                try:
                    self._one(entry)
                except (OSError, OverflowError, ValueError) as err:
                    raise self._explain(entry, err) from err
            self._recipe.literal(self._reader.end)
            for piece in self._reader.rest():
                self._recipe.literal(piece)
            self._finish_folders()
        finally:
            os.umask(before)
            self._recipe.close()

    def implied(self) -> Iterator[bytes]:
        return (path for path, kind in self._model.items() if kind == _IMPLIED)

    def _one(self, entry: Entry) -> None:
        self._recipe.literal(entry.raw)
        path = self._clean(entry.name)
        parent, _, base = path.rpartition(b"/")
        if base.startswith(_WHITEOUT):
            self._whiteout(parent, base)
            self._store_literally(entry)
            return
        if not path:
            if entry.kind != tarstream.DIRECTORY:
                raise self._bad("replaces its root by something else")
            self._folders[path] = entry
            return
        parent = self._folder(parent)
        path = parent + b"/" + base if parent else base
        match entry.kind:
            case tarstream.DIRECTORY:
                self._make_folder(path, entry)
            case tarstream.REGULAR:
                self._make_file(path, entry)
            case tarstream.HARDLINK:
                self._make_hardlink(path, entry)
            case _:
                self._make_special(path, entry)

    # names

    def _clean(self, name: bytes) -> bytes:
        """Relative to the root, which is where an absolute name begins too (as Docker has it); no ".", no ".."."""
        if not name:
            raise self._bad("has an entry without a name")
        if len(name) > _MAX_PATH or name.count(b"/") > _MAX_DEPTH or b"\0" in name:
            raise self._bad("has an impossible file name")
        if b"/" not in name and name not in (b".", b".."):
            return name
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts:
                    raise self._bad(f"escapes its root: {os.fsdecode(name)!r} leads out of it")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        return b"/".join(parts)

    def _folder(self, path: bytes) -> bytes:
        """The real folder at `path`, made if nothing is there; links inside the layer are followed."""
        kind = self._model.get(path)
        if kind in _FOLDERS:
            return path
        if kind == _LINK:
            return self._follow(path, [_MAX_LINK_STEPS])
        if kind is not None:
            raise self._bad(f"puts a file into {os.fsdecode(path)!r}, which is not a folder")
        above, _, base = path.rpartition(b"/")
        above = self._folder(above)
        path = above + b"/" + base if above else base
        kind = self._model.get(path)
        if kind is not None:
            return self._folder(path)
        os.mkdir(self._at(path), 0o755)
        self._model[path] = _IMPLIED
        return path

    def _follow(self, path: bytes, budget: list[int]) -> bytes:
        """The folder of this layer that a symbolic link leads to. budget: links that may still be followed."""
        target = self._links[path]
        shown = f"{os.fsdecode(path)!r} -> {os.fsdecode(target)!r}"
        parts = [] if target.startswith(b"/") else path.split(b"/")[:-1]
        budget[0] -= 1
        if budget[0] < 0:
            raise self._bad(f"escapes its root through the symbolic link {shown}")
        for part in target.split(b"/"):
            if part == b"..":
                if not parts:
                    raise self._bad(f"escapes its root through the symbolic link {shown}")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
                here = b"/".join(parts)
                if self._model.get(here) == _LINK:
                    parts = self._follow(here, budget).split(b"/")
        found = b"/".join(parts)
        if self._model.get(found) not in _FOLDERS:
            raise self._bad(f"puts a file behind the symbolic link {shown}, which leads to no folder of the layer")
        return found

    def _at(self, path: bytes) -> bytes:
        return self._root + b"/" + path

    # making things

    def _make_folder(self, path: bytes, entry: Entry) -> None:
        kind = self._model.get(path)
        if kind not in _FOLDERS:
            if kind is not None:
                self._replace(path)
            os.mkdir(self._at(path), 0o755)
        self._model[path] = _DIR
        self._folders[path] = entry  # owner, mode and time come last: making files inside changes them

    def _make_file(self, path: bytes, entry: Entry) -> None:
        self._replace(path)
        number, self._number = self._number, self._number + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(self._at(path), flags, entry.mode & 0o777)
        try:
            if entry.sparse is None:
                self._model[path] = number
                self._recipe.file(path, entry.size, number)
                self._copy(entry.size, target)
                self.size_bytes += entry.size
                if padding := -entry.size % tarstream.BLOCK:
                    self._recipe.literal(self._reader.take(padding))
            else:
                self._model[path] = _OTHER
                self._write_sparse(entry, target)
                self.size_bytes += entry.real_size
            self._attributes(target, entry)
        finally:
            os.close(target)

    def _copy(self, size: int, target: int) -> None:
        for piece in self._reader.payload(size):
            self._account(len(piece))
            while piece:
                piece = piece[os.write(target, piece) :]

    def _write_sparse(self, entry: Entry, target: int) -> None:
        os.ftruncate(target, entry.real_size)
        for offset, length in entry.sparse or ():
            os.lseek(target, offset, os.SEEK_SET)
            for piece in self._reader.payload(length):
                self._account(len(piece))
                self._recipe.literal(piece)
                while piece:
                    piece = piece[os.write(target, piece) :]
        self._recipe.literal(self._reader.take(-entry.size % tarstream.BLOCK))

    def _make_hardlink(self, path: bytes, entry: Entry) -> None:
        target = self._clean(entry.link)
        above, _, base = target.rpartition(b"/")
        if above and self._model.get(above) == _LINK:
            above = self._follow(above, [_MAX_LINK_STEPS])
            target = above + b"/" + base
        kind = self._model.get(target)
        if kind is None:
            raise self._bad(
                f"has a hard link {os.fsdecode(path)!r} to {os.fsdecode(entry.link)!r}, which it does not contain"
            )
        if kind in _FOLDERS:
            raise self._bad(f"has a hard link {os.fsdecode(path)!r} to a folder")
        if path == target:
            return
        self._replace(path)
        os.link(self._at(target), self._at(path), follow_symlinks=False)
        self._model[path] = _LINK if kind == _LINK else _OTHER
        if kind == _LINK:
            self._links[path] = self._links[target]

    def _make_special(self, path: bytes, entry: Entry) -> None:
        self._replace(path)
        place = self._at(path)
        if entry.kind == tarstream.SYMLINK:
            if not entry.link:
                raise self._bad(f"has a symbolic link {os.fsdecode(path)!r} that leads nowhere")
            os.symlink(entry.link, place)
            self.size_bytes += len(entry.link)
            self._model[path], self._links[path] = _LINK, entry.link
        else:
            kinds = {tarstream.FIFO: stat.S_IFIFO, tarstream.CHARDEV: stat.S_IFCHR, tarstream.BLOCKDEV: stat.S_IFBLK}
            os.mknod(place, kinds[entry.kind] | entry.mode & 0o777, os.makedev(entry.major, entry.minor))
            self._model[path] = _OTHER
        os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
        if entry.kind != tarstream.SYMLINK and entry.mode & 0o7000:
            os.chmod(place, entry.mode)
        self._set_xattrs(place, entry)
        os.utime(place, ns=(entry.mtime, entry.mtime), follow_symlinks=False)

    def _attributes(self, target: int, entry: Entry) -> None:
        if entry.uid or entry.gid:
            os.fchown(target, entry.uid, entry.gid)
        if entry.mode & 0o7000:
            os.fchmod(target, entry.mode)  # after chown, which clears setuid
        if entry.xattrs:
            self._set_xattrs(target, entry)
        os.utime(target, ns=(entry.mtime, entry.mtime))

    def _set_xattrs(self, target: int | bytes, entry: Entry) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith(_PRIVATE_XATTRS):
                continue
            try:
                os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
            except OSError as err:
                # A file system without this kind of attribute cannot hold it; Docker goes on as well.
                if err.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        """`.wh.x` hides x of lower layers; `.wh..wh..opq` hides all that lower layers have in this folder."""
        if base == _OPAQUE:
            os.setxattr(self._at(self._folder(parent)), b"trusted.overlay.opaque", b"y")
            return
        if base.startswith(_AUFS):
            return  # bookkeeping of a file system that is gone
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise self._bad(f"escapes its root: the whiteout {os.fsdecode(base)!r} names no file")
        parent = self._folder(parent)
        path = parent + b"/" + name if parent else name
        if path in self._model:
            return  # the layer's own file wins over its whiteout (OCI image-spec layer.md)
        os.mknod(self._at(path), stat.S_IFCHR, 0)
        self._model[path] = _OTHER

    def _store_literally(self, entry: Entry) -> None:
        size = entry.size + (-entry.size % tarstream.BLOCK)
        for piece in self._reader.payload(size):
            self._recipe.literal(piece)

    def _replace(self, path: bytes) -> None:
        """Make room for a later entry of the same name."""
        kind = self._model.get(path)
        if kind is None:
            return
        if kind in _FOLDERS:
            self._replace_folder(path)
        elif kind >= 0:
            self._keep(path, kind)
        else:
            os.unlink(self._at(path))
        self._links.pop(path, None)
        del self._model[path]

    def _replace_folder(self, path: bytes) -> None:
        self._folders_replaced += 1
        if self._folders_replaced > _MAX_FOLDERS_REPLACED:  # each means a look at all there is
            raise self._bad("replaces too many folders by something else")
        inside = path + b"/"
        for below in [each for each in self._model if each.startswith(inside)]:
            kind = self._model.pop(below)
            if kind >= 0:
                self._keep(below, kind)
            self._links.pop(below, None)
            self._folders.pop(below, None)
        self._folders.pop(path, None)
        remove_tree(self._at(path))

    def _keep(self, path: bytes, number: int) -> None:
        """A content that was replaced is still needed to make the tar again."""
        os.makedirs(self._kept, 0o700, exist_ok=True)
        os.rename(self._at(path), self._kept + b"/%d" % number)

    def _finish_folders(self) -> None:
        for path, entry in self._folders.items():
            place = self._at(path)
            try:
                if entry.uid or entry.gid:
                    os.chown(place, entry.uid, entry.gid)
                os.chmod(place, entry.mode)
                self._set_xattrs(place, entry)
                os.utime(place, ns=(entry.mtime, entry.mtime))
            except (OSError, OverflowError, ValueError) as err:
                raise self._explain(entry, err) from err

    def _account(self, written: int) -> None:
        """Stop before the disk is full: the node needs room to live."""
        if not self._limits.reserve_bytes:
            return
        self._since_space += written
        if self._since_space >= _SPACE_EVERY:
            self._since_space = 0
            disk = os.statvfs(self._root)
            if disk.f_bavail * disk.f_frsize < self._limits.reserve_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _bad(self, what: str) -> BadLayer:
        return BadLayer(f"layer {self._label} {what}")

    def _explain(self, entry: Entry, err: Exception) -> Exception:
        """The layer's own impossible values become BadLayer; the disk's errors stay what they are."""
        if isinstance(err, OSError) and err.errno not in _ENTRY_ERRORS:
            return OSError(err.errno, f"{os.fsdecode(entry.name)}: {err.strerror}")
        return self._bad(f"has an impossible entry {os.fsdecode(entry.name)!r}: {err}")


def remove_tree(path: str | bytes | os.PathLike[str]) -> None:
    """Delete a layer's or container's folder. Nothing there is fine."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
