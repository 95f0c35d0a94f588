"""Reading cgroup files of both layouts (kernel: cgroup-v1/*.txt, cgroup-v2.rst). Pure: text in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarmlet_agent.runtime.types import Usage

#: Where the kernel shows "no limit" on version 1: the largest number of whole pages.
_NO_LIMIT = 1 << 62
#: USER_HZ, the unit of cpuacct.stat; 100 on every architecture Linux has containers on.
_TICK_NS = 10_000_000

#: The files that make up a Usage, by controller, for each layout.
FILES_V1 = {
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_percpu", "cpuacct.stat"),
    "cpu": ("cpu.stat",),
    "memory": (
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.failcnt",
        "memory.stat",
    ),
    "pids": ("pids.current", "pids.max"),
    "blkio": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
}
FILES_V2 = {
    "": (
        "cpu.stat",
        "memory.current",
        "memory.max",
        "memory.peak",
        "memory.stat",
        "memory.events",
        "pids.current",
        "pids.max",
        "io.stat",
    )
}


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy. controllers: of version 1 ("name=systemd" for a named one); () for version 2."""

    mount_point: str
    controllers: tuple[str, ...]
    version: int


def parse_mounts(mountinfo: str) -> list[Hierarchy]:
    """The cgroup hierarchies in /proc/self/mountinfo (proc(5)), the first mount of each."""
    result: list[Hierarchy] = []
    seen: set[tuple[str, ...]] = set()
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        known = {"rw", "ro", "xattr", "noprefix", "clone_children"}
        names = tuple(word for word in options.split(",") if word not in known) if kind == "cgroup" else ()
        if names in seen:
            continue
        seen.add(names)
        controllers = tuple(name for name in names if not name.startswith("release_agent="))
        result.append(Hierarchy(_unescaped(left.split(" ")[4]), controllers, 1 if kind == "cgroup" else 2))
    return result


def mount_fields(line: str) -> tuple[str, str, list[str]]:
    """(root within the file system, mount point, propagation fields) of a line of mountinfo."""
    fields = line.partition(" - ")[0].split(" ")
    return _unescaped(fields[3]), _unescaped(fields[4]), fields[6:]


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def number(text: str) -> int:
    """A single value; "max" and version 1's huge number are 0."""
    text = text.strip()
    if not text or text == "max":
        return 0
    value = int(text)
    return 0 if value >= _NO_LIMIT else value


def flat(text: str) -> dict[str, int]:
    """ "key value" lines; lines of another shape are left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def usage(files: Mapping[str, str], version: int, *, now: int, host_memory_bytes: int) -> Usage:
    """From files by name (missing ones count as empty)."""
    return (_usage_v2 if version == 2 else _usage_v1)(files, now, host_memory_bytes)


def _usage_v1(files: Mapping[str, str], now: int, host_memory_bytes: int) -> Usage:
    cpu, throttled = flat(files.get("cpuacct.stat", "")), flat(files.get("cpu.stat", ""))
    limit = number(files.get("memory.limit_in_bytes", ""))
    per_cpu = tuple(int(word) for word in files.get("cpuacct.usage_percpu", "").split())
    blkio = _v1_io(files.get("blkio.throttle.io_service_bytes_recursive", ""))
    return Usage(
        read_at=now,
        cpu_total_ns=number(files.get("cpuacct.usage", "")),
        cpu_user_ns=cpu.get("user", 0) * _TICK_NS,
        cpu_system_ns=cpu.get("system", 0) * _TICK_NS,
        cpu_per_cpu_ns=per_cpu,
        throttled_periods=throttled.get("nr_periods", 0),
        throttled_count=throttled.get("nr_throttled", 0),
        throttled_ns=throttled.get("throttled_time", 0),
        memory_bytes=number(files.get("memory.usage_in_bytes", "")),
        memory_limit_bytes=min(limit or host_memory_bytes, host_memory_bytes),
        memory_max_usage_bytes=number(files.get("memory.max_usage_in_bytes", "")),
        memory_failcnt=number(files.get("memory.failcnt", "")),
        memory_stats=flat(files.get("memory.stat", "")),
        pids=number(files.get("pids.current", "")),
        pids_limit=number(files.get("pids.max", "")),
        blkio=blkio or _v1_io(files.get("blkio.throttle.io_service_bytes", "")),
    )


def _usage_v2(files: Mapping[str, str], now: int, host_memory_bytes: int) -> Usage:
    cpu = flat(files.get("cpu.stat", ""))
    limit = number(files.get("memory.max", ""))
    return Usage(
        read_at=now,
        cpu_total_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        throttled_periods=cpu.get("nr_periods", 0),
        throttled_count=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_bytes=number(files.get("memory.current", "")),
        memory_limit_bytes=min(limit or host_memory_bytes, host_memory_bytes),
        memory_max_usage_bytes=number(files.get("memory.peak", "")),
        memory_failcnt=flat(files.get("memory.events", "")).get("oom", 0),
        memory_stats=flat(files.get("memory.stat", "")),
        pids=number(files.get("pids.current", "")),
        pids_limit=number(files.get("pids.max", "")),
        blkio=_v2_io(files.get("io.stat", "")),
    )


def _v1_io(text: str) -> tuple[tuple[int, int, str, int], ...]:
    """Lines "major:minor Operation bytes", and a total at the end."""
    result = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in ("Read", "Write"):
            major, _, minor = words[0].partition(":")
            result.append((int(major), int(minor), words[1].lower(), int(words[2])))
    return tuple(result)


def _v2_io(text: str) -> tuple[tuple[int, int, str, int], ...]:
    """Lines "major:minor rbytes=… wbytes=… rios=… …"."""
    result = []
    for line in text.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        major, _, minor = device.partition(":")
        for key, operation in (("rbytes", "read"), ("wbytes", "write")):
            if key in values:
                result.append((int(major), int(minor), operation, int(values[key])))
    return tuple(result)
