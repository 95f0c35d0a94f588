"""What the kernel refused is tried again by itself, and the operator is told meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarmlet.errors import Internal
from swarmlet.wire.networking import MeshInfo, MeshNodeInfo, MeshPort
from swarmlet_agent.journal import Journal
from swarmlet_agent.net.overlay import entry
from swarmlet_agent.net.overlay.entry import KERNEL_PROBLEM, MeshEntry
from swarmlet_agent.net.overlay.meshtold import whole_news

MESH = MeshInfo(
    nodes=(MeshNodeInfo(id="a", number=1, address="192.0.2.1"),), ports=(MeshPort(protocol="tcp", port=80),)
)


class Kernel:
    """A mesh that refuses as often as it was told to."""

    def __init__(self) -> None:
        self.refusals = 0
        self.ports = 0

    def ensure(self, state: Any) -> None:
        self._refuse()
        self.ports = len(state.ports)

    def remove(self) -> None:
        self._refuse()
        self.ports = 0

    def cut(self, addresses: set[str]) -> None: ...

    def _refuse(self) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise Internal("out of memory")


class Ground:
    def __init__(self, journal: Journal, kernel: Kernel) -> None:
        self.journal = journal
        self.kernel = SimpleNamespace(mesh=kernel, has_ipv6=True)
        self.ports = SimpleNamespace(take_for_mesh=lambda wanted: {}, freed=asyncio.Event())
        self.catalog = SimpleNamespace(bridges=list)
        self.problems: dict[str, tuple[str, ...]] = {}

    async def run(self, work: Any, *args: Any) -> Any:
        return work(*args)

    def set_problems(self, source: str, problems: tuple[str, ...]) -> None:
        self.problems[source] = problems


async def test_ports_that_the_kernel_refused_are_published_as_soon_as_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "RETRY_FLOOR_S", 0.0)
    monkeypatch.setattr(entry, "RETRY_BASE_S", 0.001)
    journal, kernel = Journal(tmp_path / "journal.db"), Kernel()
    ground = Ground(journal, kernel)
    mesh = MeshEntry(ground)  # type: ignore[arg-type]
    mending = asyncio.create_task(mesh.mend())

    async def until_mended() -> None:
        async with asyncio.timeout(30):
            while ground.problems[KERNEL_PROBLEM]:
                await asyncio.sleep(0.001)

    try:
        kernel.refusals = 4
        await mesh.told(whole_news(MESH), "a", full=True)
        (problem,) = ground.problems[KERNEL_PROBLEM]
        assert "out of memory" in problem and "tried again" in problem and kernel.ports == 0
        await until_mended()
        assert kernel.ports == 1
        # That it goes is tried again as well.
        kernel.refusals = 4
        await mesh.told(None, "a", full=True)
        assert ground.problems[KERNEL_PROBLEM] and kernel.ports == 1
        await until_mended()
        assert kernel.ports == 0
    finally:
        mending.cancel()
        await asyncio.gather(mending, return_exceptions=True)
        journal.close()
