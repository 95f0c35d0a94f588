"""Containers end in order where the host goes down.

An agent that ends leaves its containers to the next one. There is none where the host itself goes down: systemd then
sends SIGTERM to every process that is left, and waits a minute and a half for those that ignore it
(DefaultTimeoutStopSec=), as the first process of a container does unless it has a handler (pid_namespaces(7)). So each
gets its own stop signal and its own time. Their records stay as they are: the next start handles them by their restart
policies, as after any boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.commands import output_of
from swarmlet_agent.decide.signals import parse_signal
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.signals import STOP_TIMEOUT_S

log = get_logger(__name__)

#: There where systemd runs the host (sd_booted(3)).
SYSTEMD = Path("/run/systemd/system")
#: systemd is asked how it is.
ASK_S = 5.0
#: The longest any container gets, whatever its own time to stop is: systemd gives a unit 90 s altogether.
MOST_S = 60.0


class Runtime(Protocol):
    async def kill(self, container_id: str, number: int, *, everything: bool = False) -> None: ...

    async def wait(self, container_id: str) -> object: ...


async def host_goes_down() -> bool:
    """Whether systemd is shutting the host down (systemctl(1), is-system-running: "stopping")."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not SYSTEMD.is_dir():
        return False
    try:
        said = await output_of(systemctl, "is-system-running", timeout_s=ASK_S)
    except TimeoutError:
        return False
    return said.strip() == b"stopping"


async def end_containers(runtime: Runtime, containers: Iterable[Container]) -> None:
    """Returns once none of those that run is alive, or nothing more can be done. The engine must be closed before: it
    would start again what ends."""
    running = [container for container in containers if container.has_process]
    if running:
        log.info("the host goes down: containers end", count=len(running))
        await asyncio.gather(*(_end(runtime, container) for container in running))


async def _end(runtime: Runtime, container: Container) -> None:
    """Its stop signal, its time, SIGKILL. One that is paused cannot act on a signal: it ends with the host."""
    if container.state.status == "paused":
        return
    asked = container.request.stop_timeout
    grace_s = STOP_TIMEOUT_S if asked is None else asked
    try:
        await runtime.kill(container.id, parse_signal(container.request.stop_signal or "SIGTERM"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOST_S if grace_s < 0 else min(grace_s, MOST_S)):
                await runtime.wait(container.id)
                return
        await runtime.kill(container.id, signal.SIGKILL)
    except (SwarmletError, OSError) as err:
        log.warning("a container is left to the host's end", container_id=container.id, reason=str(err))
