"""Making everything a run needs, and taking it away again: root, network, mounts, namespaces, process.

Order and overlap are for latency: the root and the network do not depend on each other. Taking away is
idempotent, so it also serves after a crash, when no one knows how far things had come.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from swarmlet.errors import Conflict, Internal, InvalidArgument, NotFound, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.common import Driver
from swarmlet_agent.decide.links import link_env, parse_link
from swarmlet_agent.decide.mounts import reaches_below
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.decide.selinux import label_of_source, shared
from swarmlet_agent.decide.users import Identity, resolve_user
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.core import Core, Unit
from swarmlet_agent.engine.inside import ensure_folder, read_accounts
from swarmlet_agent.engine.plan import container_plan, mode_of, network_wish
from swarmlet_agent.engine.propagation import asks_propagation, fit_propagation
from swarmlet_agent.engine.subpaths import Subpaths
from swarmlet_agent.engine.supplies import mounts_of
from swarmlet_agent.net.types import Attachment
from swarmlet_agent.runtime.linux import acting_as
from swarmlet_agent.runtime.selinux import label_files, label_source
from swarmlet_agent.runtime.types import ContainerPlan
from swarmlet_agent.threads import own_thread

log = get_logger(__name__)
First = TypeVar("First")
Second = TypeVar("Second")

#: What errors begin with that keep a container off its networks.
_NETWORKING = "failed to set up container networking"


class Bringup:
    """One per engine. Callers hold the unit's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def up(self, unit: Unit, record: Container) -> Container:
        """Run the program; returns the running record, not yet journaled. On any error `down` is the caller's."""
        core = self._core
        await core.supplies.check(record)
        if unit.dirty:
            await self.down(unit)
        core.mark(unit)
        subpaths = Subpaths()
        try:
            plan, record = await self._prepare(record, subpaths)
            pid = await core.runtime.create(plan, log_path=Path(record.log_path or os.devnull))
            if _any_within(record.mounts):
                await asyncio.to_thread(subpaths.check, pid)
        finally:
            subpaths.close()
        await self._connect(unit, record)
        await core.runtime.start(unit.id)
        state = replace(
            record.state, status="running", pid=pid, exit_code=0, error="", oom_killed=False,
            started_at=core.now(), finished_at=0,
        )  # fmt: skip
        return replace(record, state=state)

    async def down(self, unit: Unit, *, keep_network: bool = False) -> None:
        """Undo `up`, whatever of it was done. keep_network: it has been detached already. Internal if some of it
        stays behind; the marker then stays too, so the next start or removal tries again."""
        core, ident = self._core, unit.id
        steps: list[Awaitable[None]] = [core.runtime.delete(ident), core.images.unmount_rootfs(ident)]
        if not keep_network:
            steps.append(core.networks.detach(ident))
        failures = [
            failure for failure in await asyncio.gather(*steps, return_exceptions=True) if failure is not None
        ]
        if failures:
            raise _first(failures)
        if unit.dirty:
            for point in unit.record.mounts:
                if point.type == "volume":
                    self._tell(unit.record, point, "unmount")
        core.unmark(unit)

    async def plan(self, record: Container) -> ContainerPlan:
        """The plan of a running container (for a change of its limits)."""
        attachment = Attachment(
            netns_path=record.netns_path or None, endpoints=record.endpoints, ports=record.ports,
            files={target: Path(source) for target, source in record.files.items()}, sandbox_id=record.sandbox_id,
        )  # fmt: skip
        return container_plan(
            record,
            rootfs=await self._core.root_of(record),
            identity=Identity(record.uid, record.gid, record.groups),
            attachment=attachment,
            joined={},
            cgroup_parent=self._core.settings.cgroup_parent,
            ids=await self._core.ids_of(record),
        )

    async def _prepare(self, record: Container, subpaths: Subpaths) -> tuple[ContainerPlan, Container]:
        core = self._core
        share_with = self._sharing(record.host.network_mode, "network")
        joined = self._joined(record)
        ids = await core.ids_of(record)
        (rootfs, identity, mounts, inner), attachment = await _both(
            self._root(record, subpaths), _networked(core.networks.attach(network_wish(record, share_with, ids)))
        )
        if ids is not None and not share_with:
            await asyncio.to_thread(_give, attachment.files.values(), ids.remap.root)
        labels = core.labels_of(record)
        if labels.mount:
            label = shared(labels.mount) if share_with else labels.mount
            await asyncio.to_thread(label_files, attachment.files.values(), label)
        record = replace(
            record,
            mounts=mounts,
            endpoints=dict(attachment.endpoints),
            ports=dict(attachment.ports),
            files={target: str(source) for target, source in attachment.files.items()},
            netns_path=attachment.netns_path or "",
            sandbox_id=attachment.sandbox_id,
            uid=identity.uid,
            gid=identity.gid,
            groups=identity.groups,
            linked_env=self._linked_env(record),
        )
        fitted = record
        if asks_propagation(mounts):
            fitted = replace(record, mounts=await asyncio.to_thread(fit_propagation, mounts))
        plan = container_plan(
            fitted, rootfs=rootfs, identity=identity, attachment=attachment, joined=joined,
            cgroup_parent=core.settings.cgroup_parent, subpaths=inner, ids=ids,
            own_folders=core.settings.own_folders, supplies=mounts_of(record, core.supplies.place(record.id)),
            read_only_below=await asyncio.to_thread(_deep, mounts, inner) if reaches_below(os.uname().release) else (),
            labels=labels,
        )  # fmt: skip
        return plan, record

    async def _root(
        self, record: Container, subpaths: Subpaths
    ) -> tuple[Path, Identity, tuple[MountPoint, ...], dict[str, str]]:
        core = self._core
        rootfs = await core.root_of(record)
        mounts = tuple([await self._source(record, point) for point in record.mounts])
        try:
            identity = await asyncio.to_thread(_look_inside, rootfs, record, mounts)
            if label := core.labels_of(record).mount:
                for point in mounts:
                    await self._label(point, label)
            inner = await asyncio.to_thread(subpaths.resolve, mounts) if _any_within(mounts) else {}
        except InvalidArgument as err:  # nothing is wrong with asking for the start: to dockerd it is the system's
            raise Internal(str(err)) from err
        return rootfs, identity, mounts, inner

    async def _label(self, point: MountPoint, label: str) -> None:
        """Give a bind's or volume's files the label they need, if they do. label: the container's own."""
        folders = self._core.settings.own_folders
        own = any(Path(point.source).is_relative_to(folder) for folder in folders)
        if wanted := label_of_source(point.type, point.mode, label, own=own):
            # There may be many, and on a server that does not answer.
            await own_thread(lambda: label_source(point.source, wanted), f"labels {point.destination}", daemon=True)

    async def _source(self, record: Container, point: MountPoint) -> MountPoint:
        """A volume's folder may be a mount of its own, which a reboot has taken away, and an image always is."""
        if point.type == "image":
            return replace(point, source=str(await self._core.mount_image(record, point)))
        if point.type != "volume":
            return point
        path = await self._core.volumes.ensure(point.name, Driver(name=point.driver), {})
        self._tell(record, point, "mount")
        return replace(point, source=str(path))

    def _tell(self, record: Container, point: MountPoint, action: str) -> None:
        """A volume's event. Nothing is mounted that is not mounted anyway: it tells whose container uses it."""
        attributes = {"container": record.id, "driver": point.driver}
        if action == "mount":
            attributes |= {
                "destination": point.destination, "propagation": point.propagation,
                "read/write": "true" if point.rw else "false",
            }  # fmt: skip
        self._core.events.publish("volume", action, point.name, attributes)

    async def _connect(self, unit: Unit, record: Container) -> None:
        """Hand those who attached before the start their streams, while the program does not run yet."""
        waiting, unit.pending = unit.pending, []
        for pending in waiting:
            pending.connect(await self._core.runtime.attach(unit.id, tty=record.request.tty))
        rows, columns = record.host.console_size
        if record.request.tty and rows and columns:
            await self._core.runtime.resize(unit.id, rows, columns)

    def _linked_env(self, record: Container) -> tuple[str, ...]:
        """What links tell of containers on the default network; the networks have refused those that do not run."""
        found: list[str] = []
        for target, alias in map(parse_link, record.host.links if "bridge" in record.wishes else ()):
            other = self._core.find(target).record
            if (place := other.endpoints.get("bridge")) is not None and place.ip_address:
                found += link_env(
                    record.name, alias, place.ip_address, other.request.exposed_ports, other.request.env
                )
        return tuple(found)

    def _joined(self, record: Container) -> dict[str, str]:
        """Namespaces that are not made: "" = the host's."""
        joined: dict[str, str] = {}
        host = record.host
        for kind, mode in (("uts", host.uts_mode), ("ipc", host.ipc_mode), ("pid", host.pid_mode)):
            if mode == "host":
                joined[kind] = ""
            elif mode_of(mode):
                owner = self._core.find(self._sharing(mode, kind.upper())).record
                if kind == "ipc" and owner.host.ipc_mode not in ("shareable", "host"):
                    raise Conflict(
                        f"cannot join IPC namespace of container {owner.id}: non-shareable IPC "
                        "(hint: use IpcMode:shareable for the donor container)"
                    )
                joined[kind] = f"/proc/{owner.state.pid}/ns/{kind}"
        return joined

    def _sharing(self, mode: str, what: str) -> str:
        """The id of the container whose namespace `mode` joins, "" for none.

        If that does not run, as dockerd: Conflict for its network, Internal for the others."""
        other = mode_of(mode)
        if not other:
            return ""
        unit = self._core.find(other)
        if not unit.record.has_process and what in ("IPC", "PID"):
            raise Internal(f"failed to join {what} namespace: container {unit.id} is not running")
        if not unit.record.has_process:
            raise Conflict(f"cannot join {what} namespace of a non running container: {unit.id}")
        return unit.id


