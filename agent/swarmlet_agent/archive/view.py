"""A container's files as `docker cp` sees them: its root with its volumes and binds, running or not.

The mounts are made in a mount namespace of their own, which is gone when the view is closed or the agent ends: the
host's mount table never sees them, and nothing can be left behind. Blocking: for threads.

/proc, /sys, /dev and tmpfs mounts are not part of it, as on Docker.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from swarmlet.errors import Internal
from swarmlet_agent.engine.inside import make_folders, open_in_root
from swarmlet_agent.runtime.linux import act_as

T = TypeVar("T")

_CLONE_NEWNS, _CLONE_FS = 0x00020000, 0x00000200
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path that the container has at `destination`."""

    source: str
    destination: str
    read_only: bool = False
    recursive: bool = True


class View:
    """A descriptor of the root; what is opened below it goes through the view's mounts. Close it."""

    def __init__(self, root: int, namespace: int) -> None:
        self.root, self._namespace = root, namespace

    def enter(self) -> None:
        """The calling thread, for good: for what writes. Only to a thread inside the namespace the kernel says EBUSY
        about its mount points; from outside they could be deleted, and the container's own mounts there with them."""
        if _libc.unshare(_CLONE_FS) != 0 or _libc.setns(self._namespace, _CLONE_NEWNS) != 0:
            raise _last_error("setns")

    def close(self) -> None:
        os.close(self.root)
        os.close(self._namespace)  # the last reference: the kernel takes its mounts away


def open_view(
    root: Path, binds: Sequence[Bind] = (), *, read_only: bool = False, guarded: Sequence[str] = (),
    owner: tuple[int, int] = (0, 0),
) -> View:
    """The mounted `root` with `binds` (parents first) over it. Internal if something cannot be mounted.

    owner: the host's ids of its root, for mount points that must be made.
    guarded: where the container has mounts that the view does not show; those places must not be deleted.
    A thread of its own makes it: a namespace is entered for good, and threads of a pool are used again.
    """
    def build() -> View:
        act_as(*owner)
        return _build(root, binds, read_only=read_only, guarded=guarded)

    return _outward(build)


def open_stacked(folders: Sequence[Path]) -> View:
    """The layers `folders` (highest first, at least one), read-only, as overlayfs shows them together."""
    return _outward(lambda: _stack(folders))


def _outward(build: Callable[[], View]) -> View:
    def work() -> View:
        _enter_namespace()
        return build()

    try:
        return _in_new_thread(work)
    except OSError as err:
        raise Internal(f"the container's files cannot be reached: {err}") from err


def _in_new_thread(work: Callable[[], T]) -> T:
    result: list[T] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as err:  # raised again below, in the thread that waits
            error.append(err)

    thread = threading.Thread(target=run, name="view")
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return result[0]


def _enter_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise _last_error("unshare")
    _mount("none", "/", _MS_REC | _MS_PRIVATE)


def _build(root: Path, binds: Sequence[Bind], *, read_only: bool, guarded: Sequence[str]) -> View:
    if read_only:
        _mount(str(root), str(root), _MS_BIND)  # a mount of its own, whose flags can be changed below
    with contextlib.ExitStack() as stack:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root_fd)
        for bind in binds:
            _bind(root_fd, bind)
        if read_only:
            _mount("none", f"/proc/self/fd/{root_fd}", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        for place in guarded:
            _guard(root_fd, place)
        view = View(root_fd, _namespace())
        stack.pop_all()
    return view


def _namespace() -> int:
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _bind(root_fd: int, bind: Bind) -> None:
    try:
        is_folder = stat.S_ISDIR(os.stat(bind.source).st_mode)
    except FileNotFoundError:
        return  # it is made when the container starts
    target = _mount_point(root_fd, bind.destination, is_folder=is_folder)
    try:
        flags = _MS_BIND | (_MS_REC if bind.recursive else 0)
        _mount(bind.source, f"/proc/self/fd/{target}", flags)
    finally:
        os.close(target)
    if bind.read_only:
        mounted = open_in_root(root_fd, bind.destination, os.O_PATH)  # the descriptor above lies under the mount
        try:
            _mount("none", f"/proc/self/fd/{mounted}", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        finally:
            os.close(mounted)


def _guard(root_fd: int, path: str) -> None:
    """Make the place a mount point by mounting it on itself."""
    try:
        place = open_in_root(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    try:
        if not stat.S_ISLNK(os.fstat(place).st_mode):
            _mount(f"/proc/self/fd/{place}", f"/proc/self/fd/{place}", _MS_BIND)
    finally:
        os.close(place)


def _mount_point(root_fd: int, path: str, *, is_folder: bool) -> int:
    """The place inside the root, made if it is not there, as the runtime does at the start."""
    try:
        return open_in_root(root_fd, path, os.O_PATH)
    except OSError as err:
        if err.errno != errno.ENOENT:
            raise
    if is_folder:
        make_folders(root_fd, path)
    else:
        make_folders(root_fd, os.path.dirname(path))
        os.close(open_in_root(root_fd, path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o644))
    return open_in_root(root_fd, path, os.O_PATH)


def _stack(folders: Sequence[Path]) -> View:
    with contextlib.ExitStack() as stack:
        fds = []
        for folder in folders:
            fds.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        if len(fds) > 1:  # overlayfs wants two layers where nothing can be written
            lower = ":".join(f"/proc/self/fd/{fd}" for fd in fds)
            # The mount hides what is there in this namespace only.
            _mount("overlay", f"/proc/self/fd/{fds[0]}", 0, kind="overlay", options=f"lowerdir={lower}")
        root_fd = os.open(folders[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return View(root_fd, _namespace())
        except BaseException:  # cancelled, too: undo, and pass it on
            os.close(root_fd)
            raise


def _mount(source: str, target: str, flags: int, *, kind: str = "none", options: str = "") -> None:
    done = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None)
    if done != 0:
        raise _last_error(f"mount {source}")


def _last_error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
