"""Unpacking a client's archive into a folder of a container. Blocking: for threads.

Unlike a layer's folder, this one is alive: there are links in it, and the container may be changing them. Folders are
therefore opened by the kernel inside the container's root (openat2), and everything in them is done by their
descriptor and a single name that is never followed. The archive is not trusted either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet_agent.archive.paths import entry_path
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.engine.inside import open_in_root
from swarmlet_agent.images import tarstream
from swarmlet_agent.images.tarstream import Entry, TarReader

#: Attributes by which overlayfs steers itself.
_PRIVATE_XATTRS = (b"trusted.overlay.", b"user.overlay.")
#: A file system that has no such attributes, or whose rules forbid one, is not the archive's fault.
_XATTR_ERRORS = frozenset((errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM))
_NODES = {tarstream.FIFO: stat.S_IFIFO, tarstream.CHARDEV: stat.S_IFCHR, tarstream.BLOCKDEV: stat.S_IFBLK}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Rules:
    """no_change_of_kind: a folder never takes the place of something else, nor the other way round.

    owner: uid and gid for everything; None: the archive's. remap: the container's ids, which all of these are.
    """

    no_change_of_kind: bool = False
    owner: tuple[int, int] | None = None
    remap: Remap | None = None

    def owner_of(self, entry: Entry) -> tuple[int, int]:
        """On the host. InvalidArgument for an id that the container has not."""
        uid, gid = self.owner or (entry.uid, entry.gid)
        return (uid, gid) if self.remap is None else self.remap.on_host(uid, gid)


def extract(root: int, where: str, pieces: Iterator[bytes], rules: Rules) -> None:
    """Unpack a plain tar into the folder `where` of the root.

    InvalidArgument for a broken archive, names that lead out, or what `rules` forbid; OSError from the disk. What
    was unpacked until then stays.
    """
    _Extractor(root, where, TarReader(pieces), rules).run()


class _Extractor:
    def __init__(self, root: int, where: str, reader: TarReader, rules: Rules) -> None:
        self._root, self._where, self._reader, self._rules = root, where, reader, rules
        self._base = os.fsencode(where)
        self._parent: tuple[bytes, int] | None = None  # the folder that entries went to last
        self._times: list[tuple[bytes, int]] = []

    def run(self) -> None:
        try:
            for entry in self._reader.entries():
                try:
                    self._one(entry)
                except OSError as err:
                    raise _explained(err, entry) from err
                except (OverflowError, ValueError) as err:
                    raise InvalidArgument(f"invalid tar archive: {os.fsdecode(entry.name)!r}: {err}") from err
            for _ in self._reader.rest():
                pass
            self._set_folder_times()
        finally:
            self._leave()

    def _one(self, entry: Entry) -> None:
        path = entry_path(entry.name, self._where)
        if not path:
            if entry.kind != tarstream.DIRECTORY:
                raise InvalidArgument(f"cannot overwrite directory {self._where!r} with non-directory")
            self._skip(entry)
            return
        self._rules.owner_of(entry)  # refused before anything is in its place
        above, _, base = path.rpartition(b"/")
        parent = self._folder(above)
        self._make_room(parent, path, entry)
        match entry.kind:
            case tarstream.DIRECTORY:
                self._make_folder(parent, path, base, entry)
            case tarstream.REGULAR:
                self._make_file(parent, base, entry)
            case tarstream.HARDLINK:
                self._make_hardlink(parent, base, entry)
            case _:
                self._make_special(parent, base, entry)

    def _skip(self, entry: Entry) -> None:
        for _ in self._reader.payload(entry.size + (-entry.size % tarstream.BLOCK)):
            pass

    # folders

    def _folder(self, path: bytes) -> int:
        """A descriptor of a folder below `where`, made with all above it if it is not there. Ours to close."""
        if self._parent is not None and self._parent[0] == path:
            return self._parent[1]
        self._leave()
        try:
            handle = self._open(path, _FOLDER)
        except FileNotFoundError:
            self._make_all(path)
            handle = self._open(path, _FOLDER)
        self._parent = (path, handle)
        return handle

    def _open(self, path: bytes, flags: int) -> int:
        return open_in_root(self._root, os.fsdecode(self._base + b"/" + path), flags)

    def _make_all(self, path: bytes) -> None:
        words = path.split(b"/")
        for count in range(len(words)):
            parent = self._open(b"/".join(words[:count]), _FOLDER)
            try:
                os.mkdir(words[count], 0o755, dir_fd=parent)
            except FileExistsError:
                pass
            finally:
                os.close(parent)

    def _leave(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _set_folder_times(self) -> None:
        """Last: making files in them changes their times."""
        for path, mtime in reversed(self._times):
            above, _, base = path.rpartition(b"/")
            try:
                os.utime(base, ns=(mtime, mtime), dir_fd=self._folder(above), follow_symlinks=False)
            except FileNotFoundError:  # a later entry, or the container, has replaced it
                continue

    # what is in the way

    def _make_room(self, parent: int, path: bytes, entry: Entry) -> None:
        base = path.rpartition(b"/")[2]
        try:
            found = os.stat(base, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        is_folder, becomes_folder = stat.S_ISDIR(found.st_mode), entry.kind == tarstream.DIRECTORY
        if is_folder and becomes_folder:
            return
        if self._rules.no_change_of_kind and is_folder != becomes_folder:
            here, there = ("directory", "non-directory") if is_folder else ("non-directory", "directory")
            shown = os.fsdecode(self._base.rstrip(b"/") + b"/" + path)
            raise InvalidArgument(f'cannot overwrite {here} "{shown}" with {there} "{self._where}"')
        if is_folder:
            _check_one_mount(parent, base)
            shutil.rmtree(base, dir_fd=parent)
        else:
            os.unlink(base, dir_fd=parent)

    # making things

    def _make_folder(self, parent: int, path: bytes, base: bytes, entry: Entry) -> None:
        with contextlib.suppress(FileExistsError):  # merged with what is there
            os.mkdir(base, 0o700, dir_fd=parent)
        handle = os.open(base, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._attributes(handle, entry)
        finally:
            os.close(handle)
        self._times.append((path, entry.mtime))

    def _make_file(self, parent: int, base: bytes, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(base, flags, 0o600, dir_fd=parent)
        try:
            for offset, length in entry.sparse if entry.sparse is not None else ((0, entry.size),):
                os.lseek(target, offset, os.SEEK_SET)
                for piece in self._reader.payload(length):
                    while piece:
                        piece = piece[os.write(target, piece) :]
            if entry.sparse is not None:
                os.ftruncate(target, entry.real_size)
            self._reader.take(-entry.size % tarstream.BLOCK)
            self._attributes(target, entry)
            os.utime(target, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(target)

    def _make_hardlink(self, parent: int, base: bytes, entry: Entry) -> None:
        target = entry_path(entry.link, self._where)
        above, _, name = target.rpartition(b"/")
        if not name:
            raise InvalidArgument(f"invalid hardlink {os.fsdecode(entry.name)!r} -> {os.fsdecode(entry.link)!r}")
        source = self._open(above, _FOLDER)
        try:
            os.link(name, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _make_special(self, parent: int, base: bytes, entry: Entry) -> None:
        uid, gid = self._rules.owner_of(entry)
        if entry.kind == tarstream.SYMLINK:
            os.symlink(entry.link, base, dir_fd=parent)
            os.chown(base, uid, gid, dir_fd=parent, follow_symlinks=False)
        else:
            device = os.makedev(entry.major, entry.minor)
            os.mknod(base, _NODES[entry.kind] | 0o600, device, dir_fd=parent)
            handle = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if stat.S_IFMT(os.fstat(handle).st_mode) != _NODES[entry.kind]:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # the container was quicker
                os.chown(f"/proc/self/fd/{handle}", uid, gid)
                os.chmod(f"/proc/self/fd/{handle}", entry.mode)
            finally:
                os.close(handle)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _attributes(self, handle: int, entry: Entry) -> None:
        os.fchown(handle, *self._rules.owner_of(entry))
        for key, value in entry.xattrs.items():
            if key.startswith(_PRIVATE_XATTRS):
                continue
            try:
                os.setxattr(handle, key, value)
            except OSError as err:
                if err.errno not in _XATTR_ERRORS:
                    raise
        os.fchmod(handle, entry.mode)  # after chown, which clears setuid


def _check_one_mount(parent: int, base: bytes) -> None:
    """Nothing is mounted in this folder: what a volume holds must not go with the place it is mounted at."""
    own = _mount_id(parent)
    for _, _, _, handle in os.fwalk(base, dir_fd=parent):
        if _mount_id(handle) != own:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _mount_id(handle: int) -> str:
    """proc(5), /proc/pid/fdinfo."""
    with open(f"/proc/self/fdinfo/{handle}") as info:
        return next(line for line in info if line.startswith("mnt_id:"))


def _explained(err: OSError, entry: Entry) -> Exception:
    """Names the entry; what only the archive can be blamed for is the client's error."""
    text = f"{os.fsdecode(entry.name)}: {(err.strerror or str(err)).lower()}"
    if err.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR):
        return InvalidArgument(text)
    return OSError(err.errno, text)
