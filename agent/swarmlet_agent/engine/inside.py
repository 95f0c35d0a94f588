"""Looking into a container's root file system from outside, without ever leaving it.

The files belong to the image, so any of them may be a symbolic link to anywhere: every path is opened with
openat2(RESOLVE_IN_ROOT) (Linux 5.6), where the container's root is the root for links and "..".
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from swarmlet.errors import InvalidArgument

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02
#: More than any honest passwd file has; the rest is not read.
_MOST_BYTES = 4 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """A descriptor of `path` as seen from inside. OSError as open(2)."""
    return _open(root_fd, path, flags, mode, _RESOLVE_IN_ROOT)


def open_beneath(root_fd: int, path: str, flags: int) -> int:
    """As open_in_root, but what leads out of the root is refused: OSError EXDEV for a link to "/", or ".." too many."""
    return _open(root_fd, path, flags, 0, _RESOLVE_BENEATH)


def _open(root_fd: int, path: str, flags: int, mode: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve | _RESOLVE_NO_MAGICLINKS)
    descriptor = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root_fd), ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
    )  # fmt: skip
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(descriptor)


def read_accounts(root: Path) -> tuple[str, str]:
    """The texts of /etc/passwd and /etc/group; "" for one that is missing or not a plain file."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _read(root_fd, "etc/passwd"), _read(root_fd, "etc/group")
    finally:
        os.close(root_fd)


def ensure_folder(root: Path, path: str) -> None:
    """Make the working directory where the image has none (0755, root). InvalidArgument if something else is there."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.close(open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY))
            return
        except OSError as err:
            if err.errno == errno.ENOTDIR:
                raise InvalidArgument(f"Cannot mkdir: {path} is not a directory") from err
            if err.errno != errno.ENOENT:
                raise
        make_folders(root_fd, path)
    finally:
        os.close(root_fd)


def make_folders(root_fd: int, path: str) -> None:
    done: list[str] = []
    for word in (word for word in path.split("/") if word):
        parent = open_in_root(root_fd, "/".join(done) or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(word, 0o755, dir_fd=parent)
        except FileExistsError:
            pass  # also a link: opening it in the next round follows it inside the root, or says why not
        finally:
            os.close(parent)
        done.append(word)


def _read(root_fd: int, path: str) -> str:
    try:
        # O_NONBLOCK: a fifo in the image must not hold us.
        descriptor = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES):
            return ""
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        pieces, left = [], _MOST_BYTES
        while left > 0 and (piece := os.read(descriptor, min(left, 1 << 16))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
