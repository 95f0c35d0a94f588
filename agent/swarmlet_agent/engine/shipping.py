"""Log drivers that send lines away: one task per container follows its log file and passes the lines on.

The file is the truth, and how far it has been sent stands in a file beside it, so nothing is lost while the agent
or the log server is away; after either a line may be sent twice. A server that is away for longer than it takes the
file to be rotated out of existence misses the oldest lines: the program never waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from swarmlet.journald import JOURNAL_SOCKET, field_name
from swarmlet.log import get_logger
from swarmlet_agent.decide.log_options import (
    DEFAULT_TAG,
    SHIPPING,
    expand_tag,
    extra_attributes,
    syslog_target,
    tag_fields,
)
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.core import Core, Unit
from swarmlet_agent.logs.files import LogFiles, LogMark
from swarmlet_agent.logs.journald import Journal
from swarmlet_agent.logs.lines import LogLine, parse_block
from swarmlet_agent.logs.sender import Sender
from swarmlet_agent.logs.syslog import Syslog
from swarmlet_agent.logs.watch import FolderWatch
from swarmlet_agent.runtime.types import StartFailed

log = get_logger(__name__)
#: How long one relies on notices before looking by oneself.
LOOK_AGAIN_S = 1.0
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 10.0


@dataclass(slots=True)
class _Job:
    """over: the run has ended; what is written now is all there is."""

    task: asyncio.Task[None] | None = None
    over: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class _Mark(msgspec.Struct, frozen=True):
    """The file beside the log: LogMark's fields."""

    head: str
    offset: int


class LogShipping:
    """One per engine."""

    def __init__(self, core: Core, *, journal_socket: str = JOURNAL_SOCKET) -> None:
        self._core = core
        self._journal_socket = journal_socket
        self._watch = FolderWatch()
        self._jobs: dict[str, _Job] = {}

    def close(self) -> None:
        """After its tasks have ended."""
        self._watch.close()

    async def check(self, record: Container) -> None:
        """Before a start. StartFailed if the lines could not be sent now, as dockerd has it."""
        if record.host.log_config.type not in SHIPPING:
            return
        sender = self._sender(record)
        try:
            await sender.connect()
        except (OSError, TimeoutError) as err:
            raise StartFailed(f"failed to initialize logging driver: {str(err) or 'timed out'}") from err
        finally:
            sender.close()

    def begin(self, unit: Unit) -> None:
        """A run begins, or was taken up."""
        record = unit.record
        if record.host.log_config.type not in SHIPPING or not record.log_path:
            return
        job = self._jobs.setdefault(unit.id, _Job())
        job.over = False
        if job.task is None and not self._core.closing:
            job.task = self._core.spawn(self._run(unit, job), f"log of {unit.id[:12]}", idle=True)

    def end(self, unit: Unit) -> None:
        """The run is over: the rest of its log is sent, then the task ends."""
        job = self._jobs.get(unit.id)
        if job is not None:
            job.over = True
            job.wake.set()

    def catch_up(self, unit: Unit) -> None:
        """A container that does not run may have lines that the last agent could not send any more."""
        self.begin(unit)
        self.end(unit)

    def _sender(self, record: Container) -> Sender:
        config = record.host.log_config
        options = config.config
        fields = tag_fields(
            ident=record.id, name=record.name, image_id=record.image_id, image_name=record.image_ref
        )
        tag = expand_tag(options.get("tag") or DEFAULT_TAG, fields)
        if config.type == "syslog":
            return Sender(Syslog(syslog_target(options), tag, os.uname().nodename))
        chosen = extra_attributes(record.config, options)
        named = {field_name(name): value for name, value in chosen.items()}
        fixed = {
            **{name: value for name, value in named.items() if name},
            "CONTAINER_ID": record.short_id, "CONTAINER_ID_FULL": record.id, "CONTAINER_NAME": record.name,
            "CONTAINER_TAG": tag, "IMAGE_NAME": record.image_ref, "SYSLOG_IDENTIFIER": tag,
        }  # fmt: skip
        return Sender(Journal(self._journal_socket, {name: value.encode() for name, value in fixed.items()}))

    async def _run(self, unit: Unit, job: _Job) -> None:
        path = Path(unit.record.log_path)
        marked = path.with_name(f"{path.name}.sent")
        files, sender = LogFiles(path), self._sender(unit.record)
        try:
            await asyncio.to_thread(_open, files, marked)
            async with self._watch.changes(path.parent) as changed:
                job.wake = changed
                while True:
                    # Asked before looking: what was written before the end is then surely seen.
                    over = job.over
                    changed.clear()
                    while block := await asyncio.to_thread(files.read):
                        if not await self._deliver(unit, sender, parse_block(block)):
                            return
                        await asyncio.to_thread(_save, marked, files.mark())
                    if files.advance():
                        continue
                    if over and job.over:
                        return
                    await _wait(changed)
        finally:
            self._jobs.pop(unit.id, None)
            sender.close()
            files.close()

    async def _deliver(self, unit: Unit, sender: Sender, lines: Sequence[LogLine]) -> bool:
        """Until they are sent; False if they cannot be and their container is gone."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                await sender.send(lines)
                return True
            except (OSError, TimeoutError) as err:
                if unit.id not in self._core.units:
                    log.warning("last lines of a removed container not sent", container_id=unit.id, lines=len(lines))
                    return False
                if delay_s == FIRST_RETRY_S:
                    log.warning("log lines cannot be sent; trying on", container_id=unit.id, error=str(err))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LAST_RETRY_S)


async def _wait(changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_AGAIN_S):
            await changed.wait()
    except TimeoutError:
        return  # time to look


def _open(files: LogFiles, marked: Path) -> None:
    try:
        mark = msgspec.json.decode(marked.read_bytes(), type=_Mark)
    except FileNotFoundError:
        mark = _Mark("", 0)
    except msgspec.DecodeError as err:  # a power failure may leave it empty
        log.warning("mark of sent lines cannot be read; the log is sent again", path=marked, error=str(err))
        mark = _Mark("", 0)
    files.open(after=LogMark(mark.head.encode(), mark.offset))


def _save(marked: Path, mark: LogMark | None) -> None:
    if mark is None:
        return
    partial = marked.with_name(f"{marked.name}.new")
    try:
        partial.write_bytes(msgspec.json.encode(_Mark(mark.head.decode(errors="replace"), mark.offset)))
        os.replace(partial, marked)
    except FileNotFoundError:
        return  # the container has been removed, and its folder with it
