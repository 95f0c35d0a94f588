"""Files that containers are supplied with, on the real kernel: where they are, and how long."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from engine_lab import Lab, on_the_kernel

from swarmlet.errors import Unavailable
from swarmlet.model.container import ContainerCreate, HostConfig
from swarmlet_agent.engine.container import SuppliedFile
from swarmlet_agent.runtime import linux

pytestmark = pytest.mark.kernel

FILES = (
    SuppliedFile(target="/run/secrets/one"), SuppliedFile(target="/etc/two", uid=1000, gid=12, mode=0o400),
    SuppliedFile(target="/dev/shm/three"), SuppliedFile(target="/etc/hosts"),
)
CONTENTS = [b"first", b"second", b"third", b"127.0.0.9 mine\n"]


async def _make(lab: Lab, name: str, *, supply: bool = True, **host: object) -> str:
    request = ContainerCreate(image="busybox", cmd=("sleep", "1000"), host_config=HostConfig(**host))  # type: ignore[arg-type]
    record, _ = await lab.engine.create(name, request, supplied=FILES)
    if supply:
        await lab.engine.supply(name, CONTENTS)
    return record.id


def _mounts(lab: Lab) -> list[str]:
    places = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return [os.path.basename(place) for place in places if place.startswith(str(lab.folder / "run" / "supplies"))]


@on_the_kernel
async def test_files_have_owner_mode_and_content_with_both_runtimes(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        for runtime in ("crun", "runc"):
            ident = await _make(lab, runtime, runtime=runtime, readonly_rootfs=True)
            await engine.start_container(ident)
            _, said = await lab.output(ident, "cat", "/run/secrets/one", "/etc/two", "/dev/shm/three", "/etc/hosts")
            assert said.encode() == b"".join(CONTENTS)
            _, said = await lab.output(ident, "stat", "-c", "%u:%g %a", "/run/secrets/one", "/etc/two")
            assert said.splitlines() == ["0:0 444", "1000:12 400"]
            code, _ = await lab.output(ident, "sh", "-c", "echo x > /etc/two")
            assert code
            code, _ = await lab.output(ident, "cat", "/etc/two", user="1001")
            assert code


@on_the_kernel
async def test_without_its_files_nothing_starts_and_they_go_with_the_end(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        ident = await _make(lab, "web", supply=False)
        with pytest.raises(Unavailable, match="needs secrets or configs"):
            await engine.start_container(ident)
        await engine.supply(ident, CONTENTS)
        await engine.start_container(ident)
        assert _mounts(lab) == [ident]
        await engine.restart(ident, timeout_s=0)
        assert (await lab.output(ident, "cat", "/run/secrets/one"))[1] == "first"
        await engine.supply(ident, [b"other"] * 4)  # it runs: nothing changes
        assert (await lab.output(ident, "cat", "/run/secrets/one"))[1] == "first"
        await engine.stop(ident, timeout_s=0)
        await engine.settle(ident)
        assert _mounts(lab) == []
        with pytest.raises(Unavailable):
            await engine.start_container(ident)
        await engine.supply(ident, CONTENTS)
        await engine.remove(ident)
        await engine.close()
        assert _mounts(lab) == [] and not list((lab.folder / "run" / "supplies").iterdir())


async def _run_and_die(lab: Lab) -> None:
    await lab.load_busybox()
    for name in ("runs", "waits"):
        await _make(lab, name)
    await lab.engine.start_container("runs")
    half = lab.folder / "run" / "supplies" / await _make(lab, "half", supply=False)
    half.mkdir()  # as if it had been killed in the middle
    linux.mount("tmpfs", str(half), "tmpfs")
    (half / "0").write_bytes(b"incomplete")


@on_the_kernel
async def test_they_outlive_a_killed_agent_and_what_it_left_half_done_is_made_anew(lab: Lab) -> None:
    await asyncio.to_thread(lab.killed_agent, _run_and_die)
    async with lab.agent() as engine:
        assert (await lab.output("runs", "cat", "/run/secrets/one"))[1] == "first"
        await engine.start_container("waits")
        assert (await lab.output("waits", "cat", "/run/secrets/one"))[1] == "first"
        with pytest.raises(Unavailable):
            await engine.start_container("half")
