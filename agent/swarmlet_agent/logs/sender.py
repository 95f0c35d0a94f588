"""Sending log lines over a socket: opened when there is none, closed after an error, with bounded waits.

What a log driver sends, and where to, is its `Server`'s (`syslog.py`, `journald.py`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Protocol

from swarmlet_agent.logs.lines import LogLine

CONNECT_TIMEOUT_S = 10.0
#: A server that takes nothing for so long is connected anew.
SEND_TIMEOUT_S = 30.0


class Server(Protocol):
    """One that takes log lines."""

    async def connect(self) -> socket.socket:
        """A new, non-blocking socket. OSError if nobody is there (as far as the transport can tell)."""
        ...

    def messages(self, lines: Sequence[LogLine]) -> list[bytes]:
        """What goes out for these lines: a datagram each, or one after the other on a stream."""
        ...


class Sender:
    """A connection to a server. Errors are OSError or TimeoutError; then it is closed, and `send` opens another."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._socket: socket.socket | None = None

    async def connect(self) -> None:
        self.close()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self._socket = await self._server.connect()

    async def send(self, lines: Sequence[LogLine]) -> None:
        """All of them; after an error some may have been sent."""
        if self._socket is None or _hung_up(self._socket):
            await self.connect()
        assert self._socket is not None
        messages, loop = self._server.messages(lines), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                if self._socket.type == socket.SOCK_STREAM:
                    messages = [b"".join(messages)]
                for data in messages:
                    await loop.sock_sendall(self._socket, data)
        except BaseException:  # cancelled, too: undo, and pass it on
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _hung_up(connection: socket.socket) -> bool:
    """True if a stream's other side has closed: what is written then is lost without an error."""
    if connection.type != socket.SOCK_STREAM:
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
