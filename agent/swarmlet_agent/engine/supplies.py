"""Files that containers are supplied with: secrets and configs of the cluster, never on a disk of this host.

Each container with such files has a tmpfs of its own on the host, `<run>/supplies/<container id>`, whose files are
bound into it one by one. The tmpfs is made read-only as its last step: one that is read-only is whole. It outlives the
agent, and goes when the container has ended, or is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from swarmlet.errors import Internal, Unavailable
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.decide.selinux import with_option
from swarmlet_agent.engine.container import Container, SuppliedFile
from swarmlet_agent.runtime import linux
from swarmlet_agent.runtime.types import MountPlan

_MS_NOSUID, _MS_NODEV = 2, 4
_FLAGS = _MS_NOSUID | _MS_NODEV
_PAGE = 4096


class Supplies:
    """One per engine. Calls for one container must not overlap; the engine sees to that."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "supplies"

    def place(self, container_id: str) -> Path:
        return self._folder / container_id

    async def fill(self, record: Container, contents: Sequence[bytes], label: str = "") -> None:
        """Make them so: contents in the order of `record.supplied`. What is whole already stays as it is. Internal.

        label: of SELinux.
        """
        place = self.place(record.id)
        try:
            await asyncio.to_thread(_fill, place, record.supplied, contents, record.remap, label)
        except OSError as err:
            await self.clear(record.id)
            raise Internal(f"secrets and configs of container {record.short_id}: {err.strerror or err}") from err

    async def check(self, record: Container) -> None:
        """Unavailable if the container needs files that are not here."""
        if record.supplied and not await asyncio.to_thread(_is_whole, self.place(record.id)):
            raise Unavailable(
                f"container {record.short_id} needs secrets or configs of the cluster, which are not on this host: "
                "a new task of its service gets them"
            )

    async def clear(self, container_id: str) -> None:
        """Nothing there is fine. Internal if it cannot be unmounted."""
        place = self.place(container_id)
        try:
            await asyncio.to_thread(_clear, place)
        except OSError as err:
            raise Internal(f"{place} cannot be taken away: {err.strerror or err}") from err


def mounts_of(record: Container, place: Path) -> list[MountPlan]:
    """As the runtime is to mount them."""
    options = ("bind", "private", "ro", "nosuid", "nodev")
    return [
        MountPlan(file.target, str(place / str(number)), "bind", options)
        for number, file in enumerate(record.supplied)
    ]


def _fill(
    place: Path, files: Sequence[SuppliedFile], contents: Sequence[bytes], remap: Remap | None, label: str
) -> None:
    if _is_whole(place):
        return
    _clear(place)
    place.parent.mkdir(exist_ok=True, mode=0o711)
    place.mkdir(mode=0o700)
    owner = (0, 0) if remap is None else remap.root
    pages = sum(-(-len(content) // _PAGE) + 1 for content in contents) + 8
    options = f"size={pages * _PAGE},nr_inodes={len(files) + 8},mode=700,uid={owner[0]},gid={owner[1]}"
    _mount(place, with_option(options, label))
    for number, (file, content) in enumerate(zip(files, contents, strict=True)):
        uid, gid = (file.uid, file.gid) if remap is None else remap.on_host(file.uid, file.gid)
        handle = os.open(place / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as output:
            output.write(content)
            os.fchown(output.fileno(), uid, gid)
            os.fchmod(output.fileno(), file.mode & 0o7777)
    linux.mount("", str(place), "", linux.MS_REMOUNT | linux.MS_RDONLY | _FLAGS)


def _mount(place: Path, options: str) -> None:
    """Where the kernel can (Linux 6.4), without a way to the swap."""
    try:
        linux.mount("tmpfs", str(place), "tmpfs", _FLAGS, f"{options},noswap")
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        linux.mount("tmpfs", str(place), "tmpfs", _FLAGS, options)


def _is_whole(place: Path) -> bool:
    try:
        return os.path.ismount(place) and bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        return False


def _clear(place: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        while os.path.ismount(place):
            linux.umount(str(place), linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        place.rmdir()
