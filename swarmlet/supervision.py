"""What a daemon tells systemd that started it: that it is ready, that it is alive, that it ends (sd_notify(3)).

Without systemd (NOTIFY_SOCKET is not set) nothing is told and nothing is different.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, MutableMapping

from swarmlet.log import get_logger

log = get_logger(__name__)


class Supervision:
    """address: systemd's notification socket, "" for nobody; interval_s: between signs of life, 0 for none."""

    def __init__(self, address: str = "", interval_s: float = 0.0) -> None:
        self._address = address
        self._interval_s = interval_s

    @classmethod
    @contextlib.asynccontextmanager
    async def found(cls, environ: MutableMapping[str, str]) -> AsyncIterator[Supervision]:
        """Who supervises this process, by the environment. Inside the block signs of life are given.

        The variables are taken out: conmon, and what a container runs, must not speak for us.
        """
        supervision = cls(*_take(environ))
        alive = asyncio.create_task(supervision._keep_alive(), name="signs of life for systemd")
        try:
            yield supervision
        finally:
            alive.cancel()
            await asyncio.wait([alive])

    def tell_ready(self, status: str) -> None:
        """From here on `systemctl start` has succeeded; the status is what `systemctl status` shows."""
        self._tell(f"READY=1\nSTATUS={status}")

    def tell_stopping(self) -> None:
        self._tell("STOPPING=1")

    async def _keep_alive(self) -> None:
        """From the event loop itself: what hangs it silences this, and systemd starts the daemon anew."""
        while self._interval_s > 0:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._interval_s)

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)
            try:
                end.sendto(text.encode(), self._address)
            except OSError as err:
                log.warning("systemd cannot be told", reason=err)


def _take(environ: MutableMapping[str, str]) -> tuple[str, float]:
    """(socket, seconds between signs of life: half of what systemd waits, as sd_watchdog_enabled(3) advises)."""
    taken = {name: environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
    address = taken["NOTIFY_SOCKET"]
    if address.startswith("@"):  # an abstract socket (unix(7))
        address = "\0" + address[1:]
    watched = taken["WATCHDOG_USEC"].isdigit() and taken["WATCHDOG_PID"] in ("", str(os.getpid()))
    return address, int(taken["WATCHDOG_USEC"]) / 2_000_000 if watched else 0.0
