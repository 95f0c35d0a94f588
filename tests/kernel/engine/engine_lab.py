"""A whole engine on the real kernel: images, conmon and the OCI runtime, overlay, local networks, volumes.

A scenario runs in a child process in a network namespace of its own, so the machine's own network is not
touched; folders, cgroups and the bridge have names of their own and are gone at its end. A scenario may start
a further child (`agent_killed_after`), whose engine dies by SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from swarmlet.demo_image import busybox_archive
from swarmlet.model.container import ContainerCreate, HostConfig
from swarmlet_agent.adapters import host_traits
from swarmlet_agent.engine.container import ExecRequest
from swarmlet_agent.engine.engine import Engine
from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.journal import Journal
from swarmlet_agent.net.bridge import BridgeNetworks
from swarmlet_agent.runtime.conmon_runtime import ConmonRuntime
from swarmlet_agent.volumes.store import VolumeStore

Scenario = Callable[["Lab"], Awaitable[None]]
TIMEOUT_S = 90


def on_the_kernel(scenario: Scenario) -> Callable[[], None]:
    """A test that runs `scenario` in a child process, and fails with the child's words."""

    @functools.wraps(scenario)
    def test() -> None:
        folder = Path(tempfile.mkdtemp(prefix="swl-englab-"))
        try:
            result = _child(folder, scenario, isolate=True)
            assert result.returncode == 0, f"{scenario.__name__} failed:\n{result.stdout}{result.stderr}"
            left = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
            assert left == []
        finally:
            shutil.rmtree(folder)

    test.scenario = scenario  # type: ignore[attr-defined]
    del test.__wrapped__  # pytest would look for fixtures in the scenario's signature
    return test


def _child(folder: Path, scenario: Scenario, *, isolate: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", __file__, str(folder), scenario.__module__, scenario.__name__]
    prefix = ["unshare", "--net", "--"] if isolate else []
    kind = "whole" if isolate else "part"
    return subprocess.run(
        [*prefix, *command, kind], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


class Lab:
    """What scenarios work with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cgroup_parent = f"/swl-englab-{folder.name[-8:]}"
        self.engine: Engine
        self.images: ImageStore
        self.runtime: ConmonRuntime
        self.networks: BridgeNetworks

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Engine]:
        """An engine from start to close; containers outlive it."""
        data, run = self.folder / "data", self.folder / "run"
        async with contextlib.AsyncExitStack() as stack:
            journal = Journal(data / "journal.db")
            stack.callback(journal.close)
            self.images = ImageStore(data, journal)
            volumes = VolumeStore(data, journal)
            self.networks = BridgeNetworks(
                run, data, journal, bridge_name="englab0", default_subnet="172.29.78.0/24"
            )
            self.runtime = ConmonRuntime(run, data_dir=data, cgroup_parent=self.cgroup_parent)
            self.engine = Engine(
                self.images, self.runtime, self.networks, volumes, journal, data_dir=data, run_dir=run,
                cgroup_parent=self.cgroup_parent,
            )  # fmt: skip
            self.networks.bind(self.engine)
            await self.images.start()
            stack.push_async_callback(self.images.close)
            await volumes.start()
            stack.push_async_callback(volumes.close)
            await self.networks.start()
            stack.push_async_callback(self.networks.close)
            await self.runtime.open()
            stack.push_async_callback(self.runtime.close)
            await self.engine.start(host_traits(self.runtime.supports(), None, None))
            stack.push_async_callback(self.engine.close)
            yield self.engine

    async def load_busybox(self, **config: Any) -> None:
        archive = busybox_archive(Path("/usr/bin/busybox"), "busybox:latest", config=config or None)

        async def pieces() -> AsyncIterator[bytes]:
            yield archive

        async def ignore(_progress: Any) -> None:
            return None

        await self.images.load(pieces(), progress=ignore)

    async def run(self, *cmd: str, name: str = "", host: HostConfig | None = None, **config: Any) -> str:
        request = ContainerCreate(image="busybox", cmd=cmd, host_config=host or HostConfig(), **config)
        record, _ = await self.engine.create(name, request)
        await self.engine.start_container(record.id)
        return record.id

    async def output(self, ident: str, *cmd: str, **more: Any) -> tuple[int | None, str]:
        """(exit code, stdout) of an exec."""
        run = self.engine.exec_create(ident, ExecRequest(cmd=cmd, attach_stdout=True, **more))
        streams = await self.engine.exec_start(run)
        assert streams is not None
        text = b"".join([piece async for stream, piece in streams if stream == 1]).decode()
        return self.engine.exec_inspect(run).exit_code, text

    def killed_agent(self, part: Scenario) -> None:
        """Run `part` in a further process that is killed with -9 at its end."""
        result = _child(self.folder, part, isolate=False)
        assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr

    def leftovers(self) -> list[str]:
        """Mounts, namespaces, cgroups and files of containers that exist now."""
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found = [line for line in mounts if str(self.folder) in line and ("overlay" in line or "nsfs" in line)]
        for folder in ("data/containers", "data/containers-rootfs", "run/containers", "run/engine", "run/exits"):
            if (self.folder / folder).exists():
                found += [f"{folder}/{name}" for name in os.listdir(self.folder / folder) if not name.startswith(".")]
        memory = Path("/sys/fs/cgroup/memory" + self.cgroup_parent)
        if memory.exists():
            found += [str(item) for item in memory.iterdir() if item.is_dir() and item.name != "conmon"]
        return found


async def _whole(lab: Lab, scenario: Scenario) -> None:
    try:
        await scenario(lab)
    finally:
        async with lab.agent() as engine:
            for record in engine.list():
                await engine.remove(record.id, force=True, volumes=True)
            await engine.close()
            left = lab.leftovers()
            await lab.networks.teardown()
        await lab.runtime.teardown()  # with the journal closed, nothing in the folders is in use
    assert left == []


async def _part(lab: Lab, scenario: Scenario) -> None:
    async with lab.agent():
        await scenario(lab)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, module, name, kind = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    test = getattr(importlib.import_module(module), name)
    scenario = getattr(test, "scenario", test)
    if kind == "whole":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asyncio.run((_whole if kind == "whole" else _part)(Lab(Path(folder)), scenario))


if __name__ == "__main__":
    main()
