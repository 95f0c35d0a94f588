"""From binds, mounts, tmpfs, volumes and volumes-from to one list of mount points (moby volume/mounts, daemon/volumes).

Later kinds override earlier ones at the same destination, as dockerd has it: volumes-from, then binds, then
mounts; an image's or request's anonymous volume only fills what is left. Two of the same kind collide.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.common import Mount
from swarmlet.model.container import ContainerCreate
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.volumes.rules import check_name

#: An error that names the kind of mount, and this reason.
Refuse = Callable[[str], InvalidArgument]

_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
#: Accepted and without effect on Linux (consistency) or without SELinux (labels), as dockerd has it.
_INERT_MODES = ("cached", "consistent", "delegated", "z", "Z")
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")
_TMPFS_FLAGS = {
    "exec": "noexec", "suid": "nosuid", "dev": "nodev", "rw": "ro", "atime": "noatime", "diratime": "nodiratime",
    "async": "sync", "nomand": "mand", "norelatime": "relatime", "nostrictatime": "strictatime",
}  # fmt: skip
_TMPFS_WORDS = ("dirsync", "unbindable", "runbindable")
_TMPFS_KEYS = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol")


def resolve_mounts(
    request: ContainerCreate, shared: Mapping[str, Sequence[MountPoint]], *, data_dir: str = "", shallow: bool = False
) -> tuple[MountPoint, ...]:
    """All mount points of a merged request, parents before what lies in them.

    shared: the mount points of each container that volumes_from names (by the name given there). Volume
    points have no source yet; those without a name are anonymous. data_dir: the engine's own folder. shallow: what is
    read-only is so only itself, not what is mounted below, as before API 1.44. InvalidArgument, NotSupported.
    """
    host = request.host_config
    points: dict[str, MountPoint] = {}
    for spec in host.volumes_from:
        name, mode = _volumes_from(spec)
        for point in shared[name]:
            points[point.destination] = replace(point, rw=point.rw and mode != "ro", copy_up=False)
    seen: set[str] = set()
    for text in host.binds:
        _add(points, seen, _settled(parse_bind(text, host.volume_driver), _has_propagation(text), data_dir, shallow))
    for mount in host.mounts:
        asked = mount.bind_options is not None and bool(mount.bind_options.propagation)
        _add(points, seen, _settled(from_mount(mount), asked, data_dir, shallow))
    for target, options in host.tmpfs.items():
        point = MountPoint(
            type="tmpfs", destination=_destination(target), mode=options, options=tmpfs_options(_split(options))
        )
        _add(points, seen, point)
    for target in request.volumes:
        destination = _destination(target)
        if destination not in points:
            driver = host.volume_driver or "local"
            points[destination] = MountPoint(
                type="volume", destination=destination, driver=driver, copy_up=True, anonymous=True
            )
    return tuple(sorted(points.values(), key=lambda point: (point.destination.count("/"), point.destination)))


def reaches_below(release: str) -> bool:
    """Whether a kernel ("6.1.0-13-amd64") can make whole trees read-only: mount_setattr(2), Linux 5.12."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 12)


def volumes_from_names(request: ContainerCreate) -> tuple[str, ...]:
    """The containers volumes_from refers to."""
    return tuple(_volumes_from(spec)[0] for spec in request.host_config.volumes_from)


def parse_bind(text: str, volume_driver: str = "") -> MountPoint:
    """One `-v` string: [source:]destination[:mode]. A source with a slash in front is a host path, else a volume."""
    parts = text.split(":")
    # An anonymous volume takes no mode: "/data:ro" is neither that nor a source with its destination.
    if len(parts) > 3 or not parts[0] or (len(parts) == 2 and (not parts[1] or _is_mode(parts[1]))):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    source, destination = ("", parts[0]) if len(parts) == 1 else parts[:2]
    mode = parts[2] if len(parts) == 3 else ""
    rw, propagation, no_copy = _parse_mode(mode, text)
    kind = "bind" if source.startswith("/") else "volume"

    def refuse(why: str) -> InvalidArgument:
        return InvalidArgument(
            f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": {why}"
        )

    try:
        destination = _destination(destination)
    except InvalidArgument as err:
        raise refuse(str(err)) from err
    if kind == "bind" and no_copy:
        raise refuse("field VolumeOptions must not be specified")
    if kind == "volume" and propagation:
        raise refuse("field BindOptions must not be specified")
    if kind == "bind":
        return MountPoint(
            type="bind", destination=destination, source=posixpath.normpath(source), mode=mode, rw=rw,
            propagation=propagation or "rprivate", make_source=True,
        )  # fmt: skip
    if source:
        check_name(source)
    return MountPoint(
        type="volume", destination=destination, name=source, driver=volume_driver or "local", mode=mode or "z", rw=rw,
        copy_up=not no_copy, anonymous=not source,
    )  # fmt: skip


