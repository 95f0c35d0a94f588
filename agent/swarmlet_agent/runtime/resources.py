"""Docker's resource options as the OCI's `linux.resources` and `process.rlimits`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.common import Ulimit
from swarmlet.model.container import HostConfig, ThrottleDevice

DEFAULT_PERIOD_US = 100_000

_LIMIT_NAMES = "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
_LIMITS = frozenset(_LIMIT_NAMES.split())


def resources(
    host: HostConfig, numbers: Mapping[str, tuple[int, int]], *, swap_accounting: bool, cgroup_version: int
) -> dict[str, Any]:
    """`linux.resources` without devices; only what is asked for is there.

    numbers: block devices by path. NotSupported for realtime limits on cgroup v2, which has none.
    """
    if cgroup_version == 2 and (host.cpu_realtime_period or host.cpu_realtime_runtime):
        raise NotSupported("Your kernel does not support CPU real-time scheduler limits with cgroup v2")
    parts = {
        "memory": _memory(host, swap_accounting=swap_accounting, cgroup_version=cgroup_version),
        "cpu": _cpu(host),
        "pids": {"limit": host.pids_limit} if host.pids_limit is not None and host.pids_limit > 0 else {},
        "blockIO": _block_io(host, numbers),
    }
    return {key: value for key, value in parts.items() if value}


def _memory(host: HostConfig, *, swap_accounting: bool, cgroup_version: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if host.memory > 0:
        result["limit"] = host.memory
    if host.memory_reservation > 0:
        result["reservation"] = host.memory_reservation
    # Docker: memory and swap together; unset means as much swap again as memory; -1 is no limit.
    swap = host.memory_swap or (host.memory * 2 if host.memory > 0 else 0)
    if swap and swap_accounting:
        result["swap"] = swap
    if host.memory_swappiness is not None and host.memory_swappiness >= 0 and cgroup_version == 1:
        result["swappiness"] = host.memory_swappiness
    if host.oom_kill_disable and cgroup_version == 1:
        result["disableOOMKiller"] = True
    return result


def _cpu(host: HostConfig) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if host.cpu_shares > 0:
        result["shares"] = max(host.cpu_shares, 2)
    if host.nano_cpus > 0:
        result["period"] = DEFAULT_PERIOD_US
        result["quota"] = host.nano_cpus * DEFAULT_PERIOD_US // 1_000_000_000
    if host.cpu_period > 0:
        result["period"] = host.cpu_period
    if host.cpu_quota > 0:  # a negative one is none: not every runtime can be told so
        result["quota"] = host.cpu_quota
    for key, value in (
        ("realtimePeriod", host.cpu_realtime_period),
        ("realtimeRuntime", host.cpu_realtime_runtime),
        ("cpus", host.cpuset_cpus),
        ("mems", host.cpuset_mems),
    ):
        if value:
            result[key] = value
    return result


def _block_io(host: HostConfig, numbers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if host.blkio_weight:
        result["weight"] = host.blkio_weight
    if host.blkio_weight_device:
        result["weightDevice"] = [
            {"major": numbers[entry.path][0], "minor": numbers[entry.path][1], "weight": entry.weight}
            for entry in host.blkio_weight_device
        ]
    for key, entries in (
        ("throttleReadBpsDevice", host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops),
    ):
        if entries:
            result[key] = _throttles(entries, numbers)
    return result


def _throttles(entries: Sequence[ThrottleDevice], numbers: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    return [{"major": numbers[e.path][0], "minor": numbers[e.path][1], "rate": e.rate} for e in entries]


def rlimits(ulimits: Iterable[Ulimit], *, open_files: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """`process.rlimits`; -1 is no limit. open_files: (soft, hard) where the user asks for none.

    InvalidArgument for a name Linux has not, or soft above hard.
    """
    result = []
    for limit in ulimits:
        if limit.name not in _LIMITS:
            raise InvalidArgument(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise InvalidArgument(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
        result.append(
            {"type": f"RLIMIT_{limit.name.upper()}", "soft": _unsigned(limit.soft), "hard": _unsigned(limit.hard)}
        )
    if open_files is not None and not any(limit["type"] == "RLIMIT_NOFILE" for limit in result):
        soft, hard = map(_unsigned, open_files)
        result.append({"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard})
    return result


def _unsigned(value: int) -> int:
    return (1 << 64) - 1 if value < 0 else value
