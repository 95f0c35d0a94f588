"""Further processes in running containers (Engine API exec). Instances live in memory, until a while after the end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from swarmlet.errors import Conflict, Internal, InvalidArgument, NotFound, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.decide.users import Identity, resolve_user
from swarmlet_agent.engine.container import Container, ExecRecord, ExecRequest
from swarmlet_agent.engine.core import Core
from swarmlet_agent.engine.inside import read_accounts
from swarmlet_agent.engine.plan import exec_plan
from swarmlet_agent.engine.ports import ExecProcess, Streams
from swarmlet_agent.engine.streams import EndedStreams

log = get_logger(__name__)
#: How many instances are remembered in all; the oldest that do not run are forgotten first.
MOST_EXECS = 1000
#: How long a stream's end waits for the exit code. A process that closes its output and goes on is not waited for.
EXIT_PATIENCE_S = 2.0
#: How long a change of a terminal's size waits for its exec: clients send it as soon as they have the stream.
START_PATIENCE_S = 10.0


class _Exec:
    __slots__ = ("begun", "ended", "process", "record", "started")

    def __init__(self, record: ExecRecord) -> None:
        self.record = record
        self.process: ExecProcess | None = None
        self.started = False
        #: Its process runs, or could not be started.
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()


class Execs:
    """One per engine."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._execs: dict[str, _Exec] = {}
        self._order: deque[str] = deque()

    def create(self, ref: str, request: ExecRequest) -> str:
        """Its id. Conflict if the container does not run, InvalidArgument without a command."""
        container = self._core.find(ref).record
        _check_runs(container, ref)
        if not request.cmd:
            raise InvalidArgument("No exec command specified")
        if request.working_dir and not request.working_dir.startswith("/"):
            raise InvalidArgument(
                f"the working directory '{request.working_dir}' is invalid, it needs to be an absolute path"
            )
        if any(not entry or entry.startswith("=") for entry in request.env):
            raise InvalidArgument("invalid environment variable: a name must not be empty")
        record = ExecRecord(id=new_hex_id(), container_id=container.id, request=request)
        self._forget_old()
        self._execs[record.id] = _Exec(record)
        self._order.append(record.id)
        self._emit(record, "exec_create")
        return record.id

    def inspect(self, ident: str) -> ExecRecord:
        """By id. NotFound."""
        return self._find(ident).record

    def of(self, container_id: str) -> tuple[str, ...]:
        """Ids of the container's running execs or not yet started execs (inspect's ExecIDs)."""
        return tuple(
            ident
            for ident, item in self._execs.items()
            if item.record.container_id == container_id and item.record.exit_code is None
        )

    async def start(
        self, ident: str, *, detach: bool, tty: bool | None = None, console_size: tuple[int, int] | None = None
    ) -> Streams | None:
        """Run it. None when detached, else its streams. Conflict if it has been started before; StartFailed 126/127."""
        item = self._find(ident)
        record = item.record
        if item.started:
            state = "is already running" if record.running else "has already run"
            raise Conflict(f"Error: Exec command {ident} {state}")
        container = self._core.find(record.container_id).record
        _check_runs(container, container.id)
        item.started = True
        request = record.request if console_size is None else replace(record.request, console_size=console_size)
        if detach:
            request = replace(request, attach_stdin=False)
        self._emit(record, "exec_start")
        try:
            identity = await self._identity(container, request.user)
            terminal = request.tty if tty is None else tty
            plan = exec_plan(container, request, identity, tty=terminal, detached=detach)
            item.process = await self._core.runtime.exec(container.id, plan)
        except SwarmletError as err:
            code = getattr(err, "exit_code", 126)
            item.record = replace(record, running=False, exit_code=code)
            item.begun.set()
            item.ended.set()
            raise
        item.record = replace(record, running=True, pid=item.process.pid)
        item.begun.set()
        self._core.spawn(self._watch(item, item.process, drain=detach), f"exec {ident[:12]}", idle=True)
        return None if detach else EndedStreams(item.process.streams, item.ended.wait, EXIT_PATIENCE_S)

    async def resize(self, ident: str, rows: int, columns: int) -> None:
        """Once it is started, which may be under way. Conflict if it has ended; Internal if that lasts too long."""
        item = self._find(ident)
        try:
            async with asyncio.timeout(START_PATIENCE_S):
                await item.begun.wait()
        except TimeoutError as err:
            raise Internal("timeout waiting for exec session ready") from err
        if item.process is None or not item.record.running:
            raise NotFound("exec", ident, "no such exec")
        await item.process.resize(rows, columns)

    async def _watch(self, item: _Exec, process: ExecProcess, *, drain: bool) -> None:
        reading = self._core.spawn(_drain(process.streams), "exec output", idle=True) if drain else None
        try:
            code = await process.wait()
        finally:
            if reading is not None:
                reading.cancel()
                await process.streams.close()
        item.record = replace(item.record, running=False, exit_code=code)
        item.process = None
        item.ended.set()
        self._emit(item.record, "exec_die", exitCode=str(code))

    async def _identity(self, container: Container, user: str) -> Identity:
        if not user:
            return Identity(container.uid, container.gid, container.groups)
        root = await self._core.root_of(container)
        passwd, group = await asyncio.to_thread(read_accounts, Path(root))
        return resolve_user(user, container.host.group_add, passwd, group)

    def _find(self, ident: str) -> _Exec:
        item = self._execs.get(ident)
        if item is None:
            raise NotFound("exec instance", ident)
        return item

    def _forget_old(self) -> None:
        for _ in range(max(0, len(self._order) - MOST_EXECS + 1)):
            ident = self._order.popleft()
            if self._execs[ident].record.running:
                self._order.append(ident)
            else:
                del self._execs[ident]

    def _emit(self, record: ExecRecord, action: str, **attributes: str) -> None:
        unit = self._core.units.get(record.container_id)
        if unit is not None:  # its container may have been removed meanwhile
            emit_exec(self._core, unit.record, record.id, record.request.cmd, action, **attributes)


def emit_exec(
    core: Core, container: Container, ident: str, cmd: Sequence[str], action: str, **attributes: str
) -> None:
    """exec_create, exec_start or exec_die of a client's exec, or of a health probe's."""
    # dockerd joins the program and its arguments: alone it has a blank behind it.
    command = "" if action == "exec_die" else f": {cmd[0]} {' '.join(cmd[1:])}"
    core.emit(container, action + command, execID=ident, **attributes)


def _check_runs(container: Container, ref: str) -> None:
    """Conflict. ref: what the client calls it."""
    status = container.state.status
    if status == "paused":
        raise Conflict(f"Container {ref} is paused, unpause the container before exec")
    if status == "restarting":
        raise Conflict(f"Container {ref} is restarting, wait until the container is running")
    if status != "running":
        raise Conflict(f"container {container.id} is not running")


async def _drain(streams: Streams) -> None:
    """A detached exec's output goes nowhere, but must not fill a pipe and stop it."""
    async for _ in streams:
        pass
