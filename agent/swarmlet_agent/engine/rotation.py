"""Keeping logs within their limits: the full file is renamed, and conmon told to go on with a new one.

Sizes are looked at from time to time, the sooner the faster a log grows; what went beyond its limit before anyone
looked is cut to size afterwards. No line is lost: conmon writes to the renamed file until it has opened the
next, and only after that the file is cut or packed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.decide.log_options import SHIPPING
from swarmlet_agent.decide.rotation import LogLimits, log_limits, next_look_s
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.core import Core
from swarmlet_agent.logs import rotate

log = get_logger(__name__)
#: When conmon has not made the next file after this long it is told again. Told twice without need it would throw the
#: first one away.
TELL_AGAIN_S = 5.0
_MISSING = -1


@dataclass(frozen=True, slots=True)
class _Log:
    """One to be kept within limits. settled: its files put aside are as small as they should be, and packed."""

    ident: str
    path: Path
    limits: LogLimits
    runs: bool
    settled: bool


class LogRotation:
    """One task for all containers; run by Engine from start to close."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._settled: set[str] = set()
        #: Files change under it.
        self._turn = asyncio.Lock()
        #: When each container's conmon was told to go on with a new file.
        self._told: dict[str, float] = {}
        #: When it was looked, and the sizes then.
        self._looked, self._sizes = time.monotonic(), dict[str, int]()

    async def run(self) -> None:
        """For ever. One container's trouble is logged and does not stop the others."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            try:
                pause_s = await self.check()
            except Exception:
                log.exception("looking after logs failed")
                pause_s = TELL_AGAIN_S

    async def check(self) -> float:
        """Rotate whatever is too large now, and see to what was put aside before; seconds until the next look."""
        logs = [found for unit in self._core.units.values() if (found := self._log(unit.record)) is not None]
        known = {each.ident for each in logs}
        self._settled &= known
        self._told = {ident: at for ident, at in self._told.items() if ident in known}
        if not logs:
            self._sizes = {}
            return next_look_s((), 0.0)
        async with self._turn:
            settled, sizes = await asyncio.to_thread(_look, logs)
            self._settled |= settled
            now = time.monotonic()
            full = [each for each in logs if each.runs and self._is_full(each, sizes.get(each.ident, 0), now)]
            renamed = await asyncio.to_thread(_put_aside, full) if full else ()
        growth = [
            (size, size - self._sizes.get(each.ident, 0), each.limits.max_bytes)
            for each in logs
            if each.runs and (size := sizes.get(each.ident, 0)) > 0
        ]
        pause_s = next_look_s(growth, now - self._looked)
        self._looked, self._sizes = now, sizes | dict.fromkeys(renamed, 0)
        for ident in renamed:
            self._settled.discard(ident)
            self._told[ident] = now
            try:
                await self._core.runtime.reopen_log(ident)
            except SwarmletError as err:  # it has just ended: its next run makes a new file
                log.debug("log not reopened", container_id=ident, error=str(err))
        return pause_s

    def _is_full(self, each: _Log, size: int, now: float) -> bool:
        if size == _MISSING:
            return now - self._told.get(each.ident, -TELL_AGAIN_S) >= TELL_AGAIN_S
        return size >= each.limits.max_bytes

    async def trim(self, record: Container) -> None:
        """Its run has ended, nobody writes any more: cut what has grown too large since the last look."""
        found = self._log(record)
        # Lines that are still to be sent away are not cut off: the next run's first look does that.
        if found is not None and record.host.log_config.type not in SHIPPING:
            async with self._turn:
                await asyncio.to_thread(_trim, found)

    def _log(self, record: Container) -> _Log | None:
        limits = log_limits(record.host.log_config)
        if limits is None or not record.log_path:
            return None
        return _Log(record.id, Path(record.log_path), limits, record.has_process, record.id in self._settled)


def _look(logs: Sequence[_Log]) -> tuple[set[str], dict[str, int]]:
    """Those whose files put aside are settled now, and the size of each current file."""
    settled: set[str] = set()
    sizes: dict[str, int] = {}
    for each in logs:
        try:
            if not each.settled and each.path.exists():
                rotate.cut(each.path, each.limits.max_bytes, each.limits.files, ended=False)
                if not each.limits.compress or rotate.pack_rotated(each.path):
                    settled.add(each.ident)
            sizes[each.ident] = each.path.stat().st_size
        except FileNotFoundError:
            sizes[each.ident] = _MISSING  # put aside, and conmon has not gone on yet, or has not been told
        except OSError as err:
            log.warning("rotated log cannot be cut or packed", container_id=each.ident, error=err.strerror)
            settled.add(each.ident)
    return settled, sizes


def _put_aside(logs: Sequence[_Log]) -> list[str]:
    """Those whose log has to be opened anew."""
    done = []
    for each in logs:
        try:
            rotate.put_aside(each.path, each.limits.files)
        except FileNotFoundError:
            pass  # it was put aside before
        except OSError as err:
            log.warning("log cannot be rotated", container_id=each.ident, error=err.strerror)
            continue
        done.append(each.ident)
    return done


def _trim(found: _Log) -> None:
    try:
        for ended in (False, True):
            rotate.cut(found.path, found.limits.max_bytes, found.limits.files, ended=ended)
    except OSError as err:
        log.warning("log cannot be cut", container_id=found.ident, error=err.strerror)
