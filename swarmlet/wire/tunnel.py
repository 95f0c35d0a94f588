"""A byte stream inside a WebSocket, with half-close: how a manager reaches a node's own Engine API socket.

Attach and exec need one side to end its input while the other goes on; TLS as asyncio has it cannot do that, a
WebSocket can say it: binary frames are data, the text frame END means "nothing more from this side".
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from aiohttp import WSMsgType

PATH = "/swarmlet/v1/tunnel"
END = "end"
#: Most that one frame carries; larger pieces are cut.
FRAME_BYTES = 64 << 10


class WebSocket(Protocol):
    """What client's and server's WebSockets of aiohttp have in common."""

    async def send_bytes(self, data: bytes) -> None: ...

    async def send_str(self, data: str) -> None: ...

    async def receive(self) -> Any: ...

    async def close(self) -> Any: ...


async def chunks(socket: WebSocket) -> AsyncIterator[bytes]:
    """Data until the peer's END, or until it is gone."""
    while True:
        message = await socket.receive()
        if message.type is WSMsgType.BINARY:
            yield message.data
        elif message.type is not WSMsgType.TEXT or message.data == END:
            return


async def send(socket: WebSocket, data: bytes) -> None:
    """Send in frames; waits while the peer reads slowly. ConnectionResetError once it is gone."""
    for start in range(0, len(data), FRAME_BYTES):
        await socket.send_bytes(data[start : start + FRAME_BYTES])
