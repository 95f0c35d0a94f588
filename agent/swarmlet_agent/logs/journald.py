"""Containers' log lines for journald."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from swarmlet.journald import entry
from swarmlet.model.times import rfc3339
from swarmlet_agent.logs.lines import LogLine

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


class Journal:
    """The host's journald; see `sender.Server`. fixed: what is the same for all lines of a container."""

    def __init__(self, path: str, fixed: Mapping[str, bytes]) -> None:
        self._path = path
        self._fixed = fixed

    async def connect(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            found.setblocking(False)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            found.connect(self._path)
        except OSError as err:
            found.close()
            raise OSError(f"journald is not enabled on this host: {self._path}: {err.strerror}") from err
        return found

    def messages(self, lines: Sequence[LogLine]) -> list[bytes]:
        return [entry(line_fields(line, self._fixed)) for line in lines]
