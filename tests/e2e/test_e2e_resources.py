"""Resource options of `docker run` and `docker update`: what the kernel's books say, and how nonsense is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from e2e_cluster import View

CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


def books(node: View, *args: str, v1: str, v2: str) -> str:
    """A file of the container's own cgroup, by its name in either layout ("memory/memory.limit_in_bytes")."""
    file = f"/sys/fs/cgroup/{v2 if CGROUP_V2 else v1}"
    return node("run", "--rm", *args, "busybox", "cat", file)


def refusal(node: View, *args: str) -> str:
    """Why `docker run` with these is refused by the engine."""
    done = node.run("run", "--rm", *args, "busybox", "true")
    assert done.returncode in (125, 127), (done.returncode, done.stderr)  # 127 where a file is missing
    found = re.search(r"Error response from daemon: (.*)", done.stderr.decode())
    assert found, done.stderr
    return found[1]


def warning(node: View, *args: str) -> str:
    """What `docker run` warns of while it works."""
    done = node.run("run", "--rm", *args, "busybox", "true")
    assert done.returncode == 0, done.stderr
    return done.stderr.decode().strip()


@pytest.mark.parametrize(
    ("args", "v1", "v2", "expected"),
    [
        (("-m", "64m"), "memory/memory.limit_in_bytes", "memory.max", {"67108864"}),
        (("-m", "64m", "--memory-swap", "64m"), "memory/memory.memsw.limit_in_bytes", "memory.swap.max",
         {"67108864", "0"}),
        (("-m", "64m", "--memory-swap", "-1"), "memory/memory.memsw.limit_in_bytes", "memory.swap.max",
         {"9223372036854771712", "max"}),
        (("-m", "64m"), "memory/memory.memsw.limit_in_bytes", "memory.swap.max", {"134217728", "67108864"}),
        (("--memory-reservation", "32m"), "memory/memory.soft_limit_in_bytes", "memory.low", {"33554432"}),
        (("--cpus", "0.5"), "cpu/cpu.cfs_quota_us", "cpu.max", {"50000", "50000 100000"}),
        (("--cpu-period", "50000", "--cpu-quota", "20000"), "cpu/cpu.cfs_quota_us", "cpu.max",
         {"20000", "20000 50000"}),
        (("--cpu-shares", "512"), "cpu/cpu.shares", "cpu.weight", {"512", "20"}),
        (("--cpu-shares", "1"), "cpu/cpu.shares", "cpu.weight", {"2", "1"}),
        (("--cpuset-cpus", "0"), "cpuset/cpuset.cpus", "cpuset.cpus", {"0"}),
        (("--cpuset-mems", "0"), "cpuset/cpuset.mems", "cpuset.mems", {"0"}),
        (("--pids-limit", "33"), "pids/pids.max", "pids.max", {"33"}),
        (("--pids-limit", "-1"), "pids/pids.max", "pids.max", {"max"}),
    ],
)  # fmt: skip
def test_limits_reach_the_kernel(node: View, args: tuple[str, ...], v1: str, v2: str, expected: set[str]) -> None:
    assert books(node, *args, v1=v1, v2=v2) in expected


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("-m", "5m"), "Minimum memory limit allowed is 6MB"),
        (("--memory-reservation", "5m"), "Minimum memory reservation allowed is 6MB"),
        (("-m", "64m", "--memory-swap", "32m"),
         "Minimum memoryswap limit should be larger than memory limit, see usage"),
        (("--memory-swap", "32m"), "You should always set the Memory limit when using Memoryswap limit, see usage"),
        (("-m", "32m", "--memory-reservation", "64m"),
         "Minimum memory limit can not be less than memory reservation limit, see usage"),
        (("--cpus", "0.5", "--cpu-period", "50000"),
         "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
        (("--cpus", "0.5", "--cpu-quota", "50000"), "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
        (("--cpus", "999"),
         f"range of CPUs is from 0.01 to {os.cpu_count()}.00, as there are only {os.cpu_count()} CPUs available"),
        (("--cpu-period", "10"),
         "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
        (("--cpu-quota", "10"), "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        (("--cpuset-cpus", "7000"), "Requested CPUs are not available - requested 7000, available: "),
        (("--cpuset-cpus", "a"), "Invalid value a for cpuset cpus"),
        (("--cpuset-mems", "63"), "Requested memory nodes are not available - requested 63, available: "),
        (("--oom-score-adj", "1001"), "Invalid value 1001, range for oom score adj is [-1000, 1000]"),
        (("--device", "/dev/nosuch"),
         'error gathering device information while adding custom device "/dev/nosuch": no such file or directory'),
        (("--device", "/etc/passwd"),
         'error gathering device information while adding custom device "/etc/passwd": not a device node'),
        (("--device-read-bps", "/dev/nosuch:1mb"), "/dev/nosuch: no such file or directory"),
        (("--storage-opt", "size=1g"),
         "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"),
        (("--gpus", "all"), 'could not select device driver "" with capabilities: [[gpu]]'),
        (("--device", "acme.com/none=x"), "unresolvable CDI devices acme.com/none=x"),
    ],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused_in_dockers_words(node: View, args: tuple[str, ...], text: str) -> None:
    assert text in refusal(node, *args)


def test_what_this_kernel_lacks_is_left_out_with_a_warning(node: View) -> None:
    assert "OOM killer is disabled for the container, but no memory limit is set" in warning(
        node, "--oom-kill-disable"
    ) or CGROUP_V2
    done = node.run("create", "--blkio-weight", "300", "busybox")
    assert done.returncode == 0, done.stderr
    shown = node.json("inspect", done.stdout.decode().strip())[0]["HostConfig"]
    # Either the kernel has weights, or the client is told and nothing is remembered.
    assert (shown["BlkioWeight"] == 300) != (b"Weight discarded" in done.stderr)
    old = node.run("run", "--rm", "--kernel-memory", "64m", "busybox", "true", env={"DOCKER_API_VERSION": "1.41"})
    assert old.returncode == 0 and b"kernel memory limit capabilities" in old.stderr, old.stderr


def test_swappiness_and_the_oom_killer(node: View) -> None:
    if CGROUP_V2:
        assert "Memory swappiness discarded" in warning(node, "-m", "64m", "--memory-swappiness", "20")
        assert "OomKillDisable discarded" in warning(node, "-m", "64m", "--oom-kill-disable")
        return
    assert books(node, "-m", "64m", "--memory-swappiness", "20", v1="memory/memory.swappiness", v2="") == "20"
    assert "oom_kill_disable 1" in books(node, "-m", "64m", "--oom-kill-disable", v1="memory/memory.oom_control", v2="")
    assert node("run", "--rm", "--oom-score-adj", "321", "busybox", "cat", "/proc/self/oom_score_adj") == "321"


def test_block_devices_are_throttled(node: View) -> None:
    device, number = block_device()
    limits = ("--device-read-bps", f"{device}:1mb", "--device-write-iops", f"{device}:100")
    if CGROUP_V2:
        assert f"{number} rbps=1048576 wbps=max riops=max wiops=100" in books(node, *limits, v1="", v2="io.max")
        return
    read = books(node, *limits, v1="blkio/blkio.throttle.read_bps_device", v2="")
    assert f"{number} 1048576" in read.splitlines()
    written = books(node, *limits, v1="blkio/blkio.throttle.write_iops_device", v2="")
    assert f"{number} 100" in written.splitlines()


def block_device() -> tuple[str, str]:
    """A whole disk of this machine: its node and number."""
    for folder in sorted(Path("/sys/block").iterdir()):
        if Path(f"/dev/{folder.name}").exists() and not (folder / "slaves").is_dir():
            return f"/dev/{folder.name}", (folder / "dev").read_text().strip()
    folder = next(folder for folder in sorted(Path("/sys/block").iterdir()) if Path(f"/dev/{folder.name}").exists())
    return f"/dev/{folder.name}", (folder / "dev").read_text().strip()


def test_devices_by_node_folder_name_and_permission(node: View) -> None:
    shown = node("run", "--rm", "--device", "/dev/zero:/dev/mine:r", "busybox", "ls", "-l", "/dev/mine")
    assert shown.startswith("c") and "1,   5" in shown
    done = node.run("run", "--rm", "--device", "/dev/net/tun:/dev/mine:r", "busybox", "sh", "-c", "echo > /dev/mine")
    assert done.returncode != 0 and b"permitted" in done.stderr, done.stderr
    assert "tun" in node("run", "--rm", "--device", "/dev/net", "busybox", "ls", "/dev/net").split()
    make = "mknod /made c 10 229 && head -c 0 /made; echo $?"
    plain = node.run("run", "--rm", "busybox", "sh", "-c", make)
    assert b"not permitted" in plain.stderr, plain.stderr
    allowed = node.run("run", "--rm", "--device-cgroup-rule", "c 10:229 rwm", "busybox", "sh", "-c", make)
    assert allowed.stdout.split() == [b"0"], allowed.stderr


def test_devices_by_their_vendors_description(node: View) -> None:
    """CDI: a file in /var/run/cdi, which every engine of this machine reads."""
    kind = f"swarmlet.test/part{os.getpid()}"
    edits = {"env": ["PART=one"], "deviceNodes": [{"path": "/dev/part", "hostPath": "/dev/zero"}]}
    file = Path(f"/var/run/cdi/{kind.replace('/', '-')}.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": [{"name": "one", "containerEdits": edits}]})
    )
    try:
        script = "echo $PART; head -c 4 /dev/part | wc -c"
        assert node("run", "--rm", "--device", f"{kind}=one", "busybox", "sh", "-c", script) == "one\n4"
        assert f"unresolvable CDI devices {kind}=two" in refusal(node, "--device", f"{kind}=two")
        assert "/var/run/cdi" in node.json("info", "-f", "{{json .CDISpecDirs}}")
    finally:
        file.unlink()


def test_update_changes_each_limit_of_a_running_container(node: View) -> None:
    node("run", "-d", "--name", "grown", "busybox", "sleep", "600")
    changes = {
        ("-m", "64m", "--memory-swap", "128m"): {"Memory": 64 << 20, "MemorySwap": 128 << 20},
        ("--memory-reservation", "32m"): {"MemoryReservation": 32 << 20},
        ("--cpus", "0.5"): {"NanoCpus": 500_000_000},
        ("--cpu-shares", "256"): {"CpuShares": 256},
        ("--cpuset-cpus", "0", "--cpuset-mems", "0"): {"CpusetCpus": "0", "CpusetMems": "0"},
        ("--pids-limit", "44"): {"PidsLimit": 44},
        ("--restart", "on-failure:3"): {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}},
    }
    for args, expected in changes.items():
        assert node("update", *args, "grown") == "grown"
        shown = node.json("inspect", "grown")[0]["HostConfig"]
        assert {key: shown[key] for key in expected} == expected
    names = (
        "memory.max memory.low cpu.max cpu.weight cpuset.cpus pids.max" if CGROUP_V2 else
        "memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares "
        "cpuset/cpuset.cpus pids/pids.max"
    )  # fmt: skip
    found = node("exec", "grown", "sh", "-c", f"cd /sys/fs/cgroup; cat {names}").splitlines()
    assert found[0] == str(64 << 20) and found[1] == str(32 << 20)
    assert found[2].startswith("50000") and found[3] in ("256", "10") and found[4:] == ["0", "44"]
    node("update", "--pids-limit", "-1", "--memory-swap", "-1", "grown")
    assert node("exec", "grown", "cat", f"/sys/fs/cgroup/{'' if CGROUP_V2 else 'pids/'}pids.max") == "max"
    for args, text in (
        (("--cpu-quota", "20000"), "CPU Quota cannot be updated as NanoCPUs has already been set"),
        (("-m", "2m"), "Minimum memory limit allowed is 6MB"),
        (("--cpuset-cpus", "7000"), "Requested CPUs are not available"),
        (("--cpuset-mems", "63"), "Requested memory nodes are not available"),
        (("--restart", "sometimes"), "invalid restart policy: unknown policy 'sometimes'"),
    ):
        done = node.run("update", *args, "grown")
        assert done.returncode != 0 and text in done.stderr.decode(), done.stderr
    node("rm", "-f", "grown")


def test_shared_memory_and_ulimits(node: View) -> None:
    script = "df -k /dev/shm | tail -1; ulimit -n; ulimit -Hn; ulimit -c"
    args = ("--shm-size", "3m", "--ulimit", "nofile=100:200", "--ulimit", "core=0")
    assert node("run", "--rm", *args, "busybox", "sh", "-c", script).split()[1:2] == ["3072"]
    assert node("run", "--rm", *args, "busybox", "sh", "-c", script).splitlines()[1:] == ["100", "200", "0"]
    plain = node("run", "--rm", "busybox", "sh", "-c", "df -k /dev/shm | tail -1")
    assert plain.split()[1] == "65536"


def test_a_cgroup_parent_of_ones_own(node: View) -> None:
    parent = f"/swl-parent-{os.getpid()}"
    try:
        assert parent in node("run", "--rm", "--cgroup-parent", parent, "busybox", "cat", "/proc/self/cgroup")
        assert "invalid cgroup parent" in refusal(node, "--cgroup-parent", "/a/../b")
    finally:
        for folder in (*Path("/sys/fs/cgroup").glob(f"*{parent}"), *Path("/sys/fs/cgroup").glob(parent[1:])):
            folder.rmdir()
