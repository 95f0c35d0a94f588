"""Containers' root file systems: overlayfs of an image's layers and the container's own changes.

`<data>/containers-rootfs/<container id>/{upper,work,merged,layers}`; `layers` names the chain ids, highest first, so
that a container can be mounted again (after a reboot, or when its image has been removed by force).

Layers are given to the kernel as /proc/self/fd/N: 127 long paths would not fit into the page mount(2) takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from swarmlet.errors import Internal, InvalidArgument, NotFound
from swarmlet_agent.decide.remap import MappedIds
from swarmlet_agent.decide.selinux import with_option
from swarmlet_agent.images.unpack import remove_tree
from swarmlet_agent.runtime import linux

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DOOMED = ".removed-"
#: Between a container's id and the rest of the name, in roots that it has mounted beside its own.
IMAGE_MARK = ".image."
#: Where the layers of a mapped root are attached while it is mounted, on kernels that want that.
_FOR_A_MOMENT = "layers.mapped"
#: Beneath every container's layers, with what dockerd puts into each container: programs look for /.dockerenv to learn
#: that they run in one, and read /etc/mtab. What an image has of it is the image's. Images that are mounted are over
#: nothing but _EMPTY.
_GROUND, _EMPTY = ".ground", ".empty"
_GROUND_FILES = (".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class RootStore:
    """Calls for one container must not overlap; the engine sees to that."""

    def __init__(self, folder: Path, diff_of: Callable[[str], Path], label: str = "") -> None:
        """label: of SELinux, for roots whose user names none."""
        self._folder = folder
        self._label = label
        self._diff_of = diff_of
        self._layers: dict[str, tuple[str, ...]] = {}
        self._leaving: set[str] = set()

    def recover(self) -> None:
        """At start, blocking: finish removals and learn which layers containers use."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        (self._folder / _EMPTY).mkdir(exist_ok=True)
        _lay_ground(self._folder / _GROUND)
        for entry in self._folder.iterdir():
            if entry.name.startswith(_DOOMED):
                remove_tree(entry)
            elif not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # made, but nothing was mounted yet
                    self._layers[entry.name] = tuple((entry / "layers").read_text().split())

    def layers_in_use(self) -> frozenset[str]:
        return frozenset(chain for chains in self._layers.values() for chain in chains)

    def knows(self, container_id: str) -> bool:
        return container_id in self._layers

    async def ensure(
        self, container_id: str, layers: Sequence[str], ids: MappedIds | None = None, label: str | None = None
    ) -> Path:
        """Mounted root of a container over these layers (lowest first). Those of its first mount win.

        ids: on disk everything has the container's ids; the mounted root shows them as the host's. label: all files in
        it are shown with this label of SELinux; on disk they keep their own.
        """
        folder = self._place(container_id)
        chains = self._layers.setdefault(container_id, tuple(reversed(layers)))
        try:
            diffs = [self._diff_of(chain) for chain in chains]
            return await asyncio.to_thread(
                _ensure, folder, chains, diffs, ids, self._label if label is None else label
            )
        except BaseException:  # cancelled, too: undo, and pass it on
            if not (folder / "layers").exists():
                self._layers.pop(container_id, None)
            raise

    def reserve(self, container_id: str, layers: Sequence[str]) -> None:
        """Keep these layers (lowest first) for a container that was never mounted; nothing changes for one that was.

        A few small files, written at once: between the look at who uses an image and its removal nobody may get in.
        """
        folder = self._place(container_id)
        if container_id in self._layers or container_id in self._leaving:
            return
        chains = tuple(reversed(layers))
        _prepare(folder, chains, [self._diff_of(chain) for chain in chains])
        self._layers[container_id] = chains

    async def unmount(self, container_id: str) -> None:
        """With the images it has mounted."""
        for name in (*self._beside(container_id), container_id):
            await asyncio.to_thread(_unmount, self._place(name) / "merged")

    async def remove(self, container_id: str) -> tuple[str, ...]:
        """Returns the layers it used; those of images it had mounted come behind."""
        used: tuple[str, ...] = ()
        for name in (container_id, *self._beside(container_id)):
            self._leaving.add(name)
            try:
                await asyncio.to_thread(_remove, self._place(name), self._folder)
            finally:
                self._leaving.discard(name)
            used += self._layers.pop(name, ())
        return used

    def upper(self, container_id: str) -> Path:
        """Where the container's own changes are: of use while it is unmounted, or to look at."""
        return self._place(container_id) / "upper"

    def lower(self, container_id: str) -> tuple[str, ...]:
        """The layers it was mounted over, highest first. NotFound if it never was."""
        if container_id not in self._layers:
            raise NotFound("container", container_id)
        return self._layers[container_id]

    def names(self) -> list[str]:
        """Of all roots there are."""
        return list(self._layers)

    async def rebase(self, container_id: str, layer: str) -> None:
        """Its changes have become this layer ("" = they were none): it begins anew on top of it. Not while mounted."""
        folder = self._place(container_id)
        chains = ((layer,) if layer else ()) + self._layers[container_id]
        await asyncio.to_thread(_begin_anew, folder, chains, [self._diff_of(chain) for chain in chains])
        self._layers[container_id] = chains

    async def size(self, container_id: str) -> int:
        folder = self._place(container_id)
        if container_id not in self._layers:
            raise NotFound("container", container_id)
        return await asyncio.to_thread(tree_size, folder / "upper")

    def _beside(self, container_id: str) -> list[str]:
        return [name for name in self._layers if name.startswith(f"{container_id}{IMAGE_MARK}")]

    def _place(self, container_id: str) -> Path:
        if _ID.fullmatch(container_id) is None:
            raise InvalidArgument(f"invalid container id {container_id!r}")
        return self._folder / container_id


