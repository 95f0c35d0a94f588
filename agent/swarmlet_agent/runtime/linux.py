"""System calls that Python 3.11 does not have: mount, unshare, inotify. Thin, typed, errors as OSError.

`unshare` works on the calling thread: it is for threads that own themselves, never for the event loop's.
"""

from __future__ import annotations

import ctypes
import os

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
IN_CLOSE_WRITE, IN_MOVED_TO = 0x8, 0x80

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
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


def inotify_open() -> int:
    """A non-blocking inotify descriptor."""
    return _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def inotify_watch(descriptor: int, path: str, mask: int) -> int:
    """The watch's number."""
    return _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), mask), f"watching {path}")
