"""Sending log lines to a syslog server (RFC 3164, RFC 5424) as Docker's syslog driver words them.

Text on stderr has severity error, other text info. Messages end with a newline, which on streams is the framing
(RFC 6587, section 3.4.2). Each piece of a long line is a message of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from datetime import datetime

from swarmlet_agent.decide.log_options import SyslogFormat, SyslogTarget
from swarmlet_agent.logs.lines import LogLine

LOCAL_SOCKETS = ("/dev/log", "/var/run/syslog", "/var/run/log")
CONNECT_TIMEOUT_S = 10.0
#: A server that takes nothing for so long is connected anew.
SEND_TIMEOUT_S = 30.0
_ERROR, _INFO = 3, 6
_NS = 1_000_000_000


def message(line: LogLine, *, facility: int, form: SyslogFormat, tag: str, hostname: str, pid: int) -> bytes:
    """One syslog message with its newline."""
    priority = facility << 3 | (_ERROR if line.stderr else _INFO)
    at = datetime.fromtimestamp(line.at // _NS).astimezone().replace(microsecond=line.at % _NS // 1000)
    if form in ("rfc5424", "rfc5424micro"):
        stamp = at.isoformat(timespec="microseconds" if form == "rfc5424micro" else "seconds").replace("+00:00", "Z")
        head = f"<{priority}>1 {stamp} {hostname} {tag} {pid} {tag} - "
    else:
        # English months whatever the locale, and a day padded with a space.
        stamp = f"{_MONTHS[at.month - 1]} {at.day:2d} {at:%H:%M:%S}"
        host = f"{hostname} " if form == "rfc3164" else ""
        head = f"<{priority}>{stamp} {host}{tag}[{pid}]: "
    return head.encode() + line.text + b"\n"


_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class SyslogSender:
    """A connection that `send` opens when there is none. Errors are OSError; then it is closed."""

    def __init__(self, target: SyslogTarget, tag: str, hostname: str) -> None:
        self._target = target
        self._tag = tag
        self._hostname = hostname
        self._socket: socket.socket | None = None

    async def connect(self) -> None:
        """OSError if nobody is there (as far as the transport can tell)."""
        self.close()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self._socket = await self._connected()

    async def send(self, lines: Sequence[LogLine]) -> None:
        """All of them; after an error some may have been sent."""
        if self._socket is None or _hung_up(self._socket):
            await self.connect()
        assert self._socket is not None
        target, loop = self._target, asyncio.get_running_loop()
        messages = [
            message(
                line, facility=target.facility, form=target.format, tag=self._tag, hostname=self._hostname,
                pid=os.getpid(),
            )
            for line in lines
        ]  # fmt: skip
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

    async def _connected(self) -> socket.socket:
        target = self._target
        if target.network == "local":
            return await _first_local()
        if target.network in ("unix", "unixgram"):
            kind = socket.SOCK_STREAM if target.network == "unix" else socket.SOCK_DGRAM
            return await _connect(socket.AF_UNIX, kind, target.address)
        kind = socket.SOCK_STREAM if target.network == "tcp" else socket.SOCK_DGRAM
        found = await asyncio.get_running_loop().getaddrinfo(target.address, target.port, type=kind)
        error: OSError | None = None
        for family, _, _, _, address in found:
            try:
                return await _connect(family, kind, address)
            except OSError as err:
                error = err
        raise error or OSError(f"no address of {target.address}")


async def _first_local() -> socket.socket:
    for path in LOCAL_SOCKETS:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with contextlib.suppress(OSError):
                return await _connect(socket.AF_UNIX, kind, path)
    raise ConnectionRefusedError("Unix syslog delivery error: no syslog is running on this host")


async def _connect(family: int, kind: int, address: object) -> socket.socket:
    found = socket.socket(family, kind)
    try:
        found.setblocking(False)
        await asyncio.get_running_loop().sock_connect(found, address)  # type: ignore[arg-type]  # str or tuple
    except BaseException:  # cancelled, too: undo, and pass it on
        found.close()
        raise
    return found


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
