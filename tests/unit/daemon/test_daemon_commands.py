"""Short commands of the host: how they end."""

from __future__ import annotations

import asyncio

import pytest

from swarmlet_agent.commands import output_of


async def test_one_that_is_cancelled_just_when_its_process_has_ended_is_cancelled(
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
    task = asyncio.create_task(output_of("nft", timeout_s=10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_printed_counts_and_what_takes_too_long_is_ended() -> None:
    assert await output_of("sh", "-c", "echo said; echo lost >&2; exit 3", timeout_s=10) == b"said\n"
    with pytest.raises(TimeoutError):
        await output_of("sleep", "60", timeout_s=0.1)