def _lay_ground(ground: Path) -> None:
    """Only what is missing: containers may be mounted over it."""
    for folder in (ground, ground / "etc"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    for name in _GROUND_FILES:
        (ground / name).touch()
        (ground / name).chmod(0o755)
    with contextlib.suppress(FileExistsError):
        (ground / "etc/mtab").symlink_to("/proc/mounts")


def _ensure(
    folder: Path, chains: Sequence[str], diffs: Sequence[Path], ids: MappedIds | None, label: str
) -> Path:
    merged = folder / "merged"
    if os.path.ismount(merged):
        return merged
    _prepare(folder, chains, diffs)
    missing = next((diff for diff in diffs if not diff.is_dir()), None)
    if missing is not None:
        raise Internal(f"container {folder.name} cannot be mounted: layer {missing.parent.name} is missing on disk")
    lower = [*diffs, folder.parent / (_EMPTY if IMAGE_MARK in folder.name else _GROUND)]
    with contextlib.ExitStack() as stack:
        if ids is None:
            _mount_overlay([_handle(path, stack) for path in lower], _handle(folder, stack), folder, label)
            return merged
        _mount_mapped(lower, folder, ids, label, attached=not floating_layers())
    return merged


def floating_layers() -> bool:
    """Whether overlayfs takes layers that are mounted nowhere (Linux 6.15)."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (6, 15)


def _mount_mapped(lower: Sequence[Path], folder: Path, ids: MappedIds, label: str, *, attached: bool) -> None:
    """attached: the layers have to be mounted somewhere for a moment."""
    _open_to(folder, ids)
    _let_go(folder)
    with contextlib.ExitStack() as stack:
        namespace = os.open(ids.namespace, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, namespace)
        try:
            clones = []
            for path in (*lower, folder):
                clones.append(linux.idmapped_clone(path, namespace))
                stack.callback(os.close, clones[-1])
            if attached:
                stack.callback(_let_go, folder)
                for number, clone in enumerate(clones):
                    place = folder / _FOR_A_MOMENT / str(number)
                    place.mkdir(parents=True, exist_ok=True)
                    linux.attach_mount(clone, place)
        except OSError as err:
            raise Internal(
                f"container {folder.name} cannot be mounted with mapped ids ({err}): userns_remap needs Linux 5.19 "
                "and a data folder on a file system such as ext4, xfs or btrfs"
            ) from err
        handles = [f"/proc/self/fd/{clone}" for clone in clones]
        # Overlayfs works in `work` as whoever mounts it, who must have ids there.
        with linux.acting_as(ids.remap.root):
            _mount_overlay(handles[:-1], handles[-1], folder, label)


def _let_go(folder: Path) -> None:
    """Of layers that were attached for a mount."""
    places = folder / _FOR_A_MOMENT
    if places.is_dir():
        for place in places.iterdir():
            _unmount(place)
            place.rmdir()
        places.rmdir()


def _handle(path: Path, stack: contextlib.ExitStack) -> str:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def _open_to(folder: Path, ids: MappedIds) -> None:
    """The container's root reaches its files by their path on the host; nobody else below root does."""
    os.chown(folder, -1, ids.remap.root[1])
    os.chmod(folder, 0o710)


def _prepare(folder: Path, chains: Sequence[str], diffs: Sequence[Path]) -> None:
    """The container's folder, complete but not mounted."""
    if (folder / "layers").exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o710)  # programs in it may be setuid: not for the host's users
    for part in ("upper", "work", "merged"):
        (folder / part).mkdir(exist_ok=True)
    if diffs:
        _like(diffs[0], folder / "upper")
    # Written last and in one step: a folder with this file is complete.
    fresh = folder / "layers.new"
    fresh.write_text("\n".join(chains))
    os.replace(fresh, folder / "layers")


