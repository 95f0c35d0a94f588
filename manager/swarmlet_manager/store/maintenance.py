"""What the leader does to keep etcd small and its followers' watches short.

Once a minute: a tick (an empty write, so followers that wait in silence have a recent revision to resume
from), and a look at the database's size. Every five minutes: history older than ten minutes is compacted
away. Defragmenting stops a member for as long as it takes and was unsafe before etcd 3.5.6: that is left to
the operator, and the log says when it is due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet_manager.store.kv import KV, Compacted
from swarmlet_manager.store.writer import Writer

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Seconds; and the size from which the log warns (60 % of the quota that the embedded etcd gets)."""

    tick_s: float = 60.0
    compact_every_s: float = 300.0
    keep_history_s: float = 600.0
    warn_bytes: int = 8 * 1024**3 * 6 // 10


class History:
    """Which revision was current when; answers what may be forgotten. Pure."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def add(self, now: float, revision: int) -> None:
        self._marks.append((now, revision))

    def revision_before(self, time: float) -> int:
        """The newest revision that was noted at or before the time, 0 if none; older notes are dropped."""
        found = 0
        while self._marks and self._marks[0][0] <= time:
            found = self._marks.popleft()[1]
        return found


async def maintain(kv: KV, writer: Writer, schedule: Schedule) -> None:
    """Until cancelled. Trouble is logged and tried again with the next tick."""
    loop = asyncio.get_running_loop()
    history = History()
    compact_at = loop.time() + schedule.compact_every_s
    while True:
        await asyncio.sleep(schedule.tick_s)
        try:
            history.add(loop.time(), await writer.tick())
            if loop.time() >= compact_at:
                compact_at = loop.time() + schedule.compact_every_s
                await _compact(kv, history.revision_before(loop.time() - schedule.keep_history_s))
            await _check_size(kv, schedule)
        except SwarmletError as err:
            log.warning("maintenance of etcd failed", reason=err)


async def _compact(kv: KV, revision: int) -> None:
    if revision:
        try:
            await kv.compact(revision)
        except Compacted:
            return  # somebody was first
        log.debug("history compacted", revision=revision)


async def _check_size(kv: KV, schedule: Schedule) -> None:
    status = await kv.status()
    if status.alarms:
        log.error(
            "etcd has raised an alarm; if it is NOSPACE: etcdctl compact, defrag, alarm disarm",
            alarms=",".join(status.alarms),
            size_bytes=status.size_bytes,
        )
    elif status.size_bytes > schedule.warn_bytes:
        log.warning(
            "etcd's database is large; run etcdctl defrag on one member at a time, the leader last",
            size_bytes=status.size_bytes,
            in_use_bytes=status.in_use_bytes,
        )
