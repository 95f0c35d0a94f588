"""A real runtime on a busybox root file system, in folders and cgroups of its own, with nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.runtime.conmon_runtime import ConmonRuntime
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, Exit

PARENT = f"/swl-test-{os.getpid()}"
ENV = ("PATH=/bin",)


@pytest.fixture
def bench_parent() -> str:
    return PARENT


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("busybox")
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "root"):
        (root / name).mkdir()
    shutil.copy("/usr/bin/busybox", root / "bin" / "busybox")
    listed = subprocess.run(["/usr/bin/busybox", "--list"], check=True, capture_output=True, text=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    root.chmod(0o755)
    (root / "etc" / "plain").write_text("not a program")
    (root / "etc" / "broken").write_text("#!/nope\n")
    (root / "etc" / "broken").chmod(0o755)
    return root


@dataclass
class Bench:
    """What tests do with a runtime."""

    runtime: ConmonRuntime
    folder: Path
    root: Path
    made: list[str] = field(default_factory=list)

    def plan(
        self, *args: str, host: HostConfig | None = None, config: ContainerConfig | None = None, **more: Any
    ) -> ContainerPlan:
        ident = new_hex_id()
        values: dict[str, Any] = {
            "id": ident,
            "config": config or ContainerConfig(),
            "host": host or HostConfig(),
            "rootfs": self.root,
            "args": args,
            "env": ENV,
            "cwd": "/",
            "uid": 0,
            "gid": 0,
            "groups": (),
            "hostname": "box",
            "cgroup_path": f"{PARENT}/{ident}",
            "netns_path": None,
        }
        return ContainerPlan(**{**values, **more})

    def log_path(self, ident: str) -> Path:
        return self.folder / "data" / "logs" / ident

    async def create(self, plan: ContainerPlan) -> str:
        self.made.append(plan.id)
        await self.runtime.create(plan, log_path=self.log_path(plan.id))
        return plan.id

    async def launch(self, *args: str, **more: Any) -> str:
        ident = await self.create(self.plan(*args, **more))
        await self.runtime.start(ident)
        return ident

    async def run(self, *args: str, **more: Any) -> tuple[Exit, str]:
        """Run to the end: the exit, and the log's text without times and stream names."""
        ident = await self.launch(*args, **more)
        async with asyncio.timeout(30):
            found = await self.runtime.wait(ident)
        text = self.log(ident)
        await self.runtime.delete(ident)
        return found, text

    def log(self, ident: str) -> str:
        lines = self.log_path(ident).read_text().splitlines(keepends=True)
        pieces = (line.split(" ", 3) for line in lines)
        return "".join(text if kind == "F" else text[:-1] for _, _, kind, text in pieces)

    def exec_plan(self, *args: str, **more: Any) -> ExecPlan:
        values: dict[str, Any] = {"args": args, "env": ENV, "cwd": "/", "uid": 0, "gid": 0, "groups": ()}
        return ExecPlan(**{**values, **more})

    async def exec(self, ident: str, *args: str, **more: Any) -> tuple[int, bytes, bytes]:
        """(exit code, stdout, stderr)"""
        running = await self.runtime.exec(ident, self.exec_plan(*args, **more))
        async with asyncio.timeout(30):
            outputs = await collect(running.streams)
            return await running.wait(), outputs.get(1, b""), outputs.get(2, b"")


async def collect(streams: Any) -> dict[int, bytes]:
    """Everything until the end, by stream."""
    found: dict[int, bytearray] = {}
    async for number, data in streams:
        found.setdefault(number, bytearray()).extend(data)
    return {number: bytes(data) for number, data in found.items()}


def left_behind(folder: Path) -> list[str]:
    """Mounts and cgroups of this test run."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    # A walk passes over the groups of others that go meanwhile, as a glob does not.
    groups = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.endswith(PARENT)]
    return [*mounts, *groups]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="swl-rt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


Opener = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def open_bench(short_folder: Path, busybox_root: Path) -> AsyncIterator[Opener]:
    """Makes benches on the same folders; afterwards everything of theirs is gone."""
    opened: list[Bench] = []
    root = short_folder / "data" / "rootfs"

    async def make(runtime: str = "auto") -> Bench:
        if not root.exists():
            shutil.copytree(busybox_root, root, symlinks=True)
        made = ConmonRuntime(
            short_folder / "run", data_dir=short_folder / "data", cgroup_parent=PARENT, runtime=runtime
        )
        await made.open()
        opened.append(Bench(made, short_folder, root))
        return opened[-1]

    yield make
    last = opened[-1].runtime
    for ident in last.containers():
        await last.delete(ident)
    for bench in opened:
        await bench.runtime.close()
    await last.teardown()
    assert left_behind(short_folder) == []


@pytest.fixture
async def bench(open_bench: Opener) -> Bench:
    return await open_bench()
