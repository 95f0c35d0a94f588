"""A process that outlives whoever started it: found again by pid and start time, waited for by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid is given away again some day; with its start time (clock ticks since boot) it is one process."""

    pid: int
    started: int


def identify(pid: int) -> ProcessId | None:
    """None if there is no such process, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the name in parentheses may itself hold anything; after it come state (3) … starttime (22).
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[19]))


def read_pid_file(path: Path) -> ProcessId | None:
    """The process that the file names, if it still runs."""
    try:
        pid, started = (int(word) for word in path.read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    found = identify(pid)
    return found if found == ProcessId(pid, started) else None


def write_pid_file(path: Path, process: ProcessId) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(f"{process.pid} {process.started}\n")
    draft.replace(path)


def listener_of(path: Path) -> ProcessId | None:
    """The process that listens on a unix socket (unix(7): SO_PEERCRED is that of listen()); None if none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:  # not there, refused, or frozen with a full backlog: nobody we could identify
            return None
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return identify(pid)


def arguments(process: ProcessId) -> list[str]:
    """Its command line; [] if it is gone."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Watched:
    """A running process, ours or not, held by a pidfd: signals can never reach another one. Close it."""

    def __init__(self, process: ProcessId) -> None:
        """ProcessLookupError if it is not running any more."""
        self.process = process
        self._fd = os.pidfd_open(process.pid)
        if identify(process.pid) != process:
            os.close(self._fd)
            raise ProcessLookupError(process.pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._on_end)

    async def wait(self) -> None:
        await self._ended.wait()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended: so much the better
            signal.pidfd_send_signal(self._fd, number)

    async def end(self, patience_s: float) -> None:
        """SIGTERM, and SIGKILL if that does not help in time; returns once it has ended."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.wait()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        self._ended.set()
        with contextlib.suppress(ChildProcessError):  # adopted: its zombie is somebody else's
            os.waitpid(self.process.pid, os.WNOHANG)
