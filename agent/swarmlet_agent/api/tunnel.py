"""The node port's tunnel: a manager's byte stream into this node's own Engine API socket.

Only on the node port (mTLS, managers alone): through it a manager attaches to containers and execs.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from aiohttp import web

from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import Unavailable
from swarmlet.wire import tunnel


class TunnelRoutes:
    """socket: this agent's Engine API unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def routes(self) -> list[Route]:
        return [Route("GET", tunnel.PATH, self.open)]

    async def open(self, call: Call) -> web.StreamResponse:
        """One WebSocket, one connection to the socket; ends when either side is done."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=tunnel.FRAME_BYTES)
        except OSError as err:
            raise Unavailable(f"this node's engine does not answer: {err}") from err
        websocket = web.WebSocketResponse(compress=False, max_msg_size=0, autoping=True)
        try:
            await websocket.prepare(call.request)
            await self._carry(websocket, reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await websocket.close()
        return websocket

    async def _carry(
        self, websocket: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        async def inward() -> None:
            with contextlib.suppress(ConnectionError):
                async for data in tunnel.chunks(websocket):
                    await write(data)
            with contextlib.suppress(OSError, RuntimeError):
                if not websocket.closed:
                    writer.write_eof()
                    # The client has ended its input and goes on reading. That it has gone, too, comes this way.
                    while not websocket.closed:
                        await websocket.receive()
                writer.close()

        receiver = asyncio.create_task(inward(), name="tunnel-inward")
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(tunnel.FRAME_BYTES):
                    await tunnel.send(websocket, data)
                await websocket.send_str(tunnel.END)
        finally:
            receiver.cancel()
            await asyncio.wait([receiver])
