"""Engine API routes that talk with a container's main process: attach, its WebSocket form, and wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import WSMsgType, web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream, hijack
from swarmlet.errors import Conflict
from swarmlet_agent.api.backends import EventPublisher, StreamBackend
from swarmlet_agent.api.detach import parse_keys
from swarmlet_agent.api.pump import Client, PumpPlan, pump
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.ports import Streams
from swarmlet_agent.logs.k8s_file import LogQuery
from swarmlet_agent.logs.reader import LogReader

#: Idle WebSockets are pinged this often, so that proxies keep them and dead ones are noticed.
WEBSOCKET_PING_S = 30.0


class AttachRoutes:
    def __init__(self, backend: StreamBackend, logs: LogReader, events: EventPublisher) -> None:
        self._backend = backend
        self._logs = logs
        self._events = events

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/containers/{id:path}/attach", self.attach),
            Route("GET", "/containers/{id:path}/attach/ws", self.attach_websocket),
            Route("POST", "/containers/{id:path}/wait", self.wait),
        ]

    async def attach(self, call: Call) -> web.StreamResponse:
        """ContainerAttach: 101 (200 without Upgrade), then raw bytes both ways; 400 bad keys, 409 paused."""
        container = self._attachable(call)
        tty = container.config.tty
        plan = _plan(call, container, framed=not tty)
        streams = await self._backend.attach(container.id) if call.flag("stream") else None
        try:
            client, response = await hijack(call, tty=tty)
        except BaseException:  # cancelled, too: undo, and pass it on
            if streams is not None:
                await streams.close()
            raise
        try:
            await self._serve(client, streams, plan, container, replay=call.flag("logs"))
        finally:
            client.close()
        return response

    async def attach_websocket(self, call: Call) -> web.StreamResponse:
        """ContainerAttachWebsocket: binary messages of raw output; messages of either kind are input."""
        container = self._attachable(call)
        plan = _plan(call, container, framed=False)
        streams = await self._backend.attach(container.id) if call.flag("stream", True) else None
        # Whatever protocol a client names: there is but one thing to say here.
        named = [name.strip() for name in call.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        websocket = web.WebSocketResponse(heartbeat=WEBSOCKET_PING_S, compress=False, protocols=named)
        try:
            await websocket.prepare(call.request)
        except BaseException:  # cancelled, too: undo, and pass it on
            if streams is not None:
                await streams.close()
            raise
        if streams is not None and not plan.stdin:
            # Messages are read all the same: that is how the client's leaving is noticed.
            streams = _Deaf(streams)
        plan = PumpPlan(plan.stdout, plan.stderr, True, False, plan.ends_stdin and plan.stdin, plan.detach_keys)
        await self._serve(_WebSocket(websocket), streams, plan, container, replay=call.flag("logs"))
        await websocket.close()
        return websocket

    async def wait(self, call: Call) -> web.StreamResponse:
        """ContainerWait: the head at once (clients start the container then), the exit code when it comes."""
        condition = call.text("condition") if call.version >= (1, 30) else ""
        waiting = self._backend.register_wait(call.params["id"], condition)
        try:
            async with WhileConnected(call.request):
                stream = JsonStream(call)
                if call.version >= (1, 30):
                    await stream.start()
                result = await waiting.result()
                # No Error beside it: that is for a wait that failed. What kept the container from starting is told
                # to whoever started it, and clients that got both would print it twice.
                await stream.send({"StatusCode": result.exit_code})
                return await stream.end()
        finally:
            waiting.close()

    def _attachable(self, call: Call) -> Container:
        container = self._backend.get(call.params["id"])
        match container.state.status:
            case "paused":
                raise Conflict(f"container {container.id} is paused, unpause the container before attach")
            case "restarting":
                raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        return container

    async def _serve(
        self, client: Client, streams: Streams | None, plan: PumpPlan, container: Container, *, replay: bool
    ) -> None:
        """Replay the log, then carry the live streams until either side ends."""
        try:
            if replay and container.log_path:
                await self._replay(client, plan, container)
            if streams is None:
                return
            live, streams = streams, None
            if await pump(client, live, plan):
                attributes = {**container.config.labels, "image": container.image_ref, "name": container.name}
                self._events.publish("container", "detach", container.id, attributes)
        except ConnectionResetError:
            return  # the client has gone: there is no one to tell
        finally:
            if streams is not None:
                await streams.close()

    async def _replay(self, client: Client, plan: PumpPlan, container: Container) -> None:
        query = LogQuery(stdout=plan.stdout, stderr=plan.stderr, framed=plan.framed)
        async for data in self._logs.read(Path(container.log_path), query):
            await client.write(data)


def _plan(call: Call, container: Container, *, framed: bool) -> PumpPlan:
    config = container.config
    keys = parse_keys(call.text("detachKeys"))
    return PumpPlan(
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        stdin=call.flag("stdin") and config.open_stdin,
        framed=framed,
        # Without StdinOnce the container's stdin outlives its clients: the end of a client's is a farewell.
        ends_stdin=config.stdin_once and not config.tty,
        detach_keys=keys if config.tty else b"",
    )


class _Deaf:
    """Streams whose input is not wanted."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return self._streams.__aiter__()

    async def close(self) -> None:
        await self._streams.close()

    async def write(self, data: bytes) -> None:
        return None

    async def close_stdin(self) -> None:
        return None


class _WebSocket:
    """A WebSocket as the pump sees a client."""

    def __init__(self, websocket: web.WebSocketResponse) -> None:
        self._websocket = websocket
        self.closed = asyncio.Event()

    async def read(self) -> bytes:
        while True:
            message = await self._websocket.receive()
            if message.type is WSMsgType.BINARY:
                data: bytes = message.data
            elif message.type is WSMsgType.TEXT:
                data = message.data.encode()
            else:
                self.closed.set()
                return b""
            if data:
                return data

    async def write(self, data: bytes) -> None:
        await self._websocket.send_bytes(data)
