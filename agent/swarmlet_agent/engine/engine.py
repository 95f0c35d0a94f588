"""The engine of one node: containers and their life, as Docker's daemon would have them.

One object, used by the HTTP routes and the task worker. Every operation finds its container by id, name or
id prefix, is carried through even if its caller goes away, and is on disk before it is answered. Starting
the engine is recovering: there is no other path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Conflict, Internal, InvalidArgument, NameTaken, NotFound, NotModified, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.container import ContainerCreate, EndpointSettings, HostConfig
from swarmlet_agent.decide.kernel import asks_much, drop_foreign, fit_limits
from swarmlet_agent.decide.links import parent_of, parse_link, renamed
from swarmlet_agent.decide.names import check_name
from swarmlet_agent.decide.prune import to_prune
from swarmlet_agent.decide.signals import parse_signal
from swarmlet_agent.decide.update import apply_update
from swarmlet_agent.engine.bringup import Bringup
from swarmlet_agent.engine.container import Container, ExecRecord, ExecRequest, PruneReport, SuppliedFile, WaitResult
from swarmlet_agent.engine.core import TABLE, Core, HostTraits, Settings, Unit, decode
from swarmlet_agent.engine.create import Creator
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.engine.execs import Execs
from swarmlet_agent.engine.health import HealthChecks
from swarmlet_agent.engine.lifecycle import Lifecycle
from swarmlet_agent.engine.plan import wish_of, with_endpoint
from swarmlet_agent.engine.ports import Images, Networks, Runtime, Streams, Volumes
from swarmlet_agent.engine.removal import Removal
from swarmlet_agent.engine.roots import LentRoot, Roots
from swarmlet_agent.engine.rotation import LogRotation
from swarmlet_agent.engine.shipping import LogShipping
from swarmlet_agent.engine.signals import Signals
from swarmlet_agent.engine.streams import PendingStreams
from swarmlet_agent.engine.top import processes
from swarmlet_agent.engine.waiters import Waiter, Waiters
from swarmlet_agent.journal import Journal
from swarmlet_agent.net.types import ContainerView, InterfaceCounters
from swarmlet_agent.runtime.facts import kernel_limits
from swarmlet_agent.runtime.types import Usage

log = get_logger(__name__)
#: How many containers are taken up again at the same time after a start.
ADOPTIONS_AT_ONCE = 16

# Engine has a method called list.
Containers = list[Container]
Warnings = list[str]
Users = list[tuple[str, bool]]


class Engine:
    """`await start()` before anything else, `await close()` at the end; containers live on."""

    def __init__(
        self,
        images: Images,
        runtime: Runtime,
        networks: Networks,
        volumes: Volumes,
        journal: Journal,
        *,
        data_dir: Path,
        run_dir: Path,
        cgroup_parent: str = "/swarmlet",
        cpus: int | None = None,
        events: EventBus | None = None,
        now: Callable[[], int] | None = None,
        random: Random | None = None,
    ) -> None:
        settings = Settings(data_dir, run_dir, cgroup_parent, cpus or len(os.sched_getaffinity(0)))
        extra = {} if now is None else {"now": now}
        core = self._core = Core(images, runtime, networks, volumes, journal, settings, events=events, **extra)
        self._bringup = Bringup(core)
        self._removal = Removal(core, self._bringup)
        self._creator = Creator(core, self._removal, random=random)
        self._shipping = LogShipping(core)
        self._rotation = LogRotation(core)
        self._lifecycle = Lifecycle(
            core, self._bringup, self._removal, HealthChecks(core), self._shipping, self._rotation
        )
        self._signals = Signals(core)
        self._execs = Execs(core)
        self._roots = Roots(core)

    @property
    def events(self) -> EventBus:
        return self._core.events

    # Its own life

    async def start(self, host: HostTraits | None = None) -> None:
        """Take up every container where a previous engine left it, and finish what that one had begun.

        host: known only once the runtime has looked.
        """
        core = self._core
        core.traits = host or HostTraits()
        markers = core.settings.run_dir / "engine"
        folders = core.settings.data_dir / "containers"
        for folder in (markers, folders):
            folder.mkdir(parents=True, exist_ok=True)
        marked = {entry.name for entry in markers.iterdir()}
        for ident, data in core.journal.items(TABLE):
            try:
                unit = core.add(decode(data))
            except msgspec.DecodeError as err:
                log.error("container record cannot be read; the container is left alone", container_id=ident, error=err)
                continue
            unit.dirty = ident in marked
        known = {ident for ident, _ in core.journal.items(TABLE)}
        orphans = (marked | {entry.name for entry in folders.iterdir()}) - known
        limit = asyncio.Semaphore(ADOPTIONS_AT_ONCE)
        await asyncio.gather(
            *(self._recover(limit, self._removal.sweep(ident), ident) for ident in sorted(orphans)),
            *(self._recover(limit, self._lifecycle.adopt(unit), unit.id) for unit in tuple(core.units.values())),
        )
        core.spawn(self._rotation.run(), "log rotation", idle=True)

    async def _recover(self, limit: asyncio.Semaphore, work: Coroutine[Any, Any, None], ident: str) -> None:
        """One container's trouble must not keep the others from being taken up."""
        async with limit:
            try:
                await work
            except (SwarmletError, OSError) as err:
                log.error("container could not be taken up again", container_id=ident, error=str(err))

    async def close(self) -> None:
        """End what the engine itself does; what runs goes on and is taken up by the next start()."""
        await self._core.close()
        self._shipping.close()

    # Looking

    def get(self, ref: str) -> Container:
        """By id, name (with or without slash) or unambiguous id prefix. NotFound "No such container: x"."""
        return self._core.find(ref).record

    def list(self) -> Containers:
        """All containers, the newest first."""
        return sorted(
            (unit.record for unit in self._core.units.values()), key=lambda record: record.created_at, reverse=True
        )

    def users_of(self, image_id: str) -> Users:
        """(container id, whether it runs) of every container made from the image, or with it mounted."""
        return [
            (unit.id, unit.record.is_running)
            for unit in self._core.units.values()
            if unit.record.image_id == image_id
            or any(point.type == "image" and point.name == image_id for point in unit.record.mounts)
        ]

    # Making and removing

    async def create(
        self, name: str, request: ContainerCreate, *, platform: str = "", supplied: Sequence[SuppliedFile] = (),
        shallow: bool = False,
    ) -> tuple[Container, Warnings]:
        """The container (name "" = one is made up) and warnings. Nothing is left of one that could not be made.

        supplied: files whose content comes with `supply`. shallow: read-only binds are so only themselves, not what is
        mounted below them, as clients before API 1.44 know it.
        """
        making = self._creator.create(name, request, platform, supplied, shallow=shallow)
        unit, warnings = await self._core.run(making, "create")
        return unit.record, warnings

    async def supply(self, ref: str, contents: Sequence[bytes]) -> None:
        """What is in its supplied files, in their order; to be said before a start. Nothing changes while it runs."""
        await self._core.run(self._supply(self._core.find(ref), contents), f"supply {ref}")

    async def _supply(self, unit: Unit, contents: Sequence[bytes]) -> None:
        async with unit.lock:
            if not unit.record.is_running and not unit.removing:
                await self._core.supplies.fill(unit.record, contents, self._core.labels_of(unit.record).mount)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        """Conflict if it runs and is not forced, or is being removed already."""
        unit = self._core.find(ref)
        if link:
            await self._core.run(self._unlink(ref), f"unlink {ref}")
            return
        await self._core.run(self._remove(unit, force=force, volumes=volumes), f"remove {ref}")

    async def _remove(self, unit: Unit, *, force: bool, volumes: bool) -> None:
        if unit.removing:
            raise Conflict(f"removal of container {unit.id} is already in progress")
        if unit.record.is_running and not force:
            state = unit.record.state.status
            hint = "stop the container before removing or force remove"
            if state == "paused":
                hint = "unpause and then stop the container before removing or force remove"
            raise Conflict(f'cannot remove container "/{unit.record.name}": container is {state}: {hint}')
        unit.removing = True  # from here on neither a start nor the restart policy may bring it back
        try:
            if unit.record.is_running:
                try:
                    await self._signals.kill(unit, "SIGKILL")
                except Conflict:
                    log.debug("it ended by itself before it was killed", container_id=unit.id)
            async with unit.lock:
                if unit.id in self._core.units:  # else --rm was quicker
                    await self._removal.destroy(unit, volumes=volumes)
        finally:
            unit.removing = False

    async def _unlink(self, ref: str) -> None:
        """ref: "parent/alias". Internal for a name that no link has made: dockerd has no other status for it."""
        parent, alias = parent_of(ref)
        if not parent:
            raise Internal("Conflict, cannot remove the default link name of the container")
        unit = self._core.find(parent)
        async with unit.lock:
            kept = tuple(link for link in unit.record.host.links if parse_link(link)[1] != alias)
            await self._core.save(unit, _with_links(unit.record, kept))

    async def prune(self, filters: Filters) -> PruneReport:
        """Remove all containers that do not run and match (until, label, label!)."""
        filters.check("until", "label", "label!")
        deleted, freed = [], 0
        for record in to_prune(self.list(), filters, now=self._core.now()):
            try:
                size = await self.size(record.id)
                await self.remove(record.id)
            except SwarmletError as err:  # started or removed meanwhile
                log.debug("not pruned", container_id=record.id, error=str(err))
                continue
            deleted.append(record.id)
            freed += size
        self._core.events.publish("container", "prune", "", {"reclaimed": str(freed)})
        return PruneReport(containers_deleted=tuple(deleted), space_reclaimed=freed)

    # Running

    async def start_container(self, ref: str) -> None:
        """NotModified if it runs; StartFailed (126, 127, 128) and others if it cannot be started."""
        await self._core.run(self._lifecycle.start(self._core.find(ref)), f"start {ref}")

    async def stop(self, ref: str, timeout_s: int | None = None, signal: str | None = None) -> None:
        """Stop signal, then SIGKILL after timeout_s (None: the container's own or 10; -1: never). NotModified."""
        await self._core.run(self._signals.stop(self._core.find(ref), timeout_s, signal or ""), f"stop {ref}")

    async def restart(self, ref: str, timeout_s: int | None = None, signal: str | None = None) -> None:
        """Stop it if it runs, and start it; `--rm` and the restart policy keep out of it."""
        await self._core.run(self._restart(self._core.find(ref), timeout_s, signal or ""), f"restart {ref}")

    async def _restart(self, unit: Unit, timeout_s: int | None, signal: str) -> None:
        unit.keep = True
        try:
            with contextlib.suppress(NotModified):  # it does not run, or ended by itself just now
                await self._signals.stop(unit, timeout_s, signal)
            await self._lifecycle.start(unit)
        finally:
            unit.keep = False
        self._core.emit(unit.record, "restart")

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """By name or number. InvalidArgument for no signal, whoever it is for; Conflict if it does not run."""
        parse_signal(signal)
        await self._core.run(self._signals.kill(self._core.find(ref), signal), f"kill {ref}")

    async def pause(self, ref: str) -> None:
        await self._core.run(self._signals.pause(self._core.find(ref)), f"pause {ref}")

    async def unpause(self, ref: str) -> None:
        await self._core.run(self._signals.unpause(self._core.find(ref)), f"unpause {ref}")

    def register_wait(self, ref: str, condition: str = "not-running") -> Waiter:
        """Registered at once: answer the headers, then `await waiter.result()`, then `waiter.close()`."""
        try:
            unit = self._core.find(ref)
        except NotFound:
            late = self._core.late_results.find(ref, self._core.now())
            if late is None:
                raise
            waiter = Waiters().register(condition)
            waiter.resolve(late)
            return waiter
        waiter = unit.waiters.register(condition)
        if waiter.condition == "not-running" and not unit.record.is_running:
            state = unit.record.state
            waiter.resolve(WaitResult(exit_code=state.exit_code, error=state.error))
        return waiter

    async def wait(self, ref: str, condition: str = "not-running") -> WaitResult:
        """Register and wait in one."""
        waiter = self.register_wait(ref, condition)
        try:
            return await waiter.result()
        finally:
            waiter.close()

    async def settle(self, ref: str) -> Container:
        """Once what is being done to it now, such as clearing up after its end, is over; the record then."""
        unit = self._core.find(ref)
        async with unit.lock:
            return unit.record

    # Its streams, and further processes

    async def attach(self, ref: str) -> Streams:
        """Of a running container from now on; of one that does not run, from its next start on. Conflict if paused."""
        unit = self._core.find(ref)
        async with unit.lock:
            state = unit.record.state.status
            if state == "paused":
                raise Conflict(f"container {ref} is paused, unpause the container before attach")
            if state == "restarting":
                raise Conflict(f"container {ref} is restarting, wait until the container is running before attach")
            self._core.emit(unit.record, "attach")
            if state == "running":
                return await self._core.runtime.attach(unit.id, tty=unit.record.request.tty)

            def forget(pending: PendingStreams) -> None:
                if pending in unit.pending:
                    unit.pending.remove(pending)

            pending = PendingStreams(forget)
            unit.pending.append(pending)
            return pending

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        """Its terminal. Conflict if it does not run."""
        unit = self._core.find(ref)
        if not unit.record.has_process:
            raise Conflict(f"container {unit.id} is not running")
        await self._core.runtime.resize(unit.id, rows, columns)
        self._core.emit(unit.record, "resize", height=str(rows), width=str(columns))

    def exec_create(self, ref: str, request: ExecRequest) -> str:
        """The new exec's id. Conflict if the container does not run."""
        return self._execs.create(ref, request)

    async def exec_start(
        self, ident: str, *, detach: bool = False, tty: bool | None = None, console_size: tuple[int, int] | None = None,
    ) -> Streams | None:
        """Its streams, None if detached. tty None: as created. Conflict the second time; StartFailed 126, 127."""
        return await self._execs.start(ident, detach=detach, tty=tty, console_size=console_size)

    def exec_inspect(self, ident: str) -> ExecRecord:
        return self._execs.inspect(ident)

    async def exec_resize(self, ident: str, rows: int, columns: int) -> None:
        await self._execs.resize(ident, rows, columns)

    def exec_ids(self, ref: str) -> tuple[str, ...]:
        """Execs of a container that have not ended."""
        return self._execs.of(self._core.find(ref).id)

    def apparmor_profile(self, ref: str) -> str:
        return self._core.apparmor_profile(ref)

    # Measuring

    async def top(self, ref: str, ps_args: str = "") -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Titles and one row per process. Conflict if it does not run."""
        unit = self._core.find(ref)
        if not unit.record.has_process:
            raise Conflict(f"container {unit.id} is not running")
        self._core.emit(unit.record, "top")
        return await processes(await self._core.runtime.pids(unit.id), ps_args)

    async def usage(self, ref: str) -> tuple[Usage, Sequence[InterfaceCounters]]:
        """What it has used up so far, and its interfaces' counters. Conflict if it does not run."""
        unit = self._core.find(ref)
        if not unit.record.has_process:
            raise Conflict(f"container {unit.id} is not running")
        usage, counters = await asyncio.gather(
            self._core.runtime.usage(unit.id), self._core.networks.counters(unit.id)
        )
        return usage, counters

    async def size(self, ref: str) -> int:
        """Bytes in its own writable layer (inspect's SizeRw); 0 while it has none."""
        ident = self._core.find(ref).id
        try:
            return await self._core.images.rootfs_size(ident)
        except NotFound:  # never started
            return 0

    # Its files

    def lend_root(self, ref: str, verb: str) -> contextlib.AbstractAsyncContextManager[LentRoot]:
        """Its root file system, mounted while the block runs; one that does not run can neither start nor be removed
        meanwhile. verb: what is done, for a refusal. NotFound; Conflict while it is removed."""
        return self._roots.lend(ref, verb)

    def note(self, ref: str, action: str, **attributes: str) -> None:
        """An event: something was done with it that the engine has no part in."""
        self._core.emit(self._core.find(ref).record, action, **attributes)

    # Changing

    async def rename(self, ref: str, name: str) -> None:
        """Conflict if the name is taken."""
        await self._core.run(self._rename(self._core.find(ref), name), f"rename {ref}")

    async def _rename(self, unit: Unit, name: str) -> None:
        core = self._core
        if not name:
            raise InvalidArgument("Neither old nor new names may be empty")
        try:
            name = check_name(f"/{name.removeprefix('/')}")
        except InvalidArgument as err:
            raise InvalidArgument(f"Error when allocating new name: {err}") from err
        async with unit.lock:
            old = unit.record.name
            if name == old:
                raise InvalidArgument("Renaming a container with the same name as its current name")
            if name in core.names:
                raise NameTaken(name, core.names[name], "Error when allocating new name")
            core.names[name] = unit.id
            try:
                await core.save(unit, replace(unit.record, name=name))
            except BaseException:  # cancelled, too: undo, and pass it on
                del core.names[name]
                raise
            del core.names[old]
            await core.networks.renamed(unit.id, name)
            core.emit(unit.record, "rename", oldName=f"/{old}")
        await self._rename_in_links(old, name)

    async def _rename_in_links(self, old: str, new: str) -> None:
        for unit in tuple(self._core.units.values()):
            if not unit.record.host.links:
                continue
            async with unit.lock:
                links = renamed(unit.record.host.links, old, new)
                if links != unit.record.host.links and unit.id in self._core.units:
                    await self._core.save(unit, _with_links(unit.record, links))

    async def update(self, ref: str, changes: HostConfig) -> Warnings:
        """New limits and restart policy (fields left at their defaults stay as they are); warnings."""
        return await self._core.run(self._update(self._core.find(ref), changes), f"update {ref}")

    async def _update(self, unit: Unit, changes: HostConfig) -> Warnings:
        core = self._core
        async with unit.lock:
            before = unit.record
            if unit.removing:
                raise Conflict(
                    f"Cannot update container {unit.id}: container is marked for removal and cannot be updated"
                )
            changes, warnings = drop_foreign(changes)
            if asks_much(changes):
                changes, lacking = fit_limits(changes, await asyncio.to_thread(kernel_limits))
                warnings += lacking
            try:
                host = apply_update(before.host, changes, cpus=core.settings.cpus)
            except Conflict as err:
                raise Conflict(f"Cannot update container {unit.id}: {err}") from err
            after = replace(before, request=replace(before.request, host_config=host))
            if after.has_process:
                await core.runtime.update(await self._bringup.plan(after))
            await core.save(unit, after)
            core.emit(after, "update")
        return warnings

    # For the networks, which connect and disconnect

    def view(self, ref: str) -> ContainerView:
        """What the networks need of a container. NotFound."""
        record = self._core.find(ref).record
        return ContainerView(record.id, record.name, record.host.network_mode, record.wishes)

    async def endpoint_changed(self, container_id: str, network: str, settings: EndpointSettings | None) -> None:
        """The networks have connected it (settings as attached, or as wished while it does not run) or disconnected
        it (None): from now on inspect shows that and every start asks for it."""
        await self._core.run(self._endpoint_changed(container_id, network, settings), f"endpoint {container_id[:12]}")

    async def _endpoint_changed(self, container_id: str, network: str, settings: EndpointSettings | None) -> None:
        unit = self._core.find(container_id)
        async with unit.lock:
            record = unit.record
            await self._core.save(
                unit,
                replace(
                    record,
                    wishes=with_endpoint(record.wishes, network, settings and wish_of(settings)),
                    endpoints=with_endpoint(record.endpoints, network, settings),
                ),
            )


def _with_links(record: Container, links: tuple[str, ...]) -> Container:
    return replace(record, request=replace(record.request, host_config=replace(record.host, links=links)))
