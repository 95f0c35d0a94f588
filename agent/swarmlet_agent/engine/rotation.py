"""Keeping logs within their limits: the full file is renamed, and conmon told to go on with a new one.

Sizes are looked at every second, so a fast writer gets somewhat beyond its limit, but no line is lost: conmon
writes to the renamed file until it has opened the next. Only after that may a file be packed.
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
from swarmlet_agent.logs.files import PACKED, log_files, pack

log = get_logger(__name__)
CHECK_S = 1.0


class LogRotation:
    """One task for all containers; run by Engine from start to close."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: Containers whose files put aside are all packed; the others are looked at.
        self._packed: set[str] = set()

    async def run(self) -> None:
        """For ever. One container's trouble is logged and does not stop the others."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.check()

    async def check(self) -> None:
        """Rotate whatever is too large now, and pack what was put aside before."""
        limited, unpacked = [], []
        self._packed &= self._core.units.keys()
        for unit in self._core.units.values():
            limits = log_limits(unit.record.host.log_config)
            if limits is None or not unit.record.log_path:
                continue
            if unit.record.has_process:
                limited.append((unit.id, Path(unit.record.log_path), limits))
            if limits.compress and unit.id not in self._packed:
                unpacked.append((unit.id, Path(unit.record.log_path)))
        if unpacked:
            self._packed.update(await asyncio.to_thread(_pack_all, unpacked))
        for ident in await asyncio.to_thread(_rotate_full, limited) if limited else ():
            self._packed.discard(ident)
            try:
                await self._core.runtime.reopen_log(ident)
            except SwarmletError as err:  # it has just ended: its next run makes a new file
                log.debug("log not reopened", container_id=ident, error=str(err))


def _pack_all(logs: Sequence[tuple[str, Path]]) -> list[str]:
    """Pack the files put aside; the containers that have no other any more."""
    done = []
    for ident, path in logs:
        try:
            # Without the new file conmon still writes to the last one, or will when the container starts again.
            if not path.exists():
                continue
            for each in log_files(path)[:-1]:
                plain = each.with_name(each.name.removesuffix(PACKED))
                if each.suffix == PACKED:
                    plain.unlink(missing_ok=True)
                else:
                    pack(plain)
        except OSError as err:
            log.warning("rotated log cannot be packed", container_id=ident, error=err.strerror)
        done.append(ident)
    return done


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
        for suffix in ("", PACKED):
            older = path.with_name(f"{path.name}.{number}{suffix}")
            if not older.exists():
                continue
            if number == files - 1:
                older.unlink()
            else:
                os.replace(older, path.with_name(f"{path.name}.{number + 1}{suffix}"))
    if files > 1:
        os.replace(path, path.with_name(f"{path.name}.1"))
    else:
        path.unlink()
