"""Further processes in a running container, by the OCI runtime's `exec` with our own pipes or terminal.

The runtime's process stays as the parent of the exec and ends with its exit code. It writes the pid file once
the program runs; if it ends without one, what it wrote to stderr is why.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import struct
import termios
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Internal
from swarmlet_agent.runtime import failures
from swarmlet_agent.runtime.conmon import ENVIRONMENT
from swarmlet_agent.runtime.launch import Launcher
from swarmlet_agent.runtime.pipes import PipeStreams
from swarmlet_agent.runtime.spawner import Child
from swarmlet_agent.runtime.types import ExecPlan
from swarmlet_agent.runtime.watch import FolderWatch

START_TIMEOUT_S = 60.0
_ENV = {"PATH": ENVIRONMENT["PATH"]}
_STDERR = 2


class RunningExec:
    """An exec that was started."""

    def __init__(self, child: Child, pid: int, streams: PipeStreams) -> None:
        self._child = child
        self._pid = pid
        self._streams = streams
        self._watch = asyncio.get_running_loop().create_task(self._tell_streams(), name=f"exec {pid}")

    @property
    def pid(self) -> int:
        """The process's number on the host."""
        return self._pid

    @property
    def streams(self) -> PipeStreams:
        return self._streams

    async def resize(self, rows: int, columns: int) -> None:
        """Without a terminal, or after its end, nothing happens."""
        if (terminal := self._streams.terminal) is not None:
            _set_size(terminal, rows, columns)

    async def wait(self) -> int:
        return await self._child.wait()

    async def forget(self) -> None:
        """This process ends; the exec goes on as far as it can without its streams."""
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch
        self._child.forget()
        self._streams.release()

    @property
    def ended(self) -> bool:
        return self._watch.done()

    async def _tell_streams(self) -> None:
        await self._child.wait()
        self._streams.process_ended()


@dataclass(frozen=True, slots=True)
class ExecStarter:
    """What starting an exec takes. folder: short-lived files, watched by `watch`."""

    launcher: Launcher
    watch: FolderWatch
    folder: Path

    async def start(self, container_id: str, plan: ExecPlan, process: dict[str, Any]) -> RunningExec:
        """StartFailed if the program cannot be run; Internal if the runtime does not answer in time."""
        name = os.urandom(8).hex()
        spec, pid_file = self.folder / f"{name}.json", self.folder / name
        spec.write_bytes(msgspec.json.encode(process))
        started = self.watch.expect(pid_file)
        words = ["exec", "--process", str(spec), "--pid-file", str(pid_file)]
        try:
            if plan.tty:
                child, streams = await self._with_terminal(words, container_id, plan, self.folder / f"{name}.sock")
            else:
                child, streams = await self._with_pipes(words, container_id, plan)
            try:
                pid = await _first_sign(child, started, pid_file)
            except BaseException:
                await _end(child, streams)
                raise
            if pid is None:
                text = await _complaint(streams)
                streams.release()
                raise failures.exec_failed(text, plan.args[0] if plan.args else "")
            return RunningExec(child, pid, streams)
        finally:
            started.cancel()
            for file in (spec, pid_file):
                file.unlink(missing_ok=True)

    async def _with_pipes(self, words: list[str], container_id: str, plan: ExecPlan) -> tuple[Child, PipeStreams]:
        with ExitStack() as theirs, ExitStack() as ours:
            fds: dict[int, int] = {}
            outputs: dict[int, int] = {}
            stdin = None
            for number in (1, 2):
                reading, writing = _pipe(ours, theirs)
                fds[number] = writing
                outputs[reading] = number
            if plan.open_stdin:
                theirs_in, stdin = _pipe(theirs, ours)
                fds[0] = theirs_in
            child = await self.launcher.spawner.spawn(self.launcher.command.oci(*words, container_id), _ENV, fds)
            ours.pop_all()
            return child, PipeStreams(outputs, stdin, tty=False)

    async def _with_terminal(
        self, words: list[str], container_id: str, plan: ExecPlan, path: Path
    ) -> tuple[Child, PipeStreams]:
        """The runtime makes the terminal and sends its other end over a socket."""
        with ExitStack() as theirs, ExitStack() as ours:
            listener = theirs.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _bind(listener, path)
            theirs.callback(path.unlink, missing_ok=True)
            reading, writing = _pipe(ours, theirs)
            words = [*words, "--tty", "--console-socket", str(path)]
            child = await self.launcher.spawner.spawn(
                self.launcher.command.oci(*words, container_id), _ENV, {1: writing, _STDERR: writing}
            )
            terminal = await _receive_terminal(listener, child)
            if terminal is None:  # it failed before: its complaint is in the pipe
                ours.pop_all()
                return child, PipeStreams({reading: _STDERR}, None, tty=False)
            if plan.console_size != (0, 0):
                _set_size(terminal, *plan.console_size)
            return child, PipeStreams({terminal: 1}, os.dup(terminal), tty=True)


def _pipe(first: ExitStack, second: ExitStack) -> tuple[int, int]:
    """A pipe whose reading end the first stack closes and whose writing end the second."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    first.callback(os.close, reading)
    second.callback(os.close, writing)
    return reading, writing


def _bind(listener: socket.socket, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # the address has room for 108 bytes only
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    listener.listen(1)
    listener.setblocking(False)


async def _receive_terminal(listener: socket.socket, child: Child) -> int | None:
    """The terminal's descriptor; None if the runtime ends without sending one. Internal after START_TIMEOUT_S."""
    loop = asyncio.get_running_loop()

    async def receive() -> int | None:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(connection.fileno(), _set_once, readable)
            try:
                await readable
            finally:
                loop.remove_reader(connection.fileno())
            room = socket.CMSG_SPACE(array.array("i").itemsize)
            _, messages, _, _ = connection.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
        return struct.unpack("i", messages[0][2][:4])[0] if messages else None

    receiving = asyncio.ensure_future(receive())
    ending = asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait({receiving, ending}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            return receiving.result()
        if ending.done():
            return None
        child.kill()
        raise Internal(f"the exec was not started within {START_TIMEOUT_S:g} s")
    finally:
        for future in (receiving, ending):
            future.cancel()
        await asyncio.gather(receiving, ending, return_exceptions=True)


def _set_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _first_sign(child: Child, started: asyncio.Future[None], pid_file: Path) -> int | None:
    """The pid once the program runs; None if the runtime ended without starting it."""
    ending = asyncio.ensure_future(child.wait())
    try:
        either: set[asyncio.Future[Any]] = {started, ending}
        await asyncio.wait(either, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()
    try:
        return int(pid_file.read_text())
    except (FileNotFoundError, ValueError) as err:
        if child.ended:
            return None
        raise Internal(f"the exec was not started within {START_TIMEOUT_S:g} s") from err


async def _complaint(streams: PipeStreams) -> str:
    streams.process_ended()
    parts = [data async for _, data in streams]
    return b"".join(parts).decode(errors="replace")


async def _end(child: Child, streams: PipeStreams) -> None:
    child.kill()
    streams.release()
    await asyncio.shield(child.wait())


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
