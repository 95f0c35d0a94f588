"""Making containers: check, merge, reserve the name, make folder and volumes, journal. All or nothing.

The container's folder comes first and its record last: a folder without a record is what a crash in between
leaves, and what start() sweeps.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from random import Random

from msgspec.structs import replace

from swarmlet.errors import Internal, InvalidArgument, NameTaken, NotFound, NotSupported
from swarmlet.log import get_logger
from swarmlet.model.common import Driver, Mount
from swarmlet.model.container import ContainerCreate, HostConfig
from swarmlet.model.ids import new_hex_id, short_id
from swarmlet_agent.decide.health import unknown_kind
from swarmlet_agent.decide.kernel import asks_much, drop_foreign, fit_limits
from swarmlet_agent.decide.links import check_links, link_text, parse_link
from swarmlet_agent.decide.merge import argv, merge_image
from swarmlet_agent.decide.mounts import reaches_below, resolve_mounts, volumes_from_names
from swarmlet_agent.decide.names import check_name, random_name
from swarmlet_agent.decide.normalise import network_wishes, normalise
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.decide.remap import check_remapped
from swarmlet_agent.decide.selinux import Labels, choose_labels, free_level, level_of, read_wishes
from swarmlet_agent.decide.validate import check_image_part, check_request
from swarmlet_agent.engine.container import Container, SuppliedFile
from swarmlet_agent.engine.core import TABLE, Core, Unit, encode
from swarmlet_agent.engine.inside import open_in_root
from swarmlet_agent.engine.plan import mode_of
from swarmlet_agent.engine.removal import Removal
from swarmlet_agent.images.machine import this_machine
from swarmlet_agent.images.platforms import check_platform, matches, parse_platform
from swarmlet_agent.images.types import Image
from swarmlet_agent.runtime import caps, security
from swarmlet_agent.runtime.facts import kernel_limits
from swarmlet_agent.runtime.resources import rlimits
from swarmlet_agent.volumes.rules import check_driver

log = get_logger(__name__)


class Creator:
    """One per engine."""

    def __init__(self, core: Core, removal: Removal, *, random: Random | None = None) -> None:
        self._core = core
        self._removal = removal
        self._random = random or Random()
        #: SELinux's levels of containers that are being made, by their ids.
        self._levels: dict[str, str] = {}

    async def create(
        self, name: str, request: ContainerCreate, platform: str, supplied: Sequence[SuppliedFile] = (), *,
        shallow: bool = False,
    ) -> tuple[Unit, list[str]]:
        """The new unit and warnings. InvalidArgument, NotSupported, NotFound (image, other containers), Conflict."""
        core = self._core
        request, warnings = await self._checked(request)
        if not request.image:
            raise InvalidArgument("no image specified")
        image = core.images.get(request.image)
        warnings += _check_platform(image, request.image, platform)
        normal = normalise(
            request, default_runtime=core.traits.runtime_name, cgroupns_mode=core.traits.cgroupns_mode
        )
        merged = self._complete(merge_image(normal, image.config))
        check_image_part(merged)
        if name:  # this late, as dockerd: what is wrong with the request itself is told first
            name = check_name(name)
        remap = check_remapped(merged.host_config, core.traits.remap)
        points = resolve_mounts(
            merged, self._shared_points(merged), data_dir=str(core.settings.data_dir), shallow=shallow
        )
        points = tuple(map(self._with_image, points))
        await asyncio.to_thread(_check_sources, merged.host_config.mounts)
        ident = new_hex_id()
        name = self._reserve(name, ident)
        try:
            merged = replace(merged, hostname=merged.hostname or self._hostname(merged, ident))
            merged = self._linked(merged, name)
            record = Container(
                id=ident,
                name=name,
                created_at=core.now(),
                request=merged,
                image_id=image.id,
                image_ref=request.image,
                args=argv(merged),
                wishes=(wishes := network_wishes(merged)),
                endpoints=wishes,
                mounts=points,
                remap=remap,
                supplied=tuple(supplied),
                selinux=self._labels(ident, merged),
                log_path="" if merged.host_config.log_config.type == "none" else str(self._log_path(ident)),
            )
            unit = await self._make(record)
        except BaseException:  # cancelled, too: undo, and pass it on
            if core.names.get(name) == ident:
                del core.names[name]
            raise
        finally:
            self._levels.pop(ident, None)
        core.emit(unit.record, "create")
        return unit, warnings

    async def _checked(self, request: ContainerCreate) -> tuple[ContainerCreate, list[str]]:
        """As far as it can be had on this host and from this runtime, and warnings of what cannot. InvalidArgument,
        NotSupported."""
        core = self._core
        host, warnings = drop_foreign(request.host_config)
        if asks_much(host):
            host, lacking = fit_limits(host, await asyncio.to_thread(kernel_limits))
            warnings += lacking
        host = security.with_labels(host, self._joined_labels(host))
        request = replace(request, host_config=host)
        warnings += check_request(request, cpus=core.settings.cpus)
        _check_runtime_options(request)
        if host.runtime and host.runtime not in core.traits.runtimes:
            raise InvalidArgument(f"unknown or invalid runtime name: {host.runtime}")
        warnings += unknown_kind(request.healthcheck)
        warnings += security.lacking(
            host.security_opt, apparmor=core.traits.apparmor, selinux=core.traits.selinux is not None
        )
        return request, warnings

    async def _make(self, record: Container) -> Unit:
        core = self._core
        core.settings.container_dir(record.id).mkdir(mode=0o710)
        try:
            record = replace(record, mounts=await self._volumes(record))
            await core.journal.put(TABLE, record.id, encode(record))
        except BaseException:  # cancelled, too: undo, and pass it on
            await self._removal.sweep(record.id)
            raise
        return core.add(record)

    async def _volumes(self, record: Container) -> tuple[MountPoint, ...]:
        """Make and claim the volumes, and fill new ones with what the image has there."""
        made: list[MountPoint] = []
        for point in record.mounts:
            if point.type == "volume":
                point = await self._volume(record, point)
            made.append(point)
        filling = [point for point in made if point.type == "volume" and point.copy_up]
        if filling:
            root = await self._core.root_of(record)
            try:
                for point in filling:
                    folder = await asyncio.to_thread(_folder_in, root, point.destination)
                    if folder is not None:
                        await self._core.volumes.copy_up(point.name, folder, point.subpath)
            finally:
                await self._core.images.unmount_rootfs(record.id)
        return tuple(made)

    async def _volume(self, record: Container, point: MountPoint) -> MountPoint:
        volumes = self._core.volumes
        try:
            check_driver(point.name or "volume", point.driver)
        except NotFound as err:  # as in `_other`: not to be taken for a missing image
            raise InvalidArgument(str(err).partition(": ")[2]) from err
        driver, labels = _volume_options(record.request.host_config.mounts, point)
        if point.name:
            path = await volumes.ensure(point.name, driver or Driver(name=point.driver), labels)
            name = point.name
        elif point.driver not in ("", "local") or (driver is not None and driver.options):
            name = new_hex_id()
            path = await volumes.ensure(name, driver or Driver(name=point.driver), labels)
        else:
            name, path = await volumes.create_anonymous(labels)
        await volumes.use(name, record.id)
        return replace(point, name=name, source=str(path))

    def _complete(self, request: ContainerCreate) -> ContainerCreate:
        """References to other containers become full ids, so that renaming those changes nothing."""
        host = request.host_config
        for field in ("network_mode", "pid_mode", "ipc_mode"):
            if other := mode_of(getattr(host, field)):
                doing = "joining network namespace of container: " if field == "network_mode" else ""
                host = replace(host, **{field: f"container:{self._other(other, doing).id}"})
        return replace(request, host_config=host)

    def _linked(self, request: ContainerCreate, own: str) -> ContainerCreate:
        """Its links as they are kept. InvalidArgument for a container there is not, or one without a network of its
        own."""
        links = []
        for target, alias in map(parse_link, request.host_config.links):
            other = self._other(target, "could not get container for {}: ").record
            check_links(replace(request.host_config, network_mode=other.host.network_mode))
            links.append(link_text(other.name, own, alias))
        return replace(request, host_config=replace(request.host_config, links=tuple(links)))

    def _hostname(self, request: ContainerCreate, ident: str) -> str:
        if request.host_config.network_mode == "host" or request.host_config.uts_mode == "host":
            return socket.gethostname()
        if other := mode_of(request.host_config.network_mode):
            return self._other(other).record.request.hostname
        return short_id(ident)

    def _joined_labels(self, host: HostConfig) -> list[str]:
        """The process labels of the containers whose processes or IPC it has."""
        others = [other for mode in (host.ipc_mode, host.pid_mode) if (other := mode_of(mode))]
        return [self._core.labels_of(self._other(other).record).process for other in others]

    def _labels(self, ident: str, request: ContainerCreate) -> Labels | None:
        """SELinux's labels of a new container; its level is its own from here on. None on a host without."""
        core = self._core
        if core.traits.selinux is None:
            return None
        known = (unit.record.selinux for unit in core.units.values())
        taken = {level_of(labels.mount) for labels in known if labels is not None} | {*self._levels.values()}
        host = request.host_config
        labels = choose_labels(
            core.traits.selinux, read_wishes(security.read_options(host.security_opt).labels),
            free_level(taken, self._random.randrange), privileged=host.privileged,
        )
        self._levels[ident] = level_of(labels.mount)
        return labels

    def _other(self, ref: str, prefix: str = "") -> Unit:
        """Another container that the request names. InvalidArgument if there is none: at NotFound, clients of
        ContainerCreate say that the image is missing, and pull it (moby issue 39823)."""
        try:
            return self._core.find(ref)
        except NotFound as err:
            raise InvalidArgument(f"{prefix.format(ref)}{err}") from err

    def _with_image(self, point: MountPoint) -> MountPoint:
        """An image to be mounted by its id. InvalidArgument if there is none: see `_other`."""
        if point.type != "image":
            return point
        try:
            return replace(point, name=self._core.images.get(point.name).id)
        except NotFound as err:
            raise InvalidArgument(f'invalid mount config for type "image": {err}') from err

    def _shared_points(self, request: ContainerCreate) -> dict[str, tuple[MountPoint, ...]]:
        return {name: self._other(name).record.mounts for name in volumes_from_names(request)}

    def _reserve(self, name: str, ident: str) -> str:
        names = self._core.names
        if not name:
            name = random_name(names, self._random)
        elif name in names:
            raise NameTaken(name, names[name])
        names[name] = ident
        return name

    def _log_path(self, ident: str) -> Path:
        return self._core.settings.container_dir(ident) / f"{ident}.log"


