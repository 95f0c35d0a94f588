"""Streams between the loop and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from swarmlet_agent.archive.bridge import Upload, finished, from_thread
from swarmlet_agent.threads import own_thread


async def test_items_made_in_a_thread_come_in_order_and_errors_come_through() -> None:
    def pieces() -> Iterator[int]:
        assert threading.current_thread() is not threading.main_thread()
        yield from (1, 2, 3)
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"):
        async for piece in from_thread(pieces()):
            got.append(piece)
    assert got == [1, 2, 3]


async def test_being_cancelled_waits_for_the_thread_and_undoes_what_it_made() -> None:
    release, undone = threading.Event(), []

    def work() -> str:
        assert release.wait(10)
        return "made"

    waiting = asyncio.ensure_future(finished(asyncio.to_thread(work), undo=undone.append))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    release.set()
    await asyncio.wait([waiting])
    assert waiting.cancelled() and undone == ["made"]


async def test_many_that_wait_for_clients_leave_the_shared_threads_free() -> None:
    release = threading.Event()

    def wait() -> str:
        assert release.wait(20)
        return threading.current_thread().name

    waiting = [asyncio.ensure_future(own_thread(wait, f"own-{number}")) for number in range(50)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
    release.set()
    assert await asyncio.gather(*waiting) == [f"own-{number}" for number in range(50)]


async def test_an_error_in_an_own_thread_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        await own_thread(lambda: 1 // 0, "own")


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _all(upload: Upload) -> bytes:
    found = []
    while piece := upload.read(7):
        assert len(piece) <= 7
        found.append(piece)
    return b"".join(found)


async def test_an_upload_is_read_whole_in_a_thread() -> None:
    upload = Upload(chunks(b"a" * 10, b"b" * (2 << 20), b"c"))
    assert await asyncio.to_thread(_all, upload) == b"a" * 10 + b"b" * (2 << 20) + b"c"


async def test_an_upload_that_breaks_off_is_an_error_in_the_thread() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await asyncio.to_thread(_all, Upload(broken()))


async def test_a_thread_that_waits_for_more_is_told_to_stop() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    upload = Upload(silent())
    work = asyncio.ensure_future(asyncio.to_thread(upload.read, 10))
    await asyncio.sleep(0.05)
    upload.stop()
    with pytest.raises(ConnectionResetError):
        await work
    with pytest.raises(ConnectionResetError):
        await asyncio.to_thread(upload.read, 10)