def from_mount(mount: Mount) -> MountPoint:
    """One `--mount`. InvalidArgument `invalid mount config for type "x": …`; NotSupported for other kinds."""

    def refuse(why: str) -> InvalidArgument:
        return InvalidArgument(f'invalid mount config for type "{mount.type}": {why}')

    if not mount.target:
        raise refuse("field Target must not be empty")
    try:
        destination = _destination(mount.target)
    except InvalidArgument as err:
        raise refuse(str(err)) from err
    if mount.type in ("npipe", "cluster"):
        raise NotSupported(f'mount type "{mount.type}" is not supported')
    if mount.type not in _POINTS:
        raise refuse("mount type unknown")
    return _POINTS[mount.type](mount, destination, refuse)


def tmpfs_options(given: Sequence[str]) -> tuple[str, ...]:
    """tmpfs options over dockerd's defaults; of two that contradict each other the later one holds."""
    values: dict[str, str] = {}
    opposites = {off: on for on, off in _TMPFS_FLAGS.items()}
    for option in (*_TMPFS_DEFAULTS, *given):
        key = option.partition("=")[0]
        if "=" in option:
            if key not in _TMPFS_KEYS:
                raise _bad_tmpfs_option(option)
            values[key] = option
        elif key in _TMPFS_FLAGS or key in opposites:
            for word in (key, _TMPFS_FLAGS.get(key, ""), opposites.get(key, "")):
                values.pop(word, None)
            values[key] = option
        elif key in _TMPFS_WORDS or key in _PROPAGATIONS:
            values[key] = option
        elif key != "defaults":
            raise _bad_tmpfs_option(option)
    return tuple(values.values())


def _bad_tmpfs_option(option: str) -> InvalidArgument:
    words = " ".join(f'"{word}"' for word in option.split("=", 1))
    return InvalidArgument(f"invalid tmpfs option {words if '=' not in option else f'[{words}]'}")


