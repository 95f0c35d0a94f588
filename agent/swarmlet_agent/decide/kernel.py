"""Limits that not every kernel has (moby daemon/daemon_unix.go): refused, or left out with a warning."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import HostConfig

_WEIGHT = "Your kernel does not support Block I/O {} or the cgroup is not mounted. {} discarded."


@dataclass(frozen=True, slots=True)
class KernelLimits:
    """What the kernel's cgroups can do."""

    realtime: bool = True
    io_weight: bool = True
    io_weight_device: bool = True


def asks_much(host: HostConfig) -> bool:
    """True if the kernel has to be looked at for these limits."""
    return bool(host.cpu_realtime_period or host.cpu_realtime_runtime or host.blkio_weight or host.blkio_weight_device)


def fit_limits(host: HostConfig, able: KernelLimits) -> tuple[HostConfig, list[str]]:
    """The limits without those that are only wishes here, and what to tell. NotSupported, InvalidArgument."""
    warnings = []
    if host.cpu_realtime_period or host.cpu_realtime_runtime:
        if not able.realtime:
            raise NotSupported("Your kernel does not support CPU real-time scheduler")
        if host.cpu_realtime_runtime > (host.cpu_realtime_period or 1_000_000):
            raise InvalidArgument("cpu real-time runtime cannot be higher than cpu real-time period")
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
