"""Starting programs for the runtime: conmon for a container, and short commands of the OCI runtime."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet_agent.runtime import conmon
from swarmlet_agent.runtime.bundle import Bundle
from swarmlet_agent.runtime.cgroups import Cgroups
from swarmlet_agent.runtime.conmon import Answer, Command
from swarmlet_agent.runtime.facts import CGROUP_ROOT
from swarmlet_agent.runtime.host import below, prepare_thread
from swarmlet_agent.runtime.shared import appearance
from swarmlet_agent.runtime.spawner import Child, Spawner

CREATE_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 60.0
_COMPLAINT_BYTES = 64 << 10
_ENV = {"PATH": conmon.ENVIRONMENT["PATH"]}


class Launcher:
    """Owns the spawner. commands: by the runtime's name, "" the default's. isolated: it lives in a mount namespace of
    its own (crun on hybrid hosts); shared: folders whose mounts appear there by themselves."""

    def __init__(
        self, commands: Mapping[str, Command], cgroups: Cgroups, parent: str, *, isolated: bool,
        shared: tuple[Path, ...],
    ) -> None:
        self._commands = commands
        self._cgroups, self._parent = cgroups, parent
        self._isolated, self._shared = isolated, shared
        self._conmon_procs: Path | None = None
        self.spawner = self._fresh()

    def command(self, runtime: str) -> Command:
        """Of a runtime by name; one that is not installed (any more) is stood in for by the default."""
        return self._commands.get(runtime, self._commands[""])

    async def start(self) -> None:
        """OSError."""
        await self.spawner.start()
        if self._cgroups.version == 2:
            self._conmon_procs = self._cgroups.make_for_processes(f"{self._parent}/conmon")

    async def close(self) -> None:
        await self.spawner.close()

    async def see(self, paths: Iterable[str]) -> None:
        """Make sure that host paths lead to the same thing for the runtime as for us.

        On a host whose mounts are not shared, what was mounted after the spawner's namespace was made is missing
        there; a new thread then begins with a copy of today's mounts.
        """
        foreign = [path for path in paths if path and not below(path, self._shared)] if self._isolated else []
        if not foreign:
            return
        alike = (*self._shared, CGROUP_ROOT)
        seen = await self.spawner.run(lambda: appearance(foreign, alike))
        if seen == await asyncio.to_thread(appearance, foreign, alike):
            return
        fresh, old = self._fresh(), self.spawner
        await fresh.start()
        self.spawner = fresh
        await old.close()

    async def conmon(self, bundle: Bundle, argv: list[str]) -> tuple[Child, Answer]:
        """Start a container's conmon and wait for what it says. Internal."""
        told, tell = os.pipe2(os.O_CLOEXEC)
        begun, begin = os.pipe2(os.O_CLOEXEC)
        with ExitStack() as ours:
            ours.callback(os.close, told)
            ours.callback(os.close, begin)
            try:
                fds = {conmon.SYNC_FD: tell, conmon.START_FD: begun}
                # conmon writes some of its notes (oom) into its working directory too.
                child = await self.spawner.spawn(argv, conmon.ENVIRONMENT, fds, cwd=bundle.path)
            finally:
                os.close(tell)
                os.close(begun)
            try:
                # conmon waits for a byte: its pid is known to whoever comes after us before it has made anything.
                bundle.remember("conmon", child.pid)
                if self._conmon_procs is not None:
                    self._conmon_procs.write_text(str(child.pid))
                os.write(begin, b"\0")
                return child, await conmon.read_answer(told, CREATE_TIMEOUT_S)
            except BaseException:  # cancelled, too: undo, and pass it on
                child.kill()
                raise

    async def command_output(self, runtime: str, *words: str) -> tuple[int, str]:
        """Run one command of the OCI runtime: (exit code, what it complained). Internal if it lasts too long."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                child = await self.spawner.spawn(self.command(runtime).oci(*words), _ENV, {1: writing, 2: writing})
            finally:
                os.close(writing)
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    code = await child.wait()
            except BaseException as err:  # cancelled, too: end it, and pass that on
                child.kill()
                if isinstance(err, TimeoutError):
                    raise Internal(f"{words[0]} of a container took longer than {COMMAND_TIMEOUT_S:g} s") from err
                raise
            os.set_blocking(reading, False)
            try:
                # These commands write no more than a pipe holds, so nothing was waiting for us to read.
                text = os.read(reading, _COMPLAINT_BYTES).decode(errors="replace")
            except BlockingIOError:  # a child of it still holds the pipe and has said nothing
                text = ""
            return code, text
        finally:
            os.close(reading)

    def _fresh(self) -> Spawner:
        return Spawner(prepare_thread(self._cgroups, self._parent, isolated=self._isolated, folder=self._shared[0]))
