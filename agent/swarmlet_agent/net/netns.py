"""Network namespaces, by system calls that Python 3.11 does not have (unshare, setns, mount).

A namespace belongs to a thread: everything here that enters one is for the "net" thread alone, never for the
thread of the event loop, and goes back before it returns.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet_agent.runtime.shared import ensure_shared
from swarmlet_agent.runtime.userns import stand_in

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH = 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
OWN = "/proc/thread-self/ns/net"


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, flags: int) -> None:
    _check(_libc.mount(source.encode(), target.encode(), None, flags, None), f"mounting {target}")


@contextmanager
def _returning() -> Iterator[None]:
    """Come back to the namespace this thread is in now."""
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _check(_libc.setns(home, _CLONE_NEWNET), "returning to the host's network namespace")
        finally:
            os.close(home)


@contextmanager
def new_namespace(mount_at: Path, owner: str = "") -> Iterator[int]:
    """Make a namespace, be in it for the block, and keep it by a bind mount. Yields an open fd of it.

    owner: the file of a user namespace whose root may change it; "" for ours.
    OSError, Internal. If the block fails the mount is there still: the caller removes it.
    """
    mount_at.touch()
    with _returning():
        if owner:
            # A thread cannot change its user namespace as long as there are others.
            with stand_in("nsenter", f"--user={owner}", "unshare", "--net") as pid:
                _mount(f"/proc/{pid}/ns/net", str(mount_at), _MS_BIND)
            made = os.open(mount_at, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.setns(made, _CLONE_NEWNET), f"entering {mount_at}")
            finally:
                os.close(made)
        else:
            _check(_libc.unshare(_CLONE_NEWNET), "making a network namespace")
            _mount(OWN, str(mount_at), _MS_BIND)
        descriptor = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def inside(path: Path) -> Iterator[int]:
    """Be in the namespace mounted at path for the block; yields an open fd of it. FileNotFoundError, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _returning():
            _check(_libc.setns(descriptor, _CLONE_NEWNET), f"entering {path}")
            yield descriptor
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Unmount a namespace and remove the file; the kernel reaps it once nobody uses it. Nothing there is fine."""
    while True:
        try:
            _check(_libc.umount2(str(path).encode(), _MNT_DETACH), f"unmounting {path}")
        except OSError as err:
            if err.errno in (errno.EINVAL, errno.ENOENT):  # not a mount point (any more)
                break
            raise
    path.unlink(missing_ok=True)


def is_namespace(path: Path) -> bool:
    """True if a namespace is mounted there (after a reboot the file may be there without one)."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except FileNotFoundError:
        return False


def ensure_folder(folder: Path) -> None:
    """A folder for namespaces. Mounts in its parent reach the mount namespace that the OCI runtime is started in."""
    ensure_shared(folder.parent)
    folder.mkdir(exist_ok=True, mode=0o755)


def remove_folder(folder: Path) -> None:
    """Remove the folder with every namespace kept there. The parent stays shared: others have mounts there too."""
    if folder.exists():
        for entry in list(folder.iterdir()):
            forget(entry)
        folder.rmdir()


def write_sysctl(name: str, value: str) -> None:
    """`net/ipv4/ip_forward` and the like, in the calling thread's namespace. Internal if the kernel refuses."""
    try:
        descriptor = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as err:
        raise Internal(f"setting sysctl {name} to {value}: {os.strerror(err.errno or 0)}") from err