async def _networked(attaching: Awaitable[Attachment]) -> Attachment:
    """What it gives. Errors of a network's say so first, as dockerd's do; their status stays."""
    try:
        return await attaching
    except (NotFound, Conflict) as err:
        if not str(err).startswith(_NETWORKING):
            err.args = (f"{_NETWORKING}: {err}", *err.args[1:])
        raise


def _give(files: Iterable[Path], owner: tuple[int, int]) -> None:
    for file in files:
        os.chown(file, *owner)


def _look_inside(rootfs: Path, record: Container, mounts: tuple[MountPoint, ...]) -> Identity:
    """In a thread: whom it runs as, its working directory, and the host folders that binds need."""
    for point in mounts:
        if point.type == "bind" and not os.path.lexists(point.source):
            if not point.make_source:
                raise InvalidArgument(
                    f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
                )
            try:
                os.makedirs(point.source, exist_ok=True)
            except OSError as err:
                why = f"mkdir {err.filename}: {(err.strerror or '').lower()}"
                raise Internal(f"error while creating mount source path '{point.source}': {why}") from err
    working_dir = record.request.working_dir
    if working_dir and not any(_covers(point.destination, working_dir) for point in mounts):
        with acting_as(record.remap.root if record.remap is not None else (0, 0)):
            ensure_folder(rootfs, working_dir)
    passwd, group = read_accounts(rootfs)
    return resolve_user(record.request.user, record.host.group_add, passwd, group)


