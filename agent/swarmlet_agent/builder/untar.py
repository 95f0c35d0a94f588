"""Archives from clients unpacked into a folder: the build context, and what ADD unpacks. Blocking: for threads.

The archive is not trusted. Every name is followed from the folder's own descriptor with the folder as the root of
links and "..", so nothing in an archive can reach a file outside (openat2(2), RESOLVE_IN_ROOT).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.images import tarstream
from swarmlet_agent.images.capture import Stopped
from swarmlet_agent.images.compression import decompressed
from swarmlet_agent.images.tarstream import BadTar, Entry, TarReader

_SPECIAL = {tarstream.FIFO: stat.S_IFIFO, tarstream.CHARDEV: stat.S_IFCHR, tarstream.BLOCKDEV: stat.S_IFBLK}
#: Errors that an archive causes, not the disk.
_IMPOSSIBLE = frozenset((
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EXDEV,
))
#: Bounds of one archive, unpacked.
MAX_BYTES = 256 << 30
MAX_ENTRIES = 4_000_000
_RESERVE_BYTES = 256 << 20
_SPACE_EVERY = 64 << 20


def untar(
    read: Callable[[int], bytes], root: Root, *, what: str, owner: tuple[int, int] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Unpack a tar, compressed or not, below root; returns its content in bytes.

    owner: (uid, gid) of all that is made; None: as the archive says. InvalidArgument for what is no tar; Internal
    for the disk; Stopped.
    """
    writer = _Writer(root, what, owner, stopped)
    try:
        reader = TarReader(_counted(decompressed(read), what))
        count = 0
        for count, entry in enumerate(reader.entries(), 1):
            if count > MAX_ENTRIES:
                raise InvalidArgument(f"{what} has more than {MAX_ENTRIES} entries")
            writer.one(entry, reader)
        if not count and reader.position == 0:
            raise InvalidArgument(f"{what} is empty")
        writer.finish()
    except BadTar as err:
        raise InvalidArgument(f"{what} is no tar archive: {err}") from err
    except OSError as err:
        if err.errno in _IMPOSSIBLE:
            raise InvalidArgument(f"{what} has an impossible entry: {err.strerror}: {err.filename}") from err
        raise Internal(f"{what} cannot be unpacked: {err.strerror or err}") from err
    return writer.written


def _counted(pieces: Iterator[bytes], what: str) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_BYTES:
            raise InvalidArgument(f"{what} unpacks to more than {MAX_BYTES} bytes")
        yield piece


class _Writer:
    def __init__(self, root: Root, what: str, owner: tuple[int, int] | None, stopped: Callable[[], bool]) -> None:
        self._root, self._what, self._owner, self._stopped = root, what, owner, stopped
        self._folders: dict[str, Entry] = {}
        self._since = _SPACE_EVERY
        self.written = 0

    def one(self, entry: Entry, reader: TarReader) -> None:
        if self._stopped():
            raise Stopped
        path = _clean(entry.name, self._what)
        if not path:
            if entry.kind == tarstream.DIRECTORY:
                self._folders[""] = entry
            else:
                _skip(entry, reader)
            return
        above, _, base = path.rpartition("/")
        parent = self._root.make_folders(above)
        try:
            self._make(parent, base, path, entry, reader)
        finally:
            os.close(parent)

    def _make(self, parent: int, base: str, path: str, entry: Entry, reader: TarReader) -> None:
        if entry.kind == tarstream.DIRECTORY:
            if not self._root.is_folder(parent, base):
                self._root.remove(parent, base)
                os.mkdir(base, 0o755, dir_fd=parent)
            self._folders[path] = entry
            return
        if entry.kind == tarstream.HARDLINK:
            self._link(parent, base, entry)
            return
        self._root.remove(parent, base)
        if entry.kind == tarstream.REGULAR:
            self._file(parent, base, entry, reader)
            return
        if entry.kind == tarstream.SYMLINK:
            os.symlink(entry.link, base, dir_fd=parent)
        else:
            kind = _SPECIAL[entry.kind]
            os.mknod(base, kind | entry.mode & 0o777, os.makedev(entry.major, entry.minor), dir_fd=parent)
        os.chown(base, *self._owned(entry), dir_fd=parent, follow_symlinks=False)
        if entry.kind != tarstream.SYMLINK:
            os.chmod(base, entry.mode, dir_fd=parent)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _file(self, parent: int, base: str, entry: Entry, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(base, flags, 0o600, dir_fd=parent)
        try:
            if entry.sparse is None:
                self._copy(reader, entry.size, target)
            else:
                os.ftruncate(target, entry.real_size)
                for offset, length in entry.sparse:
                    os.lseek(target, offset, os.SEEK_SET)
                    self._copy(reader, length, target)
            _padding(entry, reader)
            os.fchown(target, *self._owned(entry))
            os.fchmod(target, entry.mode)
            for key, value in entry.xattrs.items():
                _set_xattr(target, key, value)
            os.utime(target, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(target)

    def _copy(self, reader: TarReader, size: int, target: int) -> None:
        for piece in reader.payload(size):
            if self._stopped():
                raise Stopped
            self._account(len(piece))
            while piece:
                piece = piece[os.write(target, piece) :]

    def _link(self, parent: int, base: str, entry: Entry) -> None:
        target = _clean(entry.link, self._what)
        above, _, name = target.rpartition("/")
        folder = self._root.open(above)
        if folder is None:
            raise InvalidArgument(f"{self._what} has a hard link to {target!r}, which it does not contain")
        try:
            if os.fstat(folder).st_ino == os.fstat(parent).st_ino and name == base:
                return
            self._root.remove(parent, base)
            os.link(name, base, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as err:
            raise InvalidArgument(f"{self._what} has a hard link to {target!r}, which cannot be linked") from err
        finally:
            os.close(folder)

    def finish(self) -> None:
        """Owners, modes and times of folders come last: making files inside changes them."""
        for path, entry in self._folders.items():
            folder = self._root.open(path)
            if folder is None:
                continue
            place = f"/proc/self/fd/{folder}"
            try:
                os.chown(place, *self._owned(entry))
                os.chmod(place, entry.mode)
                os.utime(place, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(folder)

    def _owned(self, entry: Entry) -> tuple[int, int]:
        return self._owner if self._owner is not None else (entry.uid, entry.gid)

    def _account(self, written: int) -> None:
        self.written += written
        self._since += written
        if self._since >= _SPACE_EVERY:
            self._since = 0
            disk = os.fstatvfs(self._root.fd)
            if disk.f_bavail * disk.f_frsize < _RESERVE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _clean(name: bytes, what: str) -> str:
    parts = [part for part in os.fsdecode(name).split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in "".join(parts):
        raise InvalidArgument(f"{what} has an entry with an impossible name: {os.fsdecode(name)!r}")
    return "/".join(parts)


def _skip(entry: Entry, reader: TarReader) -> None:
    for _ in reader.payload(entry.size):
        pass
    _padding(entry, reader)


def _padding(entry: Entry, reader: TarReader) -> None:
    """Zeros up to the next block. The docker command leaves them and the end mark out where it has added a file."""
    with contextlib.suppress(BadTar):
        reader.take(-entry.size % tarstream.BLOCK)


def _set_xattr(target: int, key: bytes, value: bytes) -> None:
    if not key.startswith(b"user.") and key != b"security.capability":
        return
    try:
        os.setxattr(target, key, value)
    except OSError as err:
        if err.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
