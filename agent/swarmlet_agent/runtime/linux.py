"""System calls that Python 3.11 does not have: mounts, unshare, ids of a thread, inotify. Thin, typed, OSError.

`unshare` works on the calling thread: it is for threads that own themselves, never for the event loop's.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
IN_CLOSE_WRITE, IN_MOVED_TO = 0x8, 0x80

#: The same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_MOVE_MOUNT_F_EMPTY_PATH = 4
_OPEN_TREE_CLONE, _AT_FDCWD, _AT_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 1, -100, 0x1000, 0x00100000
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setfsuid.argtypes = _libc.setfsgid.argtypes = (ctypes.c_uint,)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); "" stands for NULL. OSError names the target and never the data, which may hold credentials."""
    result = _libc.mount(
        os.fsencode(source) or None, os.fsencode(target), kind.encode() or None, flags, data.encode() or None
    )
    _check(result, f"mounting {target}")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"unmounting {target}")


def unshare(flags: int) -> None:
    """unshare(2), for this thread."""
    _check(_libc.unshare(flags), "unshare")


def idmapped_clone(path: Path, user_namespace: int) -> int:
    """A mount of a folder, attached nowhere, that shows its files with the ids of a user namespace (descriptor).

    mount_setattr(2): Linux 5.12. The caller closes it. OSError, EINVAL for a file system that cannot be shown so.
    """
    clone = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
    )  # fmt: skip
    _check(clone, f"cloning the mount of {path}")
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(clone), ctypes.c_char_p(b""), ctypes.c_uint(_AT_EMPTY_PATH),
        ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)),
    )  # fmt: skip
    try:
        _check(result, f"mapping the ids of {path}")
    except OSError:
        os.close(clone)
        raise
    return int(clone)


def attach_mount(mount_: int, target: Path) -> None:
    """Put a mount that `idmapped_clone` has made where it can be seen; move_mount(2). OSError."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_int(mount_), ctypes.c_char_p(b""), ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )  # fmt: skip
    _check(result, f"mounting {target}")


def act_as(uid: int, gid: int) -> None:
    """From now on, what this thread makes belongs to these ids; it keeps all its capabilities. OSError."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)  # leaving 0 takes some of the effective capabilities away (capabilities(7))
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    words = struct.unpack("6I", data.raw)  # effective, permitted, inheritable: low half, then high half
    raised = struct.pack("6I", words[1], words[1], words[2], words[4], words[4], words[5])
    _check(_libc.capset(header, ctypes.create_string_buffer(raised, 24)), "capset")


@contextmanager
def acting_as(ids: tuple[int, int]) -> Iterator[None]:
    """`act_as` for the block, in this thread."""
    act_as(*ids)
    try:
        yield
    finally:
        act_as(0, 0)


def inotify_open() -> int:
    """A non-blocking inotify descriptor."""
    return _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def inotify_watch(descriptor: int, path: str, mask: int) -> int:
    """The watch's number."""
    return _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), mask), f"watching {path}")