def _begin_anew(folder: Path, chains: Sequence[str], diffs: Sequence[Path]) -> None:
    (folder / "upper").mkdir()
    if diffs:
        _like(diffs[0], folder / "upper")
    fresh = folder / "layers.new"
    fresh.write_text("\n".join(chains))
    os.replace(fresh, folder / "layers")


def _like(source: Path, target: Path) -> None:
    """The root folder's owner and mode show through the topmost layer only."""
    found = os.stat(source)
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, stat.S_IMODE(found.st_mode))


def _mount_overlay(lower: Sequence[str], changes: str, folder: Path, label: str) -> None:
    """lower, and the folder of upper and work, as /proc/self/fd/N."""
    options = f"lowerdir={':'.join(lower)},upperdir={changes}/upper,workdir={changes}/work"
    if os.path.exists("/sys/module/overlay/parameters/index"):
        options += ",index=off"  # an index would tie upper to one set of lower layers, and costs at mount
    for feature in ("redirect_dir", "metacopy"):
        # They leave in upper what only overlayfs understands: it could not become a layer.
        if os.path.exists(f"/sys/module/overlay/parameters/{feature}"):
            options += f",{feature}=off"
    options = with_option(options, label)
    result = _libc.mount(b"overlay", os.fsencode(folder / "merged"), b"overlay", 0, options.encode())
    if result != 0:
        code = ctypes.get_errno()
        raise Internal(f"container {folder.name} cannot be mounted: overlay: {os.strerror(code)}")


def _unmount(merged: Path) -> None:
    """Until nothing is mounted there (a bind of the container's own may lie over it)."""
    for _ in range(16):
        if _libc.umount2(os.fsencode(merged), _UMOUNT_NOFOLLOW) == 0:
            continue
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOENT):
            return
        if code == errno.EBUSY and _libc.umount2(os.fsencode(merged), _UMOUNT_NOFOLLOW | _MNT_DETACH) == 0:
            continue
        raise Internal(f"{merged} cannot be unmounted: {os.strerror(code)}")
    raise Internal(f"{merged} cannot be unmounted: too many mounts lie there")


def _remove(folder: Path, parent: Path) -> None:
    if not folder.exists():
        return
    _unmount(folder / "merged")
    _let_go(folder)
    doomed = parent / f"{_DOOMED}{secrets.token_hex(8)}"
    os.rename(folder, doomed)
    remove_tree(doomed)


def tree_size(folder: Path) -> int:
    """Bytes of all files below, a file with several names once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for entry in _walk(folder):
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode):
            continue
        if found.st_nlink > 1:
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
        total += found.st_size
    return total


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below; what vanishes meanwhile is passed over."""
    waiting = [str(folder)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if is_folder:
                waiting.append(entry.path)
            yield entry
