"""Log lines for a syslog server (RFC 3164, RFC 5424) as Docker's syslog driver words them.

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


class Syslog:
    """A syslog server; see `sender.Server`."""

    def __init__(self, target: SyslogTarget, tag: str, hostname: str) -> None:
        self._target = target
        self._tag = tag
        self._hostname = hostname

    def messages(self, lines: Sequence[LogLine]) -> list[bytes]:
        facility, form = self._target.facility, self._target.format
        pid = os.getpid()
        return [
            message(line, facility=facility, form=form, tag=self._tag, hostname=self._hostname, pid=pid)
            for line in lines
        ]

    async def connect(self) -> socket.socket:
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
