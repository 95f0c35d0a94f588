"""What confines a container, asked of the kernel from inside and outside."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import Ulimit
from swarmlet.model.container import DeviceMapping, HostConfig

pytestmark = pytest.mark.kernel

DEFAULT_CAPS = "00000000a80425fb"


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_too_much_memory_is_an_oom_kill_with_code_137(open_bench, name: str) -> None:
    bench = await open_bench(name)

    found, _ = await bench.run(
        "sh", "-c", "x=$(yes | head -c 200000000)", host=HostConfig(memory=20 << 20, memory_swap=20 << 20)
    )

    assert (found.code, found.oom_killed) == (137, True)


async def test_a_plain_kill_is_not_an_oom_kill(bench) -> None:
    found, _ = await bench.run("sh", "-c", "kill -9 $$; sleep 1", host=HostConfig(memory=20 << 20, init=None))

    assert not found.oom_killed


async def test_no_more_processes_than_allowed(bench) -> None:
    _, text = await bench.run(
        "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait", host=HostConfig(pids_limit=4)
    )

    assert "can't fork" in text


async def test_cpu_time_is_limited(bench) -> None:
    ident = await bench.launch("sh", "-c", "while :; do :; done", host=HostConfig(nano_cpus=100_000_000))
    first = second = await bench.runtime.usage(ident)
    async with asyncio.timeout(60):  # on a busy machine it may not get its tenth at first
        while second.throttled_count < 5:
            await asyncio.sleep(1.0)
            second = await bench.runtime.usage(ident)

    share = (second.cpu_total_ns - first.cpu_total_ns) / (second.read_at - first.read_at)
    assert 0 < share < 0.3


async def test_usage_and_limits_are_told(bench) -> None:
    ident = await bench.launch("sleep", "100", host=HostConfig(memory=64 << 20, pids_limit=17))

    usage = await bench.runtime.usage(ident)

    assert (usage.memory_limit_bytes, usage.pids_limit, usage.pids) == (64 << 20, 17, 1)
    assert 0 < usage.memory_bytes < 64 << 20
    assert usage.cpu_total_ns > 0
    assert "cache" in usage.memory_stats or "file" in usage.memory_stats


async def test_limits_of_a_running_container_change(bench) -> None:
    plan = bench.plan("sleep", "100", host=HostConfig(memory=64 << 20, pids_limit=10))
    ident = await bench.create(plan)
    await bench.runtime.start(ident)
    wider = HostConfig(memory=128 << 20, memory_swap=256 << 20, pids_limit=0, cpu_shares=512)

    await bench.runtime.update(bench.plan("sleep", host=wider, id=ident, cgroup_path=plan.cgroup_path))

    usage = await bench.runtime.usage(ident)
    assert (usage.memory_limit_bytes, usage.pids_limit) == (128 << 20, 0)


async def test_default_capabilities_seccomp_and_namespaces(bench) -> None:
    _, text = await bench.run(
        "sh", "-c", "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; ls /proc | grep -c '^[0-9]'"
    )
    lines = dict(line.split(":\t") for line in text.splitlines()[:-1])

    assert lines["CapEff"] == lines["CapPrm"] == lines["CapBnd"] == DEFAULT_CAPS
    assert lines["CapInh"] == lines["CapAmb"] == "0" * 16
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("0", "2")
    assert int(text.splitlines()[-1]) <= 3


async def test_the_second_container_uses_the_kept_filter_and_is_filtered_all_the_same(bench) -> None:
    status = ("grep", "Seccomp:", "/proc/self/status")
    first = await bench.run(*status)
    assert len(list((bench.folder / "data" / "seccomp").iterdir())) == 1

    ident = await bench.create(bench.plan(*status))
    config = (bench.folder / "run" / "containers" / ident / "config.json").read_text()
    assert "run.oci.seccomp_bpf_data" in config
    await bench.runtime.start(ident)
    await bench.runtime.wait(ident)

    assert first[1] == bench.log(ident) == "Seccomp:\t2\n"
    denied, text = await bench.run("unshare", "-m", "true")
    assert denied.code != 0
    assert "not permitted" in text


async def test_a_damaged_kept_filter_is_made_again(bench) -> None:
    await bench.run("true")
    (kept,) = (bench.folder / "data" / "seccomp").iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    bench.runtime._filters._held.clear()

    found, _ = await bench.run("true")

    assert found.code == 0
    assert len(kept.read_bytes()) > 1000


async def test_security_options_change_what_a_container_may(bench) -> None:
    _, text = await bench.run(
        "grep",
        "-E",
        "CapEff|NoNewPrivs|Seccomp:",
        "/proc/self/status",
        host=HostConfig(
            security_opt=("seccomp=unconfined", "no-new-privileges"), cap_drop=("ALL",), cap_add=("NET_RAW",)
        ),
    )

    assert text.split() == ["CapEff:", f"{1 << 13:016x}", "NoNewPrivs:", "1", "Seccomp:", "0"]


async def test_a_profile_of_one_s_own_is_applied(bench) -> None:
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ['
        '{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}'
    )
    _, text = await bench.run("mkdir", "/tmp/x", host=HostConfig(security_opt=(f"seccomp={profile}",)))

    assert "Operation not permitted" in text


async def test_masked_and_read_only_paths(bench) -> None:
    script = "wc -c < /proc/interrupts; ls /sys/firmware; echo 1 > /proc/sys/kernel/panic; mount -o remount,rw /sys"
    _, text = await bench.run("sh", "-c", script)

    assert text.splitlines()[0] == "0"
    assert "acpi" not in text
    assert "/proc/sys/kernel/panic: Read-only file system" in text
    assert "permission denied" in text


async def test_a_privileged_container_has_what_the_host_has(bench) -> None:
    script = "grep -E 'CapEff|Seccomp:' /proc/self/status; ls /dev/kmsg; grep -c ' /sys .*\\bro\\b' /proc/mounts"
    _, text = await bench.run("sh", "-c", script, host=HostConfig(privileged=True))
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))

    words = text.split()
    assert words[1] == own.split()[1]
    assert words[3:] == ["0", "/dev/kmsg", "0"]


async def test_a_device_is_handed_over_and_others_are_denied(bench) -> None:
    host = HostConfig(devices=(DeviceMapping(path_on_host="/dev/fuse", path_in_container="/dev/mine"),))
    script = ": < /dev/mine && echo mine; mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk; rm /tmp/disk"
    _, text = await bench.run("sh", "-c", script, host=host)

    assert "mine\n" in text
    assert "/tmp/disk: Operation not permitted" in text


async def test_a_missing_device_names_it_and_leaves_nothing(bench) -> None:
    host = HostConfig(devices=(DeviceMapping(path_on_host="/dev/nope"),))
    with pytest.raises(InvalidArgument, match='custom device "/dev/nope": no such file or directory'):
        await bench.create(bench.plan("true", host=host))
    assert bench.runtime.containers() == []


async def test_ulimits_user_groups_and_shm(bench) -> None:
    _, text = await bench.run(
        "sh",
        "-c",
        "ulimit -n; id; grep ' /dev/shm ' /proc/mounts",
        host=HostConfig(ulimits=(Ulimit(name="nofile", soft=100, hard=200),), shm_size=2 << 20),
        uid=1000,
        gid=1001,
        groups=(1002, 1003),
    )
    lines = text.splitlines()

    assert lines[0] == "100"
    assert lines[1].startswith("uid=1000 gid=1001 groups=1002,1003")
    assert "size=2048k" in lines[2]


async def test_the_cgroup_is_seen_read_only(bench) -> None:
    _, text = await bench.run("sh", "-c", "mkdir /sys/fs/cgroup/pids/x /sys/fs/cgroup/x")

    assert text.count("Read-only file system") >= 1


async def test_a_private_cgroup_namespace_hides_the_host_s_path(bench) -> None:
    plan = bench.plan("cat", "/proc/self/cgroup", host=HostConfig(cgroupns_mode="private"))
    ident = await bench.create(plan)
    await bench.runtime.start(ident)
    await bench.runtime.wait(ident)

    assert ident not in bench.log(ident)


async def test_the_host_s_process_namespace_can_be_joined(bench) -> None:
    _, text = await bench.run("sh", "-c", f"ls -d /proc/{os.getpid()}", joined={"pid": ""})

    assert text == f"/proc/{os.getpid()}\n"
