"""Devices of a container: which nodes it sees, and which its cgroup lets it use.

Looking at the host's nodes (`resolve`) is apart from deciding (`rules`, `oci_device`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import DeviceMapping, HostConfig

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
#: Parts of /dev that belong to the container's own mounts.
_OWN = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"})


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A node as the container shall see it. kind: "c" or "b"; access: letters of rwm."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class Devices:
    """What the host's nodes are: those handed to the container, and block devices named in I/O limits."""

    nodes: tuple[DeviceNode, ...] = ()
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)


#: Denied unless allowed here: null, zero, full, random, urandom, tty, console, and never FUSE.
_DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {"allow": False, "access": "rwm"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1))
    ),
    {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
)


def rules(host: HostConfig, devices: Devices) -> list[dict[str, Any]]:
    """`linux.resources.devices`. InvalidArgument for a malformed device_cgroup_rules entry."""
    if host.privileged:
        return [{"allow": True, "access": "rwm"}]
    result = [dict(rule) for rule in _DEFAULT_RULES]
    for node in devices.nodes:
        result.append(
            {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}
        )
    for text in host.device_cgroup_rules:
        match = _RULE.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"invalid device cgroup rule format: '{text}'")
        kind, major, minor, access = match.groups()
        rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        # The OCI has no "any": leaving a number out means it.
        rule.update({key: int(value) for key, value in (("major", major), ("minor", minor)) if value != "*"})
        result.append(rule)
    return result


def oci_device(node: DeviceNode) -> dict[str, Any]:
    """An entry of `linux.devices`."""
    return {
        "path": node.path,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def resolve(host: HostConfig) -> Devices:
    """Look at the host's nodes; blocking. InvalidArgument for one that is missing or is not a device."""
    nodes: list[DeviceNode] = list(_every_device()) if host.privileged else []
    taken = {node.path for node in nodes}
    for mapping in host.devices:
        nodes.extend(node for node in _mapped(mapping) if node.path not in taken)
    limited = [entry.path for entry in host.blkio_weight_device]
    for throttled in (
        host.blkio_device_read_bps,
        host.blkio_device_write_bps,
        host.blkio_device_read_iops,
        host.blkio_device_write_iops,
    ):
        limited.extend(entry.path for entry in throttled)
    return Devices(tuple(nodes), {path: _numbers(path) for path in limited})


def _mapped(mapping: DeviceMapping) -> Iterable[DeviceNode]:
    source = mapping.path_on_host
    target = mapping.path_in_container or source
    access = mapping.cgroup_permissions or "rwm"
    if not re.fullmatch("[rwm]{1,3}", access):
        raise InvalidArgument(f"invalid device mode: {access}")
    try:
        real = os.path.realpath(source)
        if os.path.isdir(real):
            found = [node for node in _below(real) if node is not None]
            for node in found:
                yield _renamed(node, target + node.path.removeprefix(real), access)
            if found:
                return
        single = _look(real)
    except OSError as err:
        raise _refusal(source, _reason(err)) from err
    if single is None:
        raise _refusal(source, "not a device node")
    yield _renamed(single, target, access)


def _refusal(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f'error gathering device information while adding custom device "{path}": {reason}')


def _renamed(node: DeviceNode, path: str, access: str) -> DeviceNode:
    return DeviceNode(path, node.kind, node.major, node.minor, node.mode, node.uid, node.gid, access)


def _every_device() -> Iterable[DeviceNode]:
    for entry in sorted(os.listdir("/dev")):
        if entry in _OWN:
            continue
        path = f"/dev/{entry}"
        if os.path.isdir(path) and not os.path.islink(path):
            yield from _below(path)
        elif (node := _look(path)) is not None:
            yield node


def _below(folder: str) -> Iterable[DeviceNode]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if (node := _look(f"{parent}/{name}")) is not None:
                yield node


def _look(path: str) -> DeviceNode | None:
    """None for what is not a device node. OSError."""
    info = os.lstat(path)
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        kind = "c" if stat.S_ISCHR(info.st_mode) else "b"
        number = info.st_rdev
        mode = stat.S_IMODE(info.st_mode)
        return DeviceNode(path, kind, os.major(number), os.minor(number), mode, info.st_uid, info.st_gid)
    return None


def _numbers(path: str) -> tuple[int, int]:
    try:
        number = os.stat(path).st_rdev
    except OSError as err:
        raise InvalidArgument(f"cannot look at the block device {path}: {_reason(err)}") from err
    return os.major(number), os.minor(number)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
