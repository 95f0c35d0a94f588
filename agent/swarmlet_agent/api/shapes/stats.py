"""Engine API ContainerStatsResponse: the numbers `docker stats` computes its percentages from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swarmlet.model.times import ZERO_TIME, rfc3339
from swarmlet_agent.net.types import InterfaceCounters
from swarmlet_agent.runtime.types import Usage

_NO_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}
_NO_BLKIO: dict[str, Any] = {
    "io_service_bytes_recursive": None, "io_serviced_recursive": None, "io_queue_recursive": None,
    "io_service_time_recursive": None, "io_wait_time_recursive": None, "io_merged_recursive": None,
    "io_time_recursive": None, "sectors_recursive": None,
}  # fmt: skip


def host_cpu_ns(proc_stat: str, ticks_per_s: int) -> int:
    """All processors' time since boot from /proc/stat's first line, idle included, guests' (counted in user) not."""
    words = proc_stat.partition("\n")[0].split()
    return sum(int(word) for word in words[1:8]) * (1_000_000_000 // ticks_per_s)


def cpu_stats(usage: Usage, system_ns: int, cpus: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "total_usage": usage.cpu_total_ns,
        "usage_in_kernelmode": usage.cpu_system_ns,
        "usage_in_usermode": usage.cpu_user_ns,
    }
    if usage.cpu_per_cpu_ns:
        shown["percpu_usage"] = list(usage.cpu_per_cpu_ns)
    return {
        "cpu_usage": shown,
        "system_cpu_usage": system_ns,
        "online_cpus": cpus,
        "throttling_data": {
            "periods": usage.throttled_periods,
            "throttled_periods": usage.throttled_count,
            "throttled_time": usage.throttled_ns,
        },
    }


def container_stats(
    ident: str,
    name: str,
    usage: Usage,
    counters: Iterable[InterfaceCounters],
    cpu: dict[str, Any],
    previous: tuple[int, dict[str, Any]] | None,
) -> dict[str, Any]:
    """previous: (when, cpu_stats) of the sample before, None for the first."""
    shown: dict[str, Any] = {
        "name": f"/{name}",
        "id": ident,
        "read": rfc3339(usage.read_at),
        "preread": ZERO_TIME if previous is None else rfc3339(previous[0]),
        "pids_stats": {"current": usage.pids, **({"limit": usage.pids_limit} if usage.pids_limit else {})},
        "blkio_stats": _NO_BLKIO | {
            "io_service_bytes_recursive": [
                {"major": major, "minor": minor, "op": operation, "value": value}
                for major, minor, operation, value in usage.blkio
            ],
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu,
        "precpu_stats": _NO_CPU if previous is None else previous[1],
        "memory_stats": {
            "usage": usage.memory_bytes,
            "stats": dict(usage.memory_stats),
            "limit": usage.memory_limit_bytes,
        },
    }  # fmt: skip
    if usage.memory_max_usage_bytes:
        shown["memory_stats"] |= {"max_usage": usage.memory_max_usage_bytes, "failcnt": usage.memory_failcnt}
    networks = {each.name: _interface(each) for each in counters}
    if networks:
        shown["networks"] = networks
    return shown


def stopped_stats(ident: str, name: str) -> dict[str, Any]:
    """What a container that does not run answers."""
    return {
        "name": f"/{name}", "id": ident, "read": ZERO_TIME, "preread": ZERO_TIME,
        "pids_stats": {}, "blkio_stats": _NO_BLKIO, "num_procs": 0, "storage_stats": {},
        "cpu_stats": _NO_CPU, "precpu_stats": _NO_CPU, "memory_stats": {},
    }  # fmt: skip


def _interface(counters: InterfaceCounters) -> dict[str, int]:
    return {
        "rx_bytes": counters.rx_bytes, "rx_packets": counters.rx_packets,
        "rx_errors": counters.rx_errors, "rx_dropped": counters.rx_dropped,
        "tx_bytes": counters.tx_bytes, "tx_packets": counters.tx_packets,
        "tx_errors": counters.tx_errors, "tx_dropped": counters.tx_dropped,
    }  # fmt: skip