def _bind_mount(mount: Mount, destination: str, refuse: Refuse) -> MountPoint:
    if not mount.source:
        raise refuse("field Source must not be empty")
    if not mount.source.startswith("/"):
        raise refuse(f"invalid mount path: '{mount.source}' mount path must be absolute")
    if mount.volume_options is not None or mount.tmpfs_options is not None:
        raise refuse(f"field {'VolumeOptions' if mount.volume_options else 'TmpfsOptions'} must not be specified")
    options = mount.bind_options
    propagation = options.propagation if options else ""
    if propagation and propagation not in _PROPAGATIONS:
        raise refuse(f"invalid propagation mode: {propagation}")
    below = ""
    if options and options.read_only_force_recursive:
        if options.read_only_non_recursive:
            raise refuse("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
        if not mount.read_only:
            raise refuse("ReadOnlyForceRecursive requires ReadOnly to be specified in conjunction")
        if options.non_recursive:
            raise refuse("ReadOnlyForceRecursive contradicts NonRecursive")
        if propagation not in ("", "rprivate"):
            raise refuse("ReadOnlyForceRecursive requires Propagation to be rprivate")
        below = "force"
    elif options and options.read_only_non_recursive:
        if not mount.read_only:
            raise refuse("ReadOnlyNonRecursive requires ReadOnly to be specified in conjunction")
        below = "off"
    return MountPoint(
        type="bind", destination=destination, source=posixpath.normpath(mount.source), rw=not mount.read_only,
        propagation=propagation or "rprivate", make_source=bool(options and options.create_mountpoint),
        non_recursive=bool(options and options.non_recursive), read_only_below=below,
    )  # fmt: skip


def _volume_mount(mount: Mount, destination: str, refuse: Refuse) -> MountPoint:
    if mount.bind_options is not None or mount.tmpfs_options is not None:
        raise refuse(f"field {'BindOptions' if mount.bind_options else 'TmpfsOptions'} must not be specified")
    if mount.source:
        check_name(mount.source)
    if not mount.source and mount.read_only:
        raise refuse("must not set ReadOnly mode when using anonymous volumes")
    options = mount.volume_options
    subpath = options.subpath if options else ""
    if subpath and (not mount.source or _leads_out(subpath)):
        raise refuse(
            "must not set Subpath when using anonymous volumes" if not mount.source
            else "subpath must be a relative path within the volume"
        )
    driver = options.driver_config.name if options and options.driver_config else ""
    return MountPoint(
        type="volume", destination=destination, name=mount.source, driver=driver or "local", mode="z",
        rw=not mount.read_only, copy_up=not (options and options.no_copy), anonymous=not mount.source, subpath=subpath,
    )  # fmt: skip


def _leads_out(subpath: str) -> bool:
    """By its words alone; where its links lead is seen at the start."""
    return posixpath.normpath(subpath).split("/")[0] in ("", "..")


def _image_mount(mount: Mount, destination: str, refuse: Refuse) -> MountPoint:
    """name: as the client gave it; whoever knows the images makes it an id."""
    if not mount.source:
        raise refuse("field Source must not be empty")
    for given, field in (
        (mount.bind_options, "BindOptions"), (mount.volume_options, "VolumeOptions"),
        (mount.tmpfs_options, "TmpfsOptions"),
    ):  # fmt: skip
        if given is not None:
            raise refuse(f"field {field} must not be specified")
    subpath = mount.image_options.subpath if mount.image_options else ""
    if _leads_out(subpath):
        raise refuse("subpath must be a relative path within the image")
    return MountPoint(
        type="image", destination=destination, name=mount.source, rw=not mount.read_only, subpath=subpath
    )


def _tmpfs_mount(mount: Mount, destination: str, refuse: Refuse) -> MountPoint:
    if mount.source:
        raise refuse("field Source must not be specified")
    given = mount.tmpfs_options
    options = ["=".join(entry) for entry in (given.options if given else ())]
    if given and given.size_bytes:
        options.append(f"size={given.size_bytes}")
    if given and given.mode:
        options.append(f"mode={given.mode:o}")
    if mount.read_only:
        options.append("ro")
    return MountPoint(type="tmpfs", destination=destination, rw=not mount.read_only, options=tmpfs_options(options))


_POINTS: dict[str, Callable[[Mount, str, Refuse], MountPoint]] = {
    "bind": _bind_mount, "volume": _volume_mount, "tmpfs": _tmpfs_mount, "image": _image_mount,
}  # fmt: skip


def _settled(point: MountPoint, asked: bool, data_dir: str, shallow: bool) -> MountPoint:
    """A bind with what the engine makes of it. asked: a client has said how it propagates.

    What holds the engine's own folder, or lies in it, must hear of unmounts there, else a container keeps the mounts of
    others alive (moby daemon/volumes_linux.go validateBindDaemonRoot).
    """
    if point.type != "bind":
        return point
    if shallow and not point.rw:
        point = replace(point, read_only_below="off")
    if not data_dir or not (_holds(point.source, data_dir) or _holds(data_dir, point.source)):
        return point
    if not asked:
        return replace(point, propagation="rslave", own_propagation=True)
    if point.propagation not in ("rslave", "rshared"):
        raise InvalidArgument(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within '
            f'the daemon root, daemon root: "{data_dir}", bind mount source: "{point.source}", propagation: '
            f'"{point.propagation}"'
        )
    return point


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _add(points: dict[str, MountPoint], seen: set[str], point: MountPoint) -> None:
    if point.destination in seen:
        raise InvalidArgument(f"Duplicate mount point: {point.destination}")
    seen.add(point.destination)
    points[point.destination] = point


def _destination(target: str) -> str:
    if not target.startswith("/"):
        raise InvalidArgument(f"invalid mount path: '{target}' mount path must be absolute")
    normal = posixpath.normpath("/" + target.lstrip("/"))
    if normal == "/":
        raise InvalidArgument("invalid specification: destination can't be '/'")
    return normal


def _volumes_from(spec: str) -> tuple[str, str]:
    if not spec:
        raise InvalidArgument("volumes-from specification cannot be an empty string")
    name, _, mode = spec.partition(":")
    if not name:
        raise InvalidArgument(f"invalid volumes-from specification: '{spec}'")
    if mode and mode not in ("ro", "rw", "z", "Z"):
        raise InvalidArgument(f"invalid mode: {mode}")
    return name, mode


def _split(options: str) -> list[str]:
    return [word for word in options.split(",") if word]


def _is_mode(text: str) -> bool:
    known = {"ro", "rw", "nocopy", *_PROPAGATIONS, *_INERT_MODES}
    return bool(text) and all(word in known for word in text.split(","))


def _has_propagation(bind: str) -> bool:
    return any(word in _PROPAGATIONS for word in bind.rpartition(":")[2].split(","))


def _parse_mode(mode: str, whole: str) -> tuple[bool, str, bool]:
    """(writable, propagation or "", nocopy). Each kind of word at most once."""
    if mode and not _is_mode(mode):
        raise InvalidArgument(f"invalid mode: {mode}")
    words = mode.split(",") if mode else []
    access = [word for word in words if word in ("ro", "rw")]
    propagation = [word for word in words if word in _PROPAGATIONS]
    labels = [word for word in words if word in ("z", "Z")]
    if len(access) > 1 or len(propagation) > 1 or len(labels) > 1:
        raise InvalidArgument(f"invalid mode: {mode}")
    return "ro" not in access, propagation[0] if propagation else "", "nocopy" in words
