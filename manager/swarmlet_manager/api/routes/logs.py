"""/services/{id}/logs and /tasks/{id}/logs: the logs of all a service's containers, as one stream.

Every line says which task it is from, in the form the docker command expects with details=1: between timestamp
and text stand `key=value` pairs (Engine API: ServiceLogs).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import MULTIPLEXED_STREAM, RAW_STREAM, frame
from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.fleet.client import Fleet

log = get_logger(__name__)

#: Lines waiting for a slow client, over all tasks; a full queue makes the nodes wait.
QUEUE_LINES = 256
#: How often a following stream looks for tasks that have come since.
LOOK_AGAIN_S = 0.5

_HEADER = struct.Struct(">BxxxL")


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
        if not call.flag("stdout") and not call.flag("stderr"):
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        kind = RAW_STREAM if tty or call.version < (1, 42) else MULTIPLEXED_STREAM
        response = web.StreamResponse(headers={"Content-Type": kind})
        response.enable_chunked_encoding()
        async with WhileConnected(call.request):
            await response.prepare(call.request)
            queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_LINES)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._gather(call, service_id, task_id, tty, queue), name="service-logs")
                while (data := await queue.get()) is not None:
                    await response.write(data)
            await response.write_eof()
        return response

    async def _gather(
        self, call: Call, service_id: str, task_id: str | None, tty: bool, queue: asyncio.Queue[bytes | None]
    ) -> None:
        """Follow every task there is, and with follow=1 those that come later. Ends the queue with None."""
        seen: set[str] = set()
        follow = call.flag("follow")
        async with asyncio.TaskGroup() as group:
            while True:
                for task in self._tasks(service_id, task_id):
                    if task.id not in seen:
                        seen.add(task.id)
                        # What appears while we follow is shown from its beginning.
                        group.create_task(self._one(call, task, tty, queue), name=f"logs-{task.id}")
                if not follow or service_id not in self._commands.state.services:
                    break
                await asyncio.sleep(LOOK_AGAIN_S)
        await queue.put(None)

    def _tasks(self, service_id: str, task_id: str | None) -> Iterable[Task]:
        tasks: Iterable[Task] = self._commands.state.tasks_of_service(service_id)
        return sorted(
            (
                task for task in tasks
                if task.status.container_id and task.status.state >= TaskState.RUNNING and task_id in (None, task.id)
            ),
            key=lambda task: (task.slot, task.created_at),
        )

    async def _one(self, call: Call, task: Task, tty: bool, queue: asyncio.Queue[bytes | None]) -> None:
        """One task's lines into the queue. A node that cannot be asked costs its own lines, not the stream."""
        query = {name: call.text(name) for name in ("stdout", "stderr", "follow", "since", "tail", "timestamps")}
        wanted = {name: value for name, value in query.items() if value}
        path = f"/containers/{quote(task.status.container_id)}/logs?{urlencode(wanted)}"
        details = _details(task) if call.flag("details") else b""
        timestamps = call.flag("timestamps")
        try:
            node = self._fleet.node(task.node_id)
            async with self._fleet.request(node, "GET", path) as answer:
                if answer.status >= 400:
                    log.info("no logs of a task", task_id=task.id, status=answer.status)
                    return
                async for stream, text in _lines(answer.content, tty):
                    line = _with_details(text, details, timestamps) if details else text
                    await queue.put(line if tty else frame(stream, line))
        except (SwarmletError, aiohttp.ClientError) as err:
            log.info("no logs of a task", task_id=task.id, reason=str(err))


async def _lines(content: aiohttp.StreamReader, tty: bool) -> AsyncIterator[tuple[int, bytes]]:
    """(stream, text) of a node's answer, frame by frame; a TTY's line by line."""
    if tty:
        async for line in content:
            yield 1, line
        return
    while True:
        try:
            stream, size = _HEADER.unpack(await content.readexactly(_HEADER.size))
            yield stream, await content.readexactly(size)
        except asyncio.IncompleteReadError:
            return


def _details(task: Task) -> bytes:
    pairs = {
        "com.docker.swarm.node.id": task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.task.id": task.id,
    }
    return ",".join(f"{quote(key)}={quote(value)}" for key, value in pairs.items()).encode() + b" "


def _with_details(text: bytes, details: bytes, timestamps: bool) -> bytes:
    if not timestamps:
        return details + text
    stamp, space, rest = text.partition(b" ")
    return stamp + space + details + rest
