"""Starts the runtime's processes from a thread of its own, which may live in a mount namespace and cgroup of its own.

A process inherits both from the *thread* that makes it. So one set-up of one thread serves every conmon and OCI
runtime started later, without a wrapper program and without moving each process to a cgroup (which can cost
milliseconds). docs/adr/0003 tells why the mount namespace is needed on hybrid hosts.

Descriptors: Python opens everything close-on-exec, so a child gets exactly the descriptors named in `fds`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from swarmlet.errors import Internal
from swarmlet_agent.runtime import linux

T = TypeVar("T")
_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]

#: Signals that Python ignores; a child starts with the default again.
_RESET = [signal.SIGPIPE, signal.SIGXFSZ]
_NULL = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)


class Child:
    """A process we started; it is reaped as soon as it ends."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._reap)

    @property
    def ended(self) -> bool:
        return self._ended.done()

    async def wait(self) -> int:
        """Its exit code, 128 + signal when killed."""
        return await asyncio.shield(self._ended)

    def on_end(self, call: Callable[[], None]) -> None:
        """Called once it has ended (not after `forget`)."""
        self._ended.add_done_callback(lambda ended: None if ended.cancelled() else call())

    def kill(self) -> None:
        """SIGKILL; a process that has ended is fine."""
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def forget(self) -> None:
        """Watch it no longer: this process ends, the child goes on."""
        if not self._ended.done():
            self._release()
            self._ended.cancel()

    def _reap(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self._release()
            self._ended.set_result(code if code >= 0 else 128 - code)

    def _release(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)


class Spawner:
    """One thread that starts processes. `prepare` runs in it first (namespaces, cgroups)."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """OSError if the thread's set-up fails."""
        self._thread = threading.Thread(target=self._run, name="spawner", daemon=True)
        self._thread.start()
        try:
            await self.run(self._set_up)
        except BaseException:  # cancelled, too: undo, and pass it on
            await self.close()
            raise

    async def close(self) -> None:
        """End the thread; processes it started go on."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def run(self, job: Callable[[], T]) -> T:
        """Call it in the thread."""
        if self._thread is None:
            raise Internal("the container runtime is not started")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        self._jobs.put((job, loop, result))
        return await result

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int], *, terminal: str = "",
        cwd: str | Path = "/",
    ) -> Child:
        """Start a program in a session of its own. Internal if it cannot be.

        fds: the child's number -> ours; without 0 its stdin is /dev/null.
        terminal: the path of a terminal that becomes its controlling one and its standard streams, or "".
        cwd: its working directory; not ours, which may be on a disk that somebody wants to unmount.
        """
        try:
            # Shielded: a process once started must get its owner, or nobody would reap it.
            started = asyncio.ensure_future(self.run(lambda: _spawn(argv, env, fds, terminal, cwd)))
            pid, pidfd = await asyncio.shield(started)
        except asyncio.CancelledError:
            started.add_done_callback(_abandon)
            raise
        except OSError as err:
            raise Internal(f"{argv[0]} cannot be started: {err.strerror}") from err
        return Child(pid, pidfd)

    def _set_up(self) -> None:
        linux.unshare(linux.CLONE_FS)  # a working directory of this thread's own, to pass on
        self._prepare()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, loop, result = item
            try:
                value = job()
            except BaseException as err:  # the caller's, who waits for what became of the job
                _tell(loop, result, None, err)
            else:
                _tell(loop, result, value, None)


async def process_end(pid: int) -> None:
    """Returns once a process that may be anyone's has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(pidfd, finish)
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def isolate(hidden: str, within: str) -> None:
    """For a spawner's `prepare`: a mount namespace in which `hidden`, a mount below `within`, does not exist.

    Everything but `within` stays a peer of the host's namespace, so shared mounts come and go in both. OSError.
    """
    linux.unshare(linux.CLONE_FS | linux.CLONE_NEWNS)
    linux.mount("", within, flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.umount(hidden)


def _spawn(
    argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int], terminal: str, cwd: str | Path
) -> tuple[int, int]:
    duplicates: list[int] = []
    try:
        actions: list[tuple[Any, ...]] = [] if 0 in fds else [_NULL]
        if terminal:
            # Opened by a session leader without a terminal, it becomes the session's (tty_ioctl(4)).
            actions = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
        highest = max(fds, default=2)
        for target, source in fds.items():
            if source <= highest:  # else an earlier dup2 could overwrite it in the child
                source = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, highest + 1)
                duplicates.append(source)
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
        os.chdir(cwd)
        pid = os.posix_spawn(
            argv[0], list(argv), dict(env), file_actions=actions, setsid=True, setsigmask=[], setsigdef=_RESET
        )
        return pid, os.pidfd_open(pid)
    finally:
        for descriptor in duplicates:
            os.close(descriptor)


def _tell(
    loop: asyncio.AbstractEventLoop, result: asyncio.Future[Any], value: Any, error: BaseException | None
) -> None:
    def finish() -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)

    if not loop.is_closed():
        loop.call_soon_threadsafe(finish)


def _abandon(started: asyncio.Future[tuple[int, int]]) -> None:
    """The caller gave up while the process was being started: end it and reap it."""
    if not started.cancelled() and started.exception() is None:
        Child(*started.result()).kill()
