"""What the cluster is told where an agent ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from swarmlet_agent import membership
from swarmlet_agent.membership import Member
from swarmlet_agent.session.identity import NodeIdentity


class Line:
    error = ""

    def __init__(self) -> None:
        self.stops: list[tuple[bool, bool]] = []

    async def start(self, identity: NodeIdentity, managers: Sequence[str], *, is_manager: bool) -> None:
        raise AssertionError("nothing is started")

    async def ready(self) -> None:
        raise AssertionError("nothing is waited for")

    async def stop(self, *, forget: bool, back_soon: bool = False) -> None:
        self.stops.append((forget, back_soon))


class NoManager:
    async def ensure(self) -> None: ...

    async def remove(self) -> None: ...


@pytest.mark.parametrize("down", [False, True])
async def test_the_cluster_waits_for_an_agent_that_restarts_and_not_for_a_host_that_goes_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    async def goes_down() -> bool:
        return down

    async def answers() -> bool:
        return True

    monkeypatch.setattr(membership, "host_goes_down", goes_down)
    line = Line()
    more: dict[str, Any] = {"hostname": "a", "default_address": lambda: "127.0.0.1", "ping_manager": answers}
    member = Member(tmp_path, tmp_path / "m.sock", NoManager(), line, **more, manager_port=1, node_port=2)
    await member.close()
    assert line.stops == [(False, not down)]
