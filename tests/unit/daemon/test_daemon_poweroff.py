"""Containers end in order where the host goes down, and only there."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from swarmlet.errors import NotFound
from swarmlet.model.container import ContainerCreate
from swarmlet_agent import poweroff
from swarmlet_agent.engine.container import Container, ContainerState

pytestmark = pytest.mark.looptime


class Runtime:
    """Containers by id: after how many seconds, and by which signal, each ends. None: by SIGKILL alone."""

    def __init__(self, ends: dict[str, tuple[int, float] | None]) -> None:
        self._ends = ends
        self._gone = {ident: asyncio.Event() for ident in ends}
        self.sent: list[tuple[float, str, int]] = []

    async def kill(self, container_id: str, number: int, *, everything: bool = False) -> None:
        if container_id not in self._ends:
            raise NotFound("container", container_id)
        loop = asyncio.get_running_loop()
        self.sent.append((loop.time(), container_id, number))
        wanted = self._ends[container_id]
        if number == signal.SIGKILL:
            self._gone[container_id].set()
        elif wanted is not None and wanted[0] == number:
            loop.call_later(wanted[1], self._gone[container_id].set)

    async def wait(self, container_id: str) -> object:
        return await self._gone[container_id].wait()


def container(
    ident: str, status: str = "running", *, stop_signal: str = "", stop_timeout: int | None = None
) -> Container:
    request = ContainerCreate(stop_signal=stop_signal, stop_timeout=stop_timeout)
    return Container(
        id=ident, name=ident, created_at=1, image_id="", image_ref="busybox", args=("sh",), request=request,
        state=ContainerState(status=status),
    )  # fmt: skip


async def test_each_gets_its_own_signal_and_its_own_time_all_at_once() -> None:
    term, quit_, kill = signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL
    runtime = Runtime({"web": (quit_, 2.0), "shell": None, "slow": None, "for-ever": None, "idle": None, "held": None})
    await poweroff.end_containers(runtime, [
        container("web", stop_signal="SIGQUIT"), container("shell"), container("slow", stop_timeout=20),
        container("for-ever", stop_timeout=-1), container("idle", "exited"), container("held", "paused"),
        container("lost"),
    ])
    assert runtime.sent == [
        (0.0, "web", quit_), (0.0, "shell", term), (0.0, "slow", term), (0.0, "for-ever", term),
        (10.0, "shell", kill), (20.0, "slow", kill), (poweroff.MOST_S, "for-ever", kill),
    ]


@pytest.mark.looptime(False)
@pytest.mark.parametrize(("said", "down"), [("stopping", True), ("running", False), ("degraded", False)])
async def test_only_systemd_says_that_the_host_goes_down(
    said: str, down: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "systemctl"
    asked.write_text(f"#!/bin/sh\n[ $1 = is-system-running ] && echo {said}\nexit 1\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(poweroff, "SYSTEMD", tmp_path)
    assert await poweroff.host_goes_down() is down
    monkeypatch.setattr(poweroff, "SYSTEMD", tmp_path / "none")
    assert not await poweroff.host_goes_down()