def _deep(mounts: tuple[MountPoint, ...], inner: dict[str, str]) -> frozenset[str]:
    """Where something may lie below: folders. crun 1.8 refuses to make a file recursively read-only."""
    return frozenset(
        point.destination for point in mounts if os.path.isdir(inner.get(point.destination, point.source))
    )


def _any_within(mounts: tuple[MountPoint, ...]) -> bool:
    return any(point.subpath for point in mounts)


def _covers(destination: str, path: str) -> bool:
    return path == destination or path.startswith(destination + "/")


async def _both(first: Awaitable[First], second: Awaitable[Second]) -> tuple[First, Second]:
    """Both results; if either fails, its error, but only once the other has come to its end too."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    failures = [result for result in (one, two) if isinstance(result, BaseException)]
    if isinstance(one, BaseException) or isinstance(two, BaseException):
        raise _first(failures)
    return one, two


def _first(failures: list[BaseException]) -> BaseException:
    """The one to answer with; the others are logged. What is not ours becomes Internal, with its cause."""
    error, *others = sorted(failures, key=lambda failure: not isinstance(failure, asyncio.CancelledError))
    for other in others:
        if not isinstance(other, asyncio.CancelledError):
            log.warning("another step failed too", error=str(other))
    if isinstance(error, OSError):
        wrapped = Internal(str(error))
        wrapped.__cause__ = error
        return wrapped
    return error


def exit_code_of(error: BaseException) -> int:
    """What a failed start counts as: 126 and 127 are the program's fault, 128 anything else (moby startup errors)."""
    return getattr(error, "exit_code", 128) if isinstance(error, SwarmletError) else 128
