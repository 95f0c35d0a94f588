"""Named volumes of this node: folders under the data folder, their records in the journal.

    volumes/<name>/_data      what containers see
    volumes/<name>/.filling   there while an image's files are being copied in: half a copy is begun again
    volumes/.removed-<…>      a removed volume whose files are still being deleted

User data outranks records: a folder without a record (a lost journal) becomes a volume again, it is never deleted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Conflict, InvalidArgument, NotFound
from swarmlet.log import get_logger
from swarmlet.model.common import Driver
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.journal import Journal, Write
from swarmlet_agent.threads import own_thread
from swarmlet_agent.volumes import copying, mounting, rules
from swarmlet_agent.volumes.parts import open_part
from swarmlet_agent.volumes.rules import ANONYMOUS_LABEL, DRIVER, Volume

log = get_logger(__name__)
T = TypeVar("T")

TABLE = "volumes"
_REMOVED = ".removed-"
_FILLING = ".filling"

#: (action, volume name, attributes), as Docker's volume events.
OnEvent = Callable[[str, str, dict[str, str]], None]


def _ignore(action: str, name: str, attributes: dict[str, str]) -> None:
    return None


class VolumeStore:
    """The volumes of one node. `start` before anything else."""

    def __init__(
        self, data_dir: Path, journal: Journal, *, owner: tuple[int, int] = (0, 0), on_event: OnEvent = _ignore
    ) -> None:
        """owner: uid and gid of new volumes."""
        self._folder = data_dir / "volumes"
        self._journal = journal
        self._volumes: dict[str, Volume] = {}
        # One per name, for as long as someone holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._owner = owner
        self.on_event = on_event

    async def start(self) -> None:
        """Read the records, finish removals that were cut off, take in folders without a record. OSError."""
        self._volumes = {name: msgspec.msgpack.decode(data, type=Volume) for name, data in self._journal.items(TABLE)}
        found = await asyncio.to_thread(self._sweep)
        for name in found - self._volumes.keys():
            log.warning("a volume's folder has no record: taken in", volume=name)
            await self._save(Volume(name=name, created_at=time.time_ns()))

    async def close(self) -> None:
        """Nothing is held; volumes of running containers stay mounted."""

    async def teardown(self) -> None:
        """Unmount every volume; for `down`. Internal if one is in use."""
        for volume in self._volumes.values():
            if volume.options:
                await self._apart(volume, partial(mounting.ensure_unmounted, self.path(volume.name)))

    def get(self, name: str) -> Volume:
        """NotFound in dockerd's words."""
        if (volume := self._volumes.get(name)) is None:
            raise NotFound("volume", name, f"get {name}: no such volume")
        return volume

    def path(self, name: str) -> Path:
        """The host folder of a volume (Mountpoint)."""
        return self._folder / name / "_data"

    def select(self, filters: Filters) -> list[Volume]:
        """Volumes by name; filters dangling, driver, label, name. InvalidArgument for others."""
        filters.check("dangling", "driver", "label", "name")
        dangling = filters.flag("dangling")
        return [
            volume
            for name, volume in sorted(self._volumes.items())
            if (dangling is None or dangling == (not volume.users))
            and filters.matches("driver", DRIVER)
            and filters.matches_labels(volume.labels)
            and filters.matches_pattern("name", name)
        ]

    async def create(
        self,
        name: str,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """A volume; one that exists is given back as it is. "" for a name of its own.

        InvalidArgument for a bad name or option, NotFound for an unknown driver.
        """
        if not name:
            name = new_hex_id()
            labels = {**(labels or {}), ANONYMOUS_LABEL: ""}
        rules.check_name(name)
        rules.check_driver(name, driver)
        async with self._lock(name):
            if (known := self._volumes.get(name)) is not None:
                return known
            rules.check_options(name, options or {})
            volume = Volume(
                name=name, created_at=time.time_ns(), options=dict(options or {}), labels=dict(labels or {})
            )
            # The record first: should we die here, the folder is made when it is needed.
            await self._save(volume)
            await asyncio.to_thread(self._make_folder, name)
        self.on_event("create", name, {"driver": DRIVER})
        return volume

    async def ensure(self, name: str, driver: Driver | None, labels: dict[str, str]) -> Path:
        """See the engine's Volumes protocol. A volume with options is mounted by this."""
        given = driver or Driver()
        await self.create(name, given.name, given.options, labels)
        async with self._lock(name):
            volume = self.get(name)
            await self._apart(volume, partial(self._make_ready, volume))
        return self.path(name)

    async def create_anonymous(self, labels: dict[str, str]) -> tuple[str, Path]:
        """See the engine's Volumes protocol."""
        volume = await self.create("", "", None, labels)
        return volume.name, self.path(volume.name)

    async def copy_up(self, name: str, image_folder: Path, subpath: str = "") -> None:
        """See the engine's Volumes protocol. image_folder lies inside the container's root, resolved by the caller."""
        async with self._lock(name):
            await self._apart(self.get(name), partial(self._fill, name, image_folder, subpath))

    async def use(self, name: str, container_id: str) -> None:
        """See the engine's Volumes protocol. NotFound."""
        async with self._lock(name):
            volume = self.get(name)
            if container_id not in volume.users:
                await self._save(msgspec.structs.replace(volume, users=(*volume.users, container_id)))

    async def release(self, container_id: str, *, remove_anonymous: bool) -> None:
        """See the engine's Volumes protocol. Volumes with options are unmounted with their last user."""
        for name in [volume.name for volume in self._volumes.values() if container_id in volume.users]:
            async with self._lock(name):
                volume = self.get(name)
                users = tuple(user for user in volume.users if user != container_id)
                volume = msgspec.structs.replace(volume, users=users)
                await self._save(volume)
                if users:
                    continue
                if volume.options:
                    await self._apart(volume, partial(mounting.ensure_unmounted, self.path(name)))
                if remove_anonymous and volume.is_anonymous:
                    await self._delete(name)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """NotFound (unless forced); Conflict while a container refers to it."""
        async with self._lock(name):
            if name not in self._volumes and force:
                return
            volume = self.get(name)
            if volume.users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(volume.users)}]")
            await self._delete(name)

    async def prune(self, filters: Filters, *, everything: bool = False) -> tuple[list[str], int]:
        """Remove volumes without users: (names, bytes freed). Only anonymous ones unless `everything` or all=true.

        Those with options stay, as with dockerd: what they mount is somewhere else. Filters: all, label, label!.
        """
        filters.check("all", "label", "label!")
        every = everything or bool(filters.flag("all"))
        removed, freed = [], 0
        for volume in sorted(self._volumes.values(), key=lambda known: known.name):
            if volume.users or volume.options or not (every or volume.is_anonymous):
                continue
            if not filters.matches_labels(volume.labels) or _has_any(volume.labels, filters.get("label!")):
                continue
            async with self._lock(volume.name):
                now = self._volumes.get(volume.name)
                if now is None or now.users:  # taken while we deleted others
                    continue
                size = await self.size(volume.name)
                await self._delete(volume.name)
            removed.append(volume.name)
            freed += size
        self.on_event("prune", "", {"reclaimed": str(freed)})
        return removed, freed

    async def size(self, name: str) -> int:
        """Bytes its files occupy; 0 for one that has gone meanwhile."""
        volume = self._volumes.get(name)
        return 0 if volume is None else await self._apart(volume, partial(copying.size_of, self.path(name)))

    async def _apart(self, volume: Volume, work: Callable[[], T]) -> T:
        """Blocking work on a volume. A server that is silent holds its thread for minutes (nfs(5), timeo, retrans):
        that must be none of the loop's few, nor one that the agent's end waits for."""
        if volume.options:
            return await own_thread(work, f"volume {volume.name}", daemon=True)
        return await asyncio.to_thread(work)

    def _lock(self, name: str) -> asyncio.Lock:
        if (lock := self._locks.get(name)) is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _save(self, volume: Volume) -> None:
        await self._journal.put(TABLE, volume.name, msgspec.msgpack.encode(volume))
        self._volumes[volume.name] = volume

    async def _delete(self, name: str) -> None:
        """Out of the way by one rename, then out of the journal, then deleted: cut anywhere, `start` finishes it."""
        volume = self._volumes[name]
        if volume.options:
            await self._apart(volume, partial(mounting.ensure_unmounted, self.path(name)))
        aside = self._folder / f"{_REMOVED}{new_hex_id()[:16]}"
        if (self._folder / name).exists():
            (self._folder / name).rename(aside)
        await self._journal.write(Write(TABLE, name, None))
        del self._volumes[name]
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=False, onerror=_missing_is_fine)
        self.on_event("destroy", name, {"driver": DRIVER})

    def _make_folder(self, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o701)
        (self._folder / name).mkdir(exist_ok=True)
        try:
            self.path(name).mkdir()
        except FileExistsError:
            return
        os.chown(self.path(name), *self._owner)

    def _make_ready(self, volume: Volume) -> None:
        self._make_folder(volume.name)
        if volume.options:
            mounting.ensure_mounted(volume.name, self.path(volume.name), rules.mount_of(volume.options))

    def _fill(self, name: str, image_folder: Path, subpath: str) -> None:
        whole, marker = self.path(name), self._folder / name / _FILLING
        if marker.exists():
            with suppress(InvalidArgument), _part(whole, marker.read_text()) as cut_off:  # else it is gone
                _empty(cut_off)
            marker.unlink()
        if image_folder.is_symlink() or not image_folder.is_dir():
            return
        with _part(whole, subpath) as target:
            if os.listdir(target):
                return
            marker.write_text(subpath)
            copying.copy_tree(image_folder, target)
            marker.unlink()

    def _sweep(self) -> set[str]:
        """Delete what was being removed; the names of all other folders."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o701)
        names = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith(_REMOVED):
                    shutil.rmtree(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    names.add(entry.name)
        return names


@contextmanager
def _part(whole: Path, subpath: str) -> Iterator[str]:
    """A folder in the volume, held while the block runs: its users may rename what is in it. InvalidArgument."""
    if not subpath:
        yield str(whole)
        return
    descriptor = open_part(str(whole), subpath, os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/."  # with the dot it is the folder, not the link to it
    finally:
        os.close(descriptor)


def _empty(folder: str) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _has_any(labels: Mapping[str, str], unwanted: tuple[str, ...]) -> bool:
    for item in unwanted:
        name, equals, value = item.partition("=")
        if name in labels and (not equals or labels[name] == value):
            return True
    return False


def _missing_is_fine(function: object, path: str, info: tuple[object, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