def _check_runtime_options(request: ContainerCreate) -> None:
    """What the runtime refuses is refused now, not at the first start."""
    host = request.host_config
    security.refuse_unsupported(host)
    security.read_options(host.security_opt)
    everything = frozenset(caps.NAMES)
    caps.normalise(host.cap_add, "CapAdd", everything)
    caps.normalise(host.cap_drop, "CapDrop", everything)
    rlimits(host.ulimits)


def _check_platform(image: Image, ref: str, platform: str) -> list[str]:
    """NotFound, so that clients pull, if the image is for another platform than asked for; else warnings."""
    host, wanted = this_machine(), parse_platform(platform)
    check_platform(ref, image.platform, wanted)
    if wanted is None and not matches(image.platform, host):
        return [
            f"The requested image's platform ({image.platform}) does not match the detected host platform ({host}) "
            "and no specific platform was requested"
        ]
    return []


def _check_sources(mounts: tuple[Mount, ...]) -> None:
    """A bind mount's source must be there, unless it is to be made, and what it asks possible. In a thread."""
    for mount in mounts:
        forced = mount.bind_options is not None and mount.bind_options.read_only_force_recursive
        if forced and not reaches_below(release := os.uname().release):
            raise NotSupported(f"recursive read-only mounts need Linux 5.12 or later, this is {release}")
        wanted = mount.bind_options is None or not mount.bind_options.create_mountpoint
        if mount.type == "bind" and wanted and not os.path.exists(mount.source):
            raise InvalidArgument(
                f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
            )


def _volume_options(mounts: tuple[Mount, ...], point: MountPoint) -> tuple[Driver | None, dict[str, str]]:
    """Driver with its options, and labels, of the `--mount` that a volume point came from."""
    for mount in mounts:
        if mount.type == "volume" and mount.volume_options and mount.target.rstrip("/") == point.destination:
            return mount.volume_options.driver_config, mount.volume_options.labels
    return None, {}


def _folder_in(root: Path, path: str) -> Path | None:
    """Where the image really has this folder, links followed inside the root only; None if it has none."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            folder = open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise Internal(f"cannot look at {path} in the image: {err.strerror}") from err
        try:
            return Path(os.readlink(f"/proc/self/fd/{folder}"))
        finally:
            os.close(folder)
    finally:
        os.close(root_fd)
