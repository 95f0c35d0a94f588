"""Keeping logs within their limits: the full file is renamed, and conmon told to go on with a new one.

Sizes are looked at every second, so a fast writer gets somewhat beyond its limit, but no line is lost: conmon
writes to the renamed file until it has opened the next.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.decide.rotation import LogLimits, log_limits
from swarmlet_agent.engine.core import Core

log = get_logger(__name__)
CHECK_S = 1.0


class LogRotation:
    """One task for all containers; run by Engine from start to close."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run(self) -> None:
        """For ever. One container's trouble is logged and does not stop the others."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.check()

    async def check(self) -> None:
        """Rotate whatever is too large now."""
        limited = []
        for unit in self._core.units.values():
            limits = log_limits(unit.record.host.log_config)
            if limits is not None and unit.record.has_process and unit.record.log_path:
                limited.append((unit.id, Path(unit.record.log_path), limits))
        for ident in await asyncio.to_thread(_rotate_full, limited) if limited else ():
            try:
                await self._core.runtime.reopen_log(ident)
            except SwarmletError as err:  # it has just ended: its next run makes a new file
                log.debug("log not reopened", container_id=ident, error=str(err))


def _rotate_full(logs: Sequence[tuple[str, Path, LogLimits]]) -> list[str]:
    """Put the full ones aside; the containers whose log has to be opened anew."""
    rotated = []
    for ident, path, limits in logs:
        try:
            if path.stat().st_size < limits.max_bytes:
                continue
            _put_aside(path, limits.files)
        except FileNotFoundError:
            pass  # put aside by an engine that died before conmon was told
        except OSError as err:
            log.warning("log cannot be rotated", container_id=ident, error=err.strerror)
            continue
        rotated.append(ident)
    return rotated


def _put_aside(path: Path, files: int) -> None:
    """x.log.1 becomes x.log.2 …, x.log becomes x.log.1: `files` are left with the new one. Of one, the old goes."""
    for number in range(files - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            if number == files - 1:
                older.unlink()
            else:
                os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    if files > 1:
        os.replace(path, path.with_name(f"{path.name}.1"))
    else:
        path.unlink()
