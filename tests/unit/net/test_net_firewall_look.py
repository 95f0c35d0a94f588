"""The look at other firewalls: how it ends."""

from __future__ import annotations

import asyncio

import pytest

from swarmlet_agent.net import firewall_check


async def test_a_look_that_is_cancelled_just_when_its_process_has_ended_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else whoever looks again and again goes on for ever, and the agent's end waits for it."""

    class Ended:
        async def communicate(self) -> tuple[bytes, bytes]:
            await asyncio.Event().wait()
            raise AssertionError

        def kill(self) -> None:
            raise ProcessLookupError

        async def wait(self) -> int:
            return 0

    async def start(*words: str, **options: object) -> Ended:
        return Ended()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    task = asyncio.create_task(firewall_check._output("nft"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
