"""The agent's end of the unpacking processes: started when layers come, ended when none are left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from swarmlet.errors import Internal
from swarmlet_agent.images.feed import BadLayer
from swarmlet_agent.images.unpack import Limits, Unpacked
from swarmlet_agent.images.worker import LENGTH, Job, Report

#: Layers unpacked at once. More than the cores gains nothing; more than four wears the disk.
MAX_WORKERS = max(1, min(4, os.cpu_count() or 1))
_END_TIMEOUT_S = 5.0


class _Worker:
    """One process; does one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._in, self._out = process, process.stdin, process.stdout

    async def run(self, job: Job, progress: Callable[[int], Awaitable[None]]) -> Report:
        data = msgspec.json.encode(job)
        try:
            self._in.write(LENGTH.pack(len(data)) + data)
            await self._in.drain()
            while True:
                (size,) = LENGTH.unpack(await self._out.readexactly(LENGTH.size))
                report = msgspec.json.decode(await self._out.readexactly(size), type=Report)
                if report.finished:
                    return report
                await progress(report.consumed)
        except (asyncio.IncompleteReadError, ConnectionError) as err:
            code = await self._process.wait()
            raise Internal(
                f"layer {job.label} cannot be unpacked: the unpacking process ended with code {code}"
            ) from err

    async def end(self, *, kill: bool) -> None:
        """Ends by itself when its input does; killed if it is in the middle of something."""
        if kill and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._in.close()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class UnpackPool:
    """`async with pool.in_use(): await pool.unpack(...)`; processes live while someone uses the pool."""

    def __init__(self, limits: Limits | None = None, size: int = MAX_WORKERS) -> None:
        limits = limits or Limits()
        self._limits = (limits.tar_bytes, limits.entries, limits.reserve_bytes)
        self._free = asyncio.Semaphore(size)
        self._size = size
        self._idle: list[_Worker] = []
        self._users = 0
        self._left = 0  # layers that are to come, or under way
        self._starting: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def in_use(self, layers: int = 1) -> AsyncIterator[None]:
        """layers: about how many will come. Processes for them start now: the layers have yet to be fetched."""
        self._users += 1
        self._left += layers
        if layers and self._users == 1:
            self._starting = asyncio.create_task(self._start(min(layers, self._size)), name="start unpackers")
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._left = 0
                await _finish(self._end())

    async def _start(self, count: int) -> None:
        for _ in range(count):
            self._idle.append(await _start())

    async def _end(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            await asyncio.wait([starting])
            starting.exception()  # whoever needed the process has tried again, and told
        while self._idle and not self._users:
            await self._idle.pop().end(kill=False)

    async def unpack(
        self, source: Path, offset: int, length: int, folder: Path, *, label: str, expected: str | None,
        progress: Callable[[int], Awaitable[None]],
    ) -> Unpacked:
        """Into the empty `folder`. BadLayer, or Internal for the disk's troubles. Cancelling kills the process."""
        async with self._free:
            if self._starting is not None and not self._idle:
                await asyncio.wait([self._starting])
            worker = self._idle.pop() if self._idle else await _start()
            # With a layer for each core a second thread would only wait for its turn.
            ahead = self._left < (os.cpu_count() or 1)
            job = Job(str(source), offset, length, str(folder), label, expected, self._limits, ahead)
            try:
                report = await worker.run(job, progress)
            except BaseException:  # cancelled, too: undo, and pass it on
                await _finish(worker.end(kill=True))
                raise
            finally:
                self._left -= 1
            self._idle.append(worker)
        if report.bad_layer:
            raise BadLayer(report.error)
        if report.error:
            raise Internal(report.error)
        implied = tuple(path.encode("latin-1") for path in report.implied)
        return Unpacked(report.diff_id, report.tar_bytes, report.size_bytes, implied)


async def _start() -> _Worker:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "swarmlet_agent.images.worker",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=64 << 20,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    return _Worker(process)


async def _finish(ending: Awaitable[None]) -> None:
    """Ends of processes are waited for even while being cancelled: they are short and leave no zombie."""
    task = asyncio.ensure_future(ending)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
