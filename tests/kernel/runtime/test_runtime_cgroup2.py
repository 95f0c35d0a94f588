"""The version 2 layout, on this kernel: in a mount namespace where /sys/fs/cgroup is a cgroup2 mount.

On a machine whose controllers belong to version 1 hierarchies there are no limits to test this way, but
creation, membership, freezing, killing at once and removal are the real thing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

_INSIDE = """
import asyncio, os, signal, subprocess, sys
from pathlib import Path

subprocess.run(["mount", "--make-rprivate", "/"], check=True)
if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
    subprocess.run(["umount", "-R", "/sys/fs/cgroup"], check=True)
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)

from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet_agent.runtime import devices
from swarmlet_agent.runtime.conmon_runtime import ConmonRuntime
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan

run, data, parent = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
if not int(status["CapEff"], 16) >> 24 & 1:
    # Device rules are BPF programs, for which crun raises a limit; that takes CAP_SYS_RESOURCE.
    devices.rules = lambda host, found: None

def plan(ident, *args):
    return ContainerPlan(
        id=ident, config=ContainerConfig(), host=HostConfig(), rootfs=data / "rootfs", args=args, env=("PATH=/bin",),
        cwd="/", uid=0, gid=0, groups=(), hostname="box", cgroup_path=f"{parent}/{ident}", netns_path=None)

async def main():
    runtime = ConmonRuntime(run, data_dir=data, cgroup_parent=parent, runtime="crun")
    await runtime.open()
    assert runtime.supports().cgroup_version == "2"
    ident = "a" * 64
    try:
        await use(runtime, ident)
    finally:
        await runtime.delete(ident)
        await runtime.teardown()
    assert not Path(f"/sys/fs/cgroup{parent}").exists()
    print("all well")

async def use(runtime, ident):
    script = "sleep 101 & while :; do echo x; sleep 0.01; done"
    await runtime.create(plan(ident, "sh", "-c", script), log_path=data / "log")
    await runtime.start(ident)
    folder = Path(f"/sys/fs/cgroup{parent}")
    conmon = (run / "containers" / ident / "conmon").read_text().split()[0]
    assert conmon in (folder / "conmon" / "cgroup.procs").read_text().split()
    assert str(await runtime.alive(ident)) in (folder / ident / "cgroup.procs").read_text().split()
    running = await runtime.exec(
        ident, ExecPlan(args=("cat", "/proc/self/cgroup"), env=("PATH=/bin",), cwd="/", uid=0, gid=0, groups=()))
    seen = b"".join([data async for _, data in running.streams])
    assert await running.wait() == 0
    assert seen.splitlines()[-1] == b"0::/", seen
    await asyncio.sleep(0.1)
    usage = await runtime.usage(ident)
    assert usage.cpu_total_ns > 0 and usage.memory_limit_bytes > 0
    await runtime.pause(ident)
    size = (data / "log").stat().st_size
    await asyncio.sleep(0.1)
    assert (data / "log").stat().st_size == size > 0
    await runtime.resume(ident)
    assert len(await runtime.pids(ident)) >= 2
    await runtime.pause(ident)
    await runtime.kill(ident, signal.SIGKILL, everything=True)
    assert (await runtime.wait(ident)).code == 137
    await runtime.delete(ident)
    assert not (folder / ident).exists()

asyncio.run(main())
"""


def test_containers_live_and_die_on_cgroup_version_2(short_folder: Path, busybox_root: Path, bench_parent: str) -> None:
    shutil.copytree(busybox_root, short_folder / "data" / "rootfs", symlinks=True)
    words = ["unshare", "--mount", sys.executable, "-c", _INSIDE, str(short_folder / "run")]
    done = subprocess.run(
        [*words, str(short_folder / "data"), bench_parent], capture_output=True, text=True, timeout=60
    )

    assert done.stdout == "all well\n", done.stderr
