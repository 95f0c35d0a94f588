"""What the engine's parts share: the collaborators, the units, writing to the journal, owned tasks.

A unit is one container in memory. Its lock serialises what is done to it; different units do not wait for
each other. Whoever changes a unit's record holds its lock and goes through `save`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from swarmlet.errors import NotFound, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.decide.names import resolve
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.engine.ports import Images, Networks, Runtime, Volumes
from swarmlet_agent.engine.streams import PendingStreams
from swarmlet_agent.engine.waiters import Waiters
from swarmlet_agent.journal import Journal

log = get_logger(__name__)
Result = TypeVar("Result")

TABLE = "containers"
#: How long `close` waits for operations under way before it lets go of them; start() repairs what is cut.
CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """data_dir outlives a reboot, run_dir need not. cgroup_parent is the group all containers lie in."""

    data_dir: Path
    run_dir: Path
    cgroup_parent: str = "/swarmlet"
    cpus: int = 1
    #: Docker's name of what is chosen with runtime "": what inspect shows.
    runtime_name: str = "runc"

    def container_dir(self, ident: str) -> Path:
        return self.data_dir / "containers" / ident

    def marker(self, ident: str) -> Path:
        """Exists while the container may have kernel objects (mounts, namespaces, cgroup, conmon)."""
        return self.run_dir / "engine" / ident


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
    """Shared by Lifecycle, Creator, Remover, Execs and HealthChecks; owned by Engine."""

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
        self.events = events or EventBus()
        self.now = now
        self.units: dict[str, Unit] = {}
        #: name -> id; a name is taken before its container exists and given back if that fails.
        self.names: dict[str, str] = {}
        self.closing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def find(self, ref: str) -> Unit:
        """By id, name (with or without slash) or id prefix. NotFound, InvalidArgument if ambiguous."""
        unit = self.units.get(resolve(ref, self.units, self.names))
        if unit is None:  # its name is taken, but it is still being made
            raise NotFound("container", ref)
        return unit

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

    def mark(self, unit: Unit) -> None:
        """From here on kernel objects may exist."""
        self.settings.marker(unit.id).touch()
        unit.dirty = True

    def unmark(self, unit: Unit) -> None:
        self.settings.marker(unit.id).unlink(missing_ok=True)
        unit.dirty = False

    def spawn(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """A task that close() ends; its failure, if no one awaits it, is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def run(self, work: Coroutine[Any, Any, Result], name: str) -> Result:
        """Carry an operation through even if the client that asked for it goes away."""
        return await asyncio.shield(self.spawn(work, name))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, SwarmletError):
            log.error("engine task failed", task=task.get_name(), error=repr(error))

    async def close(self) -> None:
        """Cancel what only waits (monitors, timers, probes), let operations finish for a while, then cut them."""
        self.closing = True
        for unit in self.units.values():
            # Who holds the lock is in the middle of an operation, which is better finished.
            waiting = (unit.health,) if unit.lock.locked() else (unit.health, unit.again, unit.monitor)
            for task in waiting:
                if task is not None:
                    task.cancel()
            for pending in unit.pending:
                pending.end()
        self.events.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._drain()
        for task in self._tasks:
            task.cancel()
        await self._drain()

    async def _drain(self) -> None:
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


def encode(record: Container) -> bytes:
    return msgspec.msgpack.encode(record)


_decoder = msgspec.msgpack.Decoder(Container)


def decode(data: bytes) -> Container:
    """Of a journal entry; msgspec.DecodeError if it is none."""
    return _decoder.decode(data)
