"""What the engine's parts share: the collaborators, the units, writing to the journal, owned tasks.

A unit is one container in memory. Its lock serialises what is done to it; different units do not wait for
each other. Whoever changes a unit's record holds its lock and goes through `save`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from swarmlet.errors import NotFound, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.decide.links import meant_by, parent_of
from swarmlet_agent.decide.names import resolve
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.decide.remap import MappedIds, Remap
from swarmlet_agent.decide.selinux import NO_LABELS, Labels, Policy
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.engine.ports import Images, Networks, Runtime, Volumes
from swarmlet_agent.engine.streams import PendingStreams
from swarmlet_agent.engine.supplies import Supplies
from swarmlet_agent.engine.waiters import LateResults, Waiters
from swarmlet_agent.images.rootfs import IMAGE_MARK
from swarmlet_agent.journal import Journal
from swarmlet_agent.runtime.security import shown_profile

log = get_logger(__name__)
Result = TypeVar("Result")

TABLE = "containers"
#: How long `close` waits for operations under way, and then for exits being handled.
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """data_dir outlives a reboot, run_dir need not. cgroup_parent is the group all containers lie in."""

    data_dir: Path
    run_dir: Path
    cgroup_parent: str = "/swarmlet"
    cpus: int = 1

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """What builds mount: caches, and files of the context."""
        return self.data_dir / "build-caches", self.data_dir / "images" / "tmp"

    def container_dir(self, ident: str) -> Path:
        return self.data_dir / "containers" / ident

    def marker(self, ident: str) -> Path:
        """Exists while the container may have kernel objects (mounts, namespaces, cgroup, conmon)."""
        return self.run_dir / "engine" / ident


@dataclass(frozen=True, slots=True)
class HostTraits:
    """runtime_name and cgroupns_mode: what a container gets that asks for none, and what inspect shows then.

    runtimes: names it may ask for.
    """

    runtime_name: str = "runc"
    runtimes: tuple[str, ...] = ("runc",)
    cgroupns_mode: str = "host"
    apparmor: bool = False
    apparmor_profile: str = ""
    #: For containers that do not ask for the host's user namespace.
    remap: Remap | None = None
    #: What the host's policy says of containers; None: they have no labels of SELinux.
    selinux: Policy | None = None


class Unit:
    """One container and what is going on with it."""

    __slots__ = (
        "again", "delay_s", "dirty", "health", "id", "keep", "lock", "monitor", "pending", "probe", "record",
        "removing", "waiters",
    )  # fmt: skip

    def __init__(self, record: Container) -> None:
        self.id = record.id
        self.record = record
        self.lock = asyncio.Lock()
        self.waiters = Waiters()
        #: Clients that attached before it runs.
        self.pending: list[PendingStreams] = []
        #: Waits for the end of the run; sleeps before the next one; probes its health.
        self.monitor: asyncio.Task[None] | None = None
        self.again: asyncio.Task[None] | None = None
        self.health: asyncio.Task[None] | None = None
        #: Set when a probe should not wait any longer (the container has just started).
        self.probe: asyncio.Event | None = None
        #: The delay before the present run, if the restart policy started it.
        self.delay_s = 0.0
        #: Kernel objects may exist.
        self.dirty = False
        #: A removal is under way.
        self.removing = False
        #: A user's restart is under way: an exit now neither removes nor restarts it.
        self.keep = False


class Core:
    """Shared by the parts of Engine, which owns it."""

    def __init__(
        self,
        images: Images,
        runtime: Runtime,
        networks: Networks,
        volumes: Volumes,
        journal: Journal,
        settings: Settings,
        *,
        events: EventBus | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.images = images
        self.runtime = runtime
        self.networks = networks
        self.volumes = volumes
        self.journal = journal
        self.settings = settings
        self.supplies = Supplies(settings.run_dir)
        self.traits = HostTraits()
        self.events = events or EventBus()
        self.now = now
        self.units: dict[str, Unit] = {}
        #: name -> id; a name is taken before its container exists and given back if that fails.
        self.names: dict[str, str] = {}
        self.late_results = LateResults()
        self.closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Those of them that a client waits for.
        self._operations: set[asyncio.Task[Any]] = set()
        #: Those that only watch, and may be cut anywhere.
        self._idle: set[asyncio.Task[Any]] = set()

    def find(self, ref: str) -> Unit:
        """By id, name (with or without slash), id prefix or "parent/alias". NotFound, InvalidArgument if ambiguous."""
        parent, alias = parent_of(ref)
        if parent in self.names and (linking := self.units.get(self.names[parent])) is not None:
            # A link's target may have gone: then the name is nobody's.
            name = meant_by(linking.record.host.links, alias)
            unit = self.units.get(self.names.get(name, ""))
        else:
            unit = self.units.get(resolve(ref, self.units, self.names))
        if unit is None:  # its name is taken, but it is still being made
            raise NotFound("container", ref)
        return unit

    def apparmor_profile(self, ref: str) -> str:
        """The one that a container has, or will have; "" on a host without AppArmor."""
        return shown_profile(self.find(ref).record.host, self.traits.apparmor, self.traits.apparmor_profile)

    def add(self, record: Container) -> Unit:
        unit = Unit(record)
        self.units[record.id] = unit
        self.names[record.name] = record.id
        return unit

    def forget(self, unit: Unit) -> None:
        self.units.pop(unit.id, None)
        if self.names.get(unit.record.name) == unit.id:
            del self.names[unit.record.name]

    async def save(self, unit: Unit, record: Container) -> None:
        """On disk first, then visible."""
        await self.journal.put(TABLE, record.id, encode(record))
        unit.record = record

    def emit(self, record: Container, action: str, **attributes: str) -> None:
        """A container event: labels first, so that none of them hides what Docker itself reports."""
        self.events.publish(
            "container",
            action,
            record.id,
            {**record.request.labels, "image": record.image_ref, "name": record.name, **attributes},
        )

    async def ids_of(self, record: Container) -> MappedIds | None:
        """The user namespace a container lives in; None: the host's."""
        if record.remap is None:
            return None
        return MappedIds(await self.runtime.user_namespace(record.remap), record.remap)

    def labels_of(self, record: Container) -> Labels:
        """Those that it has now: none where SELinux was switched off since it was made."""
        return NO_LABELS if record.selinux is None or self.traits.selinux is None else record.selinux

    async def mount_image(self, record: Container, point: MountPoint) -> Path:
        """Where an image that a container has mounted is; it goes with the container's own root."""
        place = hashlib.sha256(point.destination.encode()).hexdigest()[:16]
        ids = await self.ids_of(record)
        label = self.labels_of(record).mount
        return await self.images.ensure_rootfs(f"{record.id}{IMAGE_MARK}{place}", point.name, ids, label)

    async def root_of(self, record: Container) -> Path:
        """Its root, mounted with the ids it has on the host."""
        ids, label = await self.ids_of(record), self.labels_of(record).mount
        return await self.images.ensure_rootfs(record.id, record.image_id, ids, label)

    def mark(self, unit: Unit) -> None:
        """From here on kernel objects may exist."""
        self.settings.marker(unit.id).touch()
        unit.dirty = True

    def unmark(self, unit: Unit) -> None:
        self.settings.marker(unit.id).unlink(missing_ok=True)
        unit.dirty = False

    def spawn(self, work: Coroutine[Any, Any, Result], name: str, *, idle: bool = False) -> asyncio.Task[Result]:
        """A task that close() ends, without waiting if it is `idle`; its failure, if no one awaits it, is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        if idle:
            self._idle.add(task)
            task.add_done_callback(self._idle.discard)
        task.add_done_callback(self._done)
        return task

    async def run(self, work: Coroutine[Any, Any, Result], name: str) -> Result:
        """Carry an operation through even if the client that asked for it goes away."""
        task = self.spawn(work, name)
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, SwarmletError):
            log.error("engine task failed", task=task.get_name(), error=repr(error))

    async def close(self) -> None:
        """Let what clients asked for finish for a while, then cancel what only waits (monitors, timers, probes).

        What still is under way after CLOSE_TIMEOUT_S is cut; the next start() repairs it.
        """
        self.closing = True
        self.events.close()
        for unit in self.units.values():
            _cancel(unit.health)
            for pending in unit.pending:
                pending.end()
        # Monitors go on meanwhile: a stop or kill ends when they have seen the exit.
        await _finish(self._operations)
        for task in tuple(self._idle):
            task.cancel()
        for unit in self.units.values():
            # Who holds the lock is in the middle of handling an exit, which is better finished.
            if not unit.lock.locked():
                _cancel(unit.again)
                _cancel(unit.monitor)
        await _finish(self._tasks)
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


async def _finish(tasks: set[asyncio.Task[Any]]) -> None:
    """Until the set is empty, or its time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            while tasks:
                await asyncio.wait(tuple(tasks))


def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()


def encode(record: Container) -> bytes:
    return msgspec.msgpack.encode(record)


_decoder = msgspec.msgpack.Decoder(Container)


def decode(data: bytes) -> Container:
    """Of a journal entry; msgspec.DecodeError if it is none."""
    return _decoder.decode(data)
