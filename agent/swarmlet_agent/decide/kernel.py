"""Limits that not every kernel has (moby daemon/daemon_unix.go): refused, or left out with a warning."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import HostConfig
from swarmlet_agent.decide.sets import parse_set

_WEIGHT = "Your kernel does not support Block I/O {} or the cgroup is not mounted. {} discarded."
_KERNEL_MEMORY = (
    "Your kernel does not support kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded."
)
_SWAPPINESS = (
    "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
    "Memory swappiness discarded."
)


@dataclass(frozen=True, slots=True)
class KernelLimits:
    """What the kernel's cgroups can do. memory_nodes: those that are there, as the kernel lists them ("0-1")."""

    realtime: bool = True
    io_weight: bool = True
    io_weight_device: bool = True
    swappiness: bool = True
    oom_kill_disable: bool = True
    memory_nodes: str = ""


def asks_much(host: HostConfig) -> bool:
    """True if the kernel has to be looked at for these limits."""
    return bool(
        host.cpu_realtime_period
        or host.cpu_realtime_runtime
        or host.blkio_weight
        or host.blkio_weight_device
        or host.cpuset_mems
        or host.oom_kill_disable
        or host.memory_swappiness not in (None, -1)
    )


def fit_limits(host: HostConfig, able: KernelLimits) -> tuple[HostConfig, list[str]]:
    """The limits without those that are only wishes here, and what to tell. NotSupported, InvalidArgument."""
    warnings = []
    if host.cpu_realtime_period or host.cpu_realtime_runtime:
        if not able.realtime:
            raise NotSupported("Your kernel does not support CPU real-time scheduler")
        if host.cpu_realtime_runtime > (host.cpu_realtime_period or 1_000_000):
            raise InvalidArgument("cpu real-time runtime cannot be higher than cpu real-time period")
    nodes = parse_set(host.cpuset_mems, "mems")
    if able.memory_nodes and not nodes <= parse_set(able.memory_nodes, "mems"):
        raise InvalidArgument(
            f"Requested memory nodes are not available - requested {host.cpuset_mems}, available: {able.memory_nodes}"
        )
    if host.memory_swappiness not in (None, -1) and not able.swappiness:
        warnings.append(_SWAPPINESS)
        host = replace(host, memory_swappiness=None)
    if host.oom_kill_disable and not able.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        host = replace(host, oom_kill_disable=None)
    if host.blkio_weight and not able.io_weight:
        warnings.append(_WEIGHT.format("weight", "Weight"))
        host = replace(host, blkio_weight=0)
    for entry in host.blkio_weight_device:
        if not 10 <= entry.weight <= 1000:
            raise InvalidArgument(f"Range of blkio weight is from 10 to 1000: {entry.path}:{entry.weight}")
    if host.blkio_weight_device and not able.io_weight_device:
        warnings.append(_WEIGHT.format("weight_device", "Weight-device"))
        host = replace(host, blkio_weight_device=())
    return host, warnings


def drop_foreign(host: HostConfig) -> tuple[HostConfig, list[str]]:
    """Without what no Linux of today has, and what to tell of it. InvalidArgument for limits only Windows knows."""
    if host.io_maximum_bandwidth or host.io_maximum_iops:
        raise InvalidArgument("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
    warnings = []
    if host.kernel_memory or host.kernel_memory_tcp:
        warnings.append(_KERNEL_MEMORY)
    if host.cpu_percent:
        warnings.append("linux does not support CPU percent. Percent discarded.")
    if host.cpu_count:
        warnings.append("linux does not support CPU count. Count discarded.")
    if warnings:
        host = replace(host, kernel_memory=0, kernel_memory_tcp=0, cpu_percent=0, cpu_count=0)
    return host, warnings
