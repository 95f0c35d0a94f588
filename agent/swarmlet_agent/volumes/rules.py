"""What a volume may be: names, drivers, options, and how options become a mount. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument, NotFound, NotSupported
from swarmlet.model.base import Record

#: The label of volumes that were made without a name (Docker 23 and later).
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
DRIVER = "local"

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_OPTIONS = frozenset({"type", "o", "device", "size"})
_TYPES = ("tmpfs", "none", "nfs", "nfs4", "bind")

#: mount(8) words that are flags of mount(2): (bits, True to set and False to clear).
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "noatime": (1024, True),
    "atime": (1024, False),
    "nodiratime": (2048, True),
    "diratime": (2048, False),
    "bind": (4096, True),
    "rbind": (4096 | 16384, True),
    "relatime": (1 << 21, True),
    "strictatime": (1 << 24, True),
}
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384


class Volume(Record, frozen=True, kw_only=True):
    """users: ids of the containers that refer to it, running or not."""

    name: str
    created_at: int
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    users: tuple[str, ...] = ()

    @property
    def is_anonymous(self) -> bool:
        return ANONYMOUS_LABEL in self.labels


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """mount(2)'s arguments. host: a server's name whose address the data must have as `addr=`, or ""."""

    kind: str
    source: str
    flags: int
    data: str
    host: str = ""


def check_name(name: str) -> None:
    """InvalidArgument in dockerd's words."""
    if len(name) == 1:
        raise InvalidArgument(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def check_driver(volume: str, driver: str) -> None:
    """NotFound for any driver but the local one, as dockerd answers where the plugin is missing."""
    if driver not in ("", DRIVER):
        raise NotFound(
            "plugin", driver, f'create {volume}: error looking up volume plugin {driver}: plugin "{driver}" not found'
        )


def check_options(name: str, options: Mapping[str, str]) -> None:
    """InvalidArgument for an unknown or missing option, NotSupported for a type this driver does not mount."""
    for key in options:
        if key not in _OPTIONS:
            raise InvalidArgument(f'create {name}: invalid option: "{key}"')
    if "size" in options:
        raise NotSupported(f"create {name}: quota size requested but no quota support")
    if not options:
        return
    for key in ("device", "type"):
        if not options.get(key):
            raise InvalidArgument(f'create {name}: missing required option: "{key}"')
    if options["type"] not in _TYPES:
        raise NotSupported(
            f'create {name}: volumes of type "{options["type"]}" are not supported (tmpfs, none with o=bind, nfs are)'
        )
    plan = mount_of(options)
    if plan.flags & MS_BIND and not plan.source.startswith("/"):
        raise InvalidArgument(f"create {name}: the device of a bind must be an absolute path")
    if options["type"] in ("none", "bind") and not plan.flags & MS_BIND:
        raise InvalidArgument(f'create {name}: type "{options["type"]}" needs "o=bind"')
    if plan.kind.startswith("nfs") and not plan.host:
        raise InvalidArgument(f'create {name}: type "{plan.kind}" needs "o=addr=<server>"')


def mount_of(options: Mapping[str, str]) -> VolumeMount:
    """For checked options that are not empty."""
    kind, flags, data, host = options["type"], 0, [], ""
    for word in filter(None, (part.strip() for part in options.get("o", "").split(","))):
        if word in _FLAGS:
            bits, on = _FLAGS[word]
            flags = flags | bits if on else flags & ~bits
        elif word.startswith("addr=") and kind.startswith("nfs"):
            host = word.removeprefix("addr=")
        else:
            data.append(word)
    if kind == "bind":
        flags |= MS_BIND
    return VolumeMount("" if flags & MS_BIND else kind, options["device"], flags, ",".join(data), host)
