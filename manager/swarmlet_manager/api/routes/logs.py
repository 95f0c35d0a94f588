"""/services/{id}/logs and /tasks/{id}/logs: the logs of all a service's containers, as one stream.

Every line says which task it is from, in the form the docker command expects with details=1: between timestamp
and text stand `key=value` pairs (Engine API: ServiceLogs).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import MULTIPLEXED_STREAM, RAW_STREAM, SYSTEMERR, frame
from swarmlet.errors import InvalidArgument
from swarmlet.log import get_logger
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.fleet.client import Fleet
from swarmlet_manager.fleet.tasklog import Incomplete, LogWish, Piece, TaskLog

log = get_logger(__name__)

#: Lines waiting for a slow client, over all tasks; a full queue makes the nodes wait.
QUEUE_LINES = 256
#: How often a following stream looks for tasks that have come since.
LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class _Reading:
    """One client's. details, tty: what it gets to see, and in which form. queue: ready for the client, None at the end;
    missing: what it will be told of at the end."""

    service_id: str
    task_id: str | None
    wish: LogWish
    details: bool
    tty: bool
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(QUEUE_LINES))
    missing: list[str] = field(default_factory=list)


class LogRoutes:
    def __init__(self, commands: Commands, fleet: Fleet) -> None:
        self._commands = commands
        self._fleet = fleet

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/services/{id}/logs", self.service),
            Route("GET", "/tasks/{id}/logs", self.task),
        ]

    async def service(self, call: Call) -> web.StreamResponse:
        service = self._commands.service(call.params["id"])
        container = service.spec.task_template.container_spec
        return await self._answer(call, service.id, None, tty=container is not None and container.tty)

    async def task(self, call: Call) -> web.StreamResponse:
        task = self._commands.task(call.params["id"])
        container = task.spec.container_spec
        return await self._answer(call, task.service_id, task.id, tty=container is not None and container.tty)

    async def _answer(self, call: Call, service_id: str, task_id: str | None, *, tty: bool) -> web.StreamResponse:
        reading = _Reading(service_id, task_id, _wish(call), call.flag("details"), tty)
        kind = RAW_STREAM if tty or call.version < (1, 42) else MULTIPLEXED_STREAM
        response = web.StreamResponse(headers={"Content-Type": kind})
        response.enable_chunked_encoding()
        async with WhileConnected(call.request):
            await response.prepare(call.request)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._gather(reading), name="service-logs")
                while (data := await reading.queue.get()) is not None:
                    await response.write(data)
            await response.write_eof()
        return response

    async def _gather(self, reading: _Reading) -> None:
        """Read the log of every task there is, and followed those of tasks that come later."""
        seen: set[str] = set()
        wish = reading.wish
        async with asyncio.TaskGroup() as group:
            while True:
                for task in self._tasks(reading):
                    if task.id not in seen:
                        seen.add(task.id)
                        group.create_task(self._one(reading, task, wish), name=f"logs-{task.id}")
                seen.intersection_update(self._commands.state.tasks)  # those that are forgotten do not come again
                if not wish.follow or self._is_gone(reading):
                    break
                wish = replace(wish, tail=None)  # what appears while we follow is shown from its beginning
                await asyncio.sleep(LOOK_AGAIN_S)
        if reading.missing:
            text = _complaint(reading.missing)
            await reading.queue.put(text if reading.tty else frame(SYSTEMERR, text))
        await reading.queue.put(None)

    def _tasks(self, reading: _Reading) -> Iterable[Task]:
        tasks: Iterable[Task] = self._commands.state.tasks_of_service(reading.service_id)
        return sorted(
            (
                task for task in tasks
                if task.status.container_id and task.status.state >= TaskState.STARTING
                and reading.task_id in (None, task.id)
            ),
            key=lambda task: (task.slot, task.created_at),
        )  # fmt: skip

    def _is_gone(self, reading: _Reading) -> bool:
        """Nothing more will come."""
        state = self._commands.state
        return reading.service_id not in state.services or (
            reading.task_id is not None and reading.task_id not in state.tasks
        )

    async def _one(self, reading: _Reading, task: Task, wish: LogWish) -> None:
        """One task's lines into the queue. A node that cannot be asked costs its own lines, not the stream."""
        details = _details(task) if reading.details else b""
        try:
            async with aclosing(TaskLog(self._commands.state, self._fleet, task, wish).pieces()) as pieces:
                async for piece in pieces:
                    text = _head(piece, reading, details) + piece.text
                    await reading.queue.put(text if reading.tty else frame(piece.stream, text))
        except Incomplete as err:
            log.warning("log of a task is incomplete", task_id=task.id, reason=str(err))
            reading.missing.append(str(err))


def _wish(call: Call) -> LogWish:
    """The parameters. InvalidArgument, in dockerd's words where it has some (moby daemon/cluster, ServiceLogs)."""
    if not call.flag("stdout") and not call.flag("stderr"):
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    tail = call.text("tail")
    if tail in ("", "all"):
        lines = None
    else:
        try:
            lines = int(tail)
        except ValueError as err:
            raise InvalidArgument('tail value must be a positive integer or "all"') from err
        if lines < 0:
            raise InvalidArgument("negative tail values not supported")
    return LogWish(
        stdout=call.flag("stdout"), stderr=call.flag("stderr"), follow=call.flag("follow"),
        timestamps=call.flag("timestamps"), since=call.moment("since"), tail=lines,
    )  # fmt: skip


def _complaint(missing: list[str]) -> bytes:
    """As SwarmKit says it (manager/logbroker) and dockerd hands it on; the docker command ends with it as an error."""
    return (
        "Error grabbing logs: warning: incomplete log stream. some logs could not be retrieved for the following "
        f"reasons: {', '.join(missing)}\n"
    ).encode()


def _head(piece: Piece, reading: _Reading, details: bytes) -> bytes:
    """What stands before a piece. The docker command looks for details in every frame, also within a line."""
    if not piece.begins and (not details or reading.tty):
        return b""
    return (piece.stamp + b" " if reading.wish.timestamps else b"") + details


def _details(task: Task) -> bytes:
    pairs = {
        "com.docker.swarm.node.id": task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.task.id": task.id,
    }
    return ",".join(f"{quote(key)}={quote(value)}" for key, value in pairs.items()).encode() + b" "
