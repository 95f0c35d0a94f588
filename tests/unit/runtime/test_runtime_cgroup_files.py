"""Cgroup files of both layouts, as kernels show them, give the same Usage."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmlet.errors import Internal
from swarmlet_agent.runtime import cgroup_files
from swarmlet_agent.runtime.cgroup_files import Hierarchy
from swarmlet_agent.runtime.cgroups import Cgroups

HOST_BYTES = 8 << 30

MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime shared:5 - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:6 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:32 / /somewhere\\040else rw,relatime - cgroup cgroup rw,memory
"""

V1 = {
    "cpuacct.usage": "3000000000\n",
    "cpuacct.usage_percpu": "1000000000 2000000000 \n",
    "cpuacct.stat": "user 200\nsystem 100\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 500\n",
    "memory.usage_in_bytes": "1048576\n",
    "memory.limit_in_bytes": "67108864\n",
    "memory.max_usage_in_bytes": "2097152\n",
    "memory.failcnt": "3\n",
    "memory.stat": "cache 4096\nrss 8192\ntotal_inactive_file 0\n",
    "pids.current": "5\n",
    "pids.max": "17\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 100\n8:0 Write 200\n8:0 Sync 0\n8:0 Total 300\nTotal 300\n",
}
V2 = {
    "cpu.stat": "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n"
    "nr_periods 10\nnr_throttled 4\nthrottled_usec 5\n",
    "memory.current": "1048576\n",
    "memory.max": "67108864\n",
    "memory.peak": "2097152\n",
    "memory.stat": "anon 8192\nfile 4096\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\n",
    "pids.current": "5\n",
    "pids.max": "17\n",
    "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n",
}


def test_hierarchies_are_found_once_each() -> None:
    assert cgroup_files.parse_mounts(MOUNTINFO) == [
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct"), 1),
        Hierarchy("/sys/fs/cgroup/memory", ("memory",), 1),
        Hierarchy("/sys/fs/cgroup/systemd", ("name=systemd",), 1),
        Hierarchy("/sys/fs/cgroup/unified", (), 2),
    ]


@pytest.mark.parametrize(("files", "version"), [(V1, 1), (V2, 2)])
def test_both_layouts_give_the_same_usage(files: dict[str, str], version: int) -> None:
    usage = cgroup_files.usage(files, version, now=7, host_memory_bytes=HOST_BYTES)

    assert (usage.read_at, usage.cpu_total_ns, usage.cpu_user_ns, usage.cpu_system_ns) == (
        7,
        3_000_000_000,
        2_000_000_000,
        1_000_000_000,
    )
    assert (usage.throttled_periods, usage.throttled_count) == (10, 4)
    assert usage.throttled_ns == (500 if version == 1 else 5000)
    assert (usage.memory_bytes, usage.memory_limit_bytes, usage.memory_max_usage_bytes) == (1 << 20, 64 << 20, 2 << 20)
    assert usage.memory_failcnt == 3
    assert usage.memory_stats["cache" if version == 1 else "file"] == 4096
    assert (usage.pids, usage.pids_limit) == (5, 17)
    assert usage.blkio == ((8, 0, "read", 100), (8, 0, "write", 200))


@pytest.mark.parametrize(
    ("files", "version"),
    [({"memory.limit_in_bytes": "9223372036854771712\n"}, 1), ({"memory.max": "max\n", "pids.max": "max"}, 2)],
)
def test_without_a_limit_the_host_s_memory_is_the_limit(files: dict[str, str], version: int) -> None:
    usage = cgroup_files.usage(files, version, now=0, host_memory_bytes=HOST_BYTES)

    assert (usage.memory_limit_bytes, usage.pids_limit) == (HOST_BYTES, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_missing_files_count_nothing(version: int) -> None:
    usage = cgroup_files.usage({}, version, now=0, host_memory_bytes=HOST_BYTES)

    assert (usage.cpu_total_ns, usage.memory_bytes, usage.blkio) == (0, 0, ())


def _tree(root: Path, files: dict[str, dict[str, str]]) -> None:
    for folder, content in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            (root / folder / name).write_text(text)


def test_the_reader_finds_files_in_a_recorded_version_2_tree(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        {
            "": {"cgroup.controllers": "cpu memory pids\n"},
            "swarmlet/c1": {**V2, "cgroup.procs": "10\n11\n"},
            "swarmlet/c1/sub": {"cgroup.procs": "12\n"},
        },
    )
    cgroups = Cgroups([Hierarchy(str(tmp_path), (), 2)])

    assert cgroups.version == 2
    assert cgroups.has_controller("memory")
    assert not cgroups.has_controller("cpuset")
    assert cgroups.usage("/swarmlet/c1").memory_bytes == 1 << 20
    assert cgroups.oom_kills("/swarmlet/c1") == 1
    assert cgroups.oom_kills("/swarmlet/gone") == 0
    assert cgroups.pids("/swarmlet/c1") == [10, 11, 12]
    assert cgroups.pids("/swarmlet/gone") == []


def test_the_reader_finds_files_in_recorded_version_1_hierarchies(tmp_path: Path) -> None:
    hierarchies = [
        Hierarchy(str(tmp_path / "cpu"), ("cpu", "cpuacct"), 1),
        Hierarchy(str(tmp_path / "memory"), ("memory",), 1),
        Hierarchy(str(tmp_path / "unified"), (), 2),
    ]
    v1 = dict(V1)
    _tree(
        tmp_path,
        {
            "cpu/swarmlet/c1": {name: v1[name] for name in v1 if name.startswith("cpu")},
            "memory/swarmlet/c1": {
                **{name: v1[name] for name in v1 if name.startswith("memory")},
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                "cgroup.procs": "10\n",
            },
        },
    )
    cgroups = Cgroups(hierarchies)

    usage = cgroups.usage("/swarmlet/c1")
    assert cgroups.version == 1
    assert (usage.cpu_total_ns, usage.memory_bytes, usage.pids) == (3_000_000_000, 1 << 20, 0)
    assert cgroups.oom_kills("/swarmlet/c1") == 2
    assert cgroups.pids("/swarmlet/c1") == [10]
    assert [folder.name for folder in cgroups.folders("/swarmlet/c1")] == ["c1", "c1"]


def test_a_host_without_cgroups_is_told_so(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("24 31 0:22 / /sys rw,nosuid,nodev,noexec,relatime - sysfs sysfs rw\n")
    with pytest.raises(Internal, match="no cgroups are mounted"):
        Cgroups.of_this_host(mounts)


def test_a_quota_is_lifted_in_either_layout(tmp_path: Path) -> None:
    _tree(tmp_path, {
        "one": {"cpu.cfs_quota_us": "10000\n", "cgroup.procs": ""}, "two": {"cpu.max": "10000 100000\n"},
        "": {"cgroup.controllers": "cpu memory pids\n"},
    })  # fmt: skip
    for hierarchy, path, file in (
        (Hierarchy(str(tmp_path), ("cpu",), 1), "/one", "cpu.cfs_quota_us"),
        (Hierarchy(str(tmp_path), (), 2), "/two", "cpu.max"),
    ):
        Cgroups([hierarchy]).lift_cpu_quota(path)
        assert (tmp_path / path[1:] / file).read_text() in ("-1", "max")
