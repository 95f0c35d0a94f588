"""Mounting a volume that has options of its own (tmpfs, a bind of another folder, NFS). Blocking."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.runtime import linux
from swarmlet_agent.volumes.rules import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, VolumeMount


def is_mounted(folder: Path) -> bool:
    """True if something is mounted exactly there (in this mount namespace)."""
    # Not of the folder itself: where a server's files are mounted, that would ask the server.
    real = f"{os.path.realpath(folder.parent)}/{folder.name}".replace("\\", "\\134").replace(" ", "\\040")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ", 5)[4] == real for line in lines)


def ensure_mounted(name: str, folder: Path, plan: VolumeMount) -> None:
    """InvalidArgument for a missing device, Internal with the kernel's reason for anything else."""
    if is_mounted(folder):
        return
    data = plan.data
    if plan.host:
        address = f"addr={_address(name, plan.host)}"
        data = f"{data},{address}" if data else address
    try:
        flags = plan.flags & ~MS_RDONLY if plan.flags & MS_BIND else plan.flags
        linux.mount(plan.source, str(folder), plan.kind, flags, data)
        if plan.flags & MS_BIND and plan.flags & ~(MS_BIND | MS_REC):
            # A bind takes its options only in a second step (mount(2), MS_BIND).
            linux.mount("", str(folder), "", (plan.flags & ~MS_REC) | MS_REMOUNT)
    except OSError as err:
        if is_mounted(folder):
            linux.umount(str(folder), linux.MNT_DETACH)
        reason = os.strerror(err.errno or 0).lower()
        text = f"error while mounting volume '{folder}': failed to mount local volume: mount {plan.source}:{folder}"
        if err.errno == errno.ENOENT:
            raise InvalidArgument(f"{text}: {reason}") from err
        raise Internal(f"{text}: {reason} (volume {name})") from err


def ensure_unmounted(folder: Path) -> None:
    """Nothing mounted there is fine. Internal if it is in use."""
    while is_mounted(folder):
        try:
            linux.umount(str(folder))
        except OSError as err:
            raise Internal(f"the volume at {folder} cannot be unmounted: {os.strerror(err.errno or 0)}") from err


def _address(name: str, host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as err:
        raise InvalidArgument(f"volume {name}: the server {host} cannot be resolved: {err.strerror}") from err
