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
from swarmlet_agent.runtime.conmon import ENVIRONMENT, Command
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


@dataclass(slots=True)
class _Begun:
    """The runtime's process has been started. complaints: where it writes errors before it uses `streams`.
    log: where it writes them if it has no streams."""

    child: Child
    streams: PipeStreams
    complaints: PipeStreams | None = None
    log: Path | None = None

    async def complaint(self) -> str:
        """What it said, after its end. Once it has a terminal it complains there."""
        if self.log is not None:
            return failures.last_logged(self.log.read_text()) if self.log.exists() else ""
        for source in (self.complaints, self.streams):
            if source is not None:
                source.process_ended()
                if text := b"".join([data async for _, data in source]).decode(errors="replace"):
                    return text
        return ""

    def forget_complaints(self) -> None:
        if self.complaints is not None:
            self.complaints.release()

    async def end(self) -> None:
        """Stop and clean up, whatever happened."""
        self.child.kill()
        self.streams.release()
        self.forget_complaints()
        await asyncio.shield(self.child.wait())


@dataclass(frozen=True, slots=True)
class ExecStarter:
    """What starting an exec takes. folder: short-lived files, watched by `watch`.

    crun makes a terminal and sends it over a socket while it stays; runc does that only if it does not stay, so there
    it gets a terminal of ours and passes on what goes through it.
    """

    launcher: Launcher
    watch: FolderWatch
    folder: Path

    async def start(
        self, container_id: str, plan: ExecPlan, process: dict[str, Any], *, runtime: str, owner: tuple[int, int] | None
    ) -> RunningExec:
        """runtime: that of the container. owner: of the program's pipes, where it could not open them otherwise.

        StartFailed if the program cannot be run; Internal if the runtime does not answer in time.
        """
        command = self.launcher.command(runtime)
        name = os.urandom(8).hex()
        spec, pid_file = self.folder / f"{name}.json", self.folder / name
        spec.write_bytes(msgspec.json.encode(process))
        started = self.watch.expect(pid_file)
        words = ["exec", "--process", str(spec), "--pid-file", str(pid_file)]
        try:
            if plan.tty and command.is_crun:
                begun = await self._with_terminal(command, words, container_id, plan, self.folder / f"{name}.sock")
            elif plan.tty:
                begun = await self._with_own_terminal(command, words, container_id, plan)
            elif plan.detached:
                begun = await self._detached(command, words, container_id, self.folder / f"{name}.log")
            else:
                begun = await self._with_pipes(command, words, container_id, plan, owner)
            try:
                pid = await _first_sign(begun.child, started, pid_file)
                if pid is None:
                    text = await begun.complaint()
                    begun.streams.release()
                    raise failures.exec_failed(text, plan.args[0] if plan.args else "")
            except BaseException:  # cancelled, too: undo, and pass it on
                await begun.end()
                raise
            begun.forget_complaints()
            return RunningExec(begun.child, pid, begun.streams)
        finally:
            started.cancel()
            for file in (spec, pid_file, self.folder / f"{name}.log"):
                file.unlink(missing_ok=True)

    async def _with_pipes(
        self, command: Command, words: list[str], container_id: str, plan: ExecPlan, owner: tuple[int, int] | None
    ) -> _Begun:
        with ExitStack() as theirs, ExitStack() as ours:
            fds: dict[int, int] = {}
            outputs: dict[int, int] = {}
            stdin = None
            for number in (1, _STDERR):
                reading, writing = _pipe(ours, theirs)
                fds[number] = writing
                outputs[reading] = number
            if plan.open_stdin:
                fds[0], stdin = _pipe(theirs, ours)
            if owner is not None:
                for descriptor in fds.values():
                    os.fchown(descriptor, *owner)
            child = await self._spawn(command.oci(*words, container_id), fds)
            ours.pop_all()
            return _Begun(child, PipeStreams(outputs, stdin, tty=False))

    async def _detached(self, command: Command, words: list[str], container_id: str, log: Path) -> _Begun:
        """Without any pipe of ours that could break; complaints come by the runtime's log instead."""
        argv = command.oci("--log", str(log), "--log-format", "json", *words, container_id)
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            child = await self._spawn(argv, dict.fromkeys((0, 1, _STDERR), nowhere))
        finally:
            os.close(nowhere)
        return _Begun(child, PipeStreams({}, None, tty=False), log=log)

    async def _with_terminal(
        self, command: Command, words: list[str], container_id: str, plan: ExecPlan, path: Path
    ) -> _Begun:
        with ExitStack() as theirs, ExitStack() as ours:
            listener = theirs.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _bind(listener, path)
            theirs.callback(path.unlink, missing_ok=True)
            reading, writing = _pipe(ours, theirs)
            words = [*words, "--tty", "--console-socket", str(path), container_id]
            child = await self._spawn(command.oci(*words), {1: writing, _STDERR: writing})
            ours.pop_all()
            complaints = PipeStreams({reading: _STDERR}, None, tty=False)
            try:
                terminal = await _receive_terminal(listener, child)
            except BaseException:  # cancelled, too: undo, and pass it on
                await _Begun(child, complaints).end()
                raise
            if terminal is None:  # it failed before
                return _Begun(child, complaints)
            return _Begun(child, _terminal_streams(terminal, plan), complaints)

    async def _with_own_terminal(
        self, command: Command, words: list[str], container_id: str, plan: ExecPlan
    ) -> _Begun:
        terminal, other = os.openpty()
        try:
            _set_size(terminal, *plan.console_size)
            argv = command.oci(*words, "--tty", container_id)
            child = await self._spawn(argv, {}, terminal=os.ttyname(other))
        except BaseException:  # cancelled, too: undo, and pass it on
            os.close(terminal)
            raise
        finally:
            os.close(other)
        return _Begun(child, _terminal_streams(terminal, plan))

    async def _spawn(self, argv: list[str], fds: dict[int, int], *, terminal: str = "") -> Child:
        return await self.launcher.spawner.spawn(argv, _ENV, fds, terminal=terminal)


def _terminal_streams(terminal: int, plan: ExecPlan) -> PipeStreams:
    if plan.console_size != (0, 0):
        _set_size(terminal, *plan.console_size)
    return PipeStreams({terminal: 1}, os.dup(terminal), tty=True)


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


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
