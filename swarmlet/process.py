"""Processes that outlive whoever started them: found again by pid and start time, waited for by pidfd.

Also the way to signal one without ever reaching another that was given its pid, and what a daemon asks of the kernel as
it starts: to be the only one of its folder, and many open files.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarmlet.errors import Conflict


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid and when its process started (clock ticks since boot): together they name one process for good."""

    pid: int
    started: int


def identify(pid: int) -> ProcessId | None:
    """None if there is no such process any more (a zombie counts as gone)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the command's name stands in parentheses and may hold any character, parentheses too.
    state, *rest = text[text.rindex(")") + 1 :].split()
    return None if state in ("Z", "X") else ProcessId(pid, int(rest[18]))


def read_pid_file(path: Path) -> ProcessId | None:
    """The process that the file names, if it is still that one."""
    try:
        words = path.read_text().split()
        named = ProcessId(int(words[0]), int(words[1]))
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return named if identify(named.pid) == named else None


def write_pid_file(path: Path, process: ProcessId) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(f"{process.pid} {process.started}\n")
    draft.replace(path)


@contextlib.contextmanager
def only_one(lock: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, which is made, while the block runs; the kernel lets go of it for a process that dies.

    taken: the message of Conflict, if another process has it.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise Conflict(taken) from err
        yield


def allow_many_files() -> tuple[int, int]:
    """Raise this process's limit of open files as far as it may; returns what it was: (soft, hard).

    The soft limit is low for the sake of programs that use select(2); a daemon with a descriptor per container
    and per connection is not one. What it starts inherits the raised limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


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


class Held:
    """A running process, our child or not, held by a pidfd until `close`."""

    def __init__(self, process: ProcessId) -> None:
        """ProcessLookupError if it has ended."""
        self.process = process
        self._handle = os.pidfd_open(process.pid)
        if identify(process.pid) != process:
            os.close(self._handle)
            raise ProcessLookupError(process.pid)
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._handle, self._ended)

    @property
    def over(self) -> bool:
        return self._over.is_set()

    async def wait(self) -> None:
        """Until it has ended."""
        await self._over.wait()

    async def end(self, patience_s: float) -> None:
        """SIGTERM, then SIGKILL if it takes longer than `patience_s`; returns once it is gone."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await self.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.wait()

    def close(self) -> None:
        """Let go of it; it runs on."""
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._handle, number)
        except ProcessLookupError:
            return  # ended meanwhile: what was wanted

    def _ended(self) -> None:
        self._loop.remove_reader(self._handle)
        self._over.set()
        try:
            os.waitpid(self.process.pid, os.WNOHANG)
        except ChildProcessError:
            return  # not our child: its parent reaps it
