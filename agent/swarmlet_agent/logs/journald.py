"""Sending containers' log lines to journald."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence

from swarmlet.journald import entry
from swarmlet.model.times import rfc3339
from swarmlet_agent.logs.lines import LogLine

SEND_TIMEOUT_S = 30.0
_ERROR, _INFO = "3", "6"
_SEND_BUFFER_BYTES = 8 << 20


def line_fields(line: LogLine, fixed: Mapping[str, bytes]) -> dict[str, bytes]:
    """What Docker's journald driver says of a line; `fixed` is the same for all lines of a container."""
    fields = {
        **fixed,
        "MESSAGE": line.text,
        "PRIORITY": (_ERROR if line.stderr else _INFO).encode(),
        "SYSLOG_TIMESTAMP": rfc3339(line.at).encode(),
    }
    return fields if line.whole else {**fields, "CONTAINER_PARTIAL_MESSAGE": b"true"}


class JournalSender:
    """Errors are OSError; then it is closed, and the next `send` connects anew."""

    def __init__(self, path: str, fixed: Mapping[str, bytes]) -> None:
        self._path = path
        self._fixed = fixed
        self._socket: socket.socket | None = None

    async def connect(self) -> None:
        """OSError if there is no journald."""
        self.close()
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            found.setblocking(False)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            found.connect(self._path)
        except OSError as err:
            found.close()
            raise OSError(f"journald is not enabled on this host: {self._path}: {err.strerror}") from err
        self._socket = found

    async def send(self, lines: Sequence[LogLine]) -> None:
        """All of them; after an error some may have been sent."""
        if self._socket is None:
            await self.connect()
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                for line in lines:
                    await loop.sock_sendall(self._socket, entry(line_fields(line, self._fixed)))
        except BaseException:  # cancelled, too: undo, and pass it on
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
