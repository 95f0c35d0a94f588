"""Agents' status reports on their way into the store: gathered, checked, written in one commit, acknowledged.

A report changes a task only forward and only on the node that runs it (`decide.status`); what changes nothing
is acknowledged all the same, so that the agent stops repeating it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, StaleView, Unavailable
from swarmlet.log import get_logger
from swarmlet.loops import Pulse
from swarmlet.model.task import TaskStatus
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.decide.status import accept_report
from swarmlet_manager.state import Op, Put

log = get_logger(__name__)

#: At most one commit of reports in this time; the first after a quiet while goes at once.
SPACING_S = 0.03
#: The largest commit; the rest follows in the next.
BATCH = 5000
RETRY_S = 0.2
#: Longer texts of an agent are cut: they go into every copy of the task's record.
MAX_TEXT = 4096


class Reporter(Protocol):
    """The session a report came from."""

    @property
    def node_id(self) -> str: ...

    def acknowledge(self, seq: int) -> None: ...


class StatusCollector:
    """One per leader. Memory is bounded by the number of tasks there are: reports of one merge."""

    def __init__(self, store: StorePort, now: Callable[[], int]) -> None:
        self._store = store
        self._now = now
        self._pulse = Pulse(SPACING_S)
        self._pending: dict[tuple[str, str], TaskStatus] = {}  # (node, task) -> newest
        self._waiting: dict[Reporter, int] = {}  # session -> sequence to acknowledge

    def add(self, session: Reporter, seq: int, reports: list[tuple[str, TaskStatus]]) -> None:
        for task_id, status in reports:
            task = self._store.state.tasks.get(task_id)
            if task is None or task.node_id != session.node_id:
                continue  # gone meanwhile, or never this node's: acknowledged, and nothing else
            key = (session.node_id, task_id)
            known = self._pending.get(key)
            if known is None or status.state >= known.state:
                self._pending[key] = _clipped(status)
        self._waiting[session] = seq
        self._pulse.beat()

    def forget(self, session: Reporter) -> None:
        """It is gone: its reports still count, but nobody awaits the acknowledgement."""
        self._waiting.pop(session, None)

    async def run(self) -> None:
        while True:
            await self._pulse.wait()
            batch = dict(list(self._pending.items())[:BATCH])
            # Only when everything goes in one commit is every sequence number covered by it.
            waiting = dict(self._waiting) if len(batch) == len(self._pending) else {}
            for key in batch:
                del self._pending[key]
            try:
                await self._store_batch(batch)
            except (Unavailable, TimeoutError) as err:
                log.warning("status reports are waiting for the store", reports=len(batch), reason=err)
                for key, status in batch.items():
                    self._pending.setdefault(key, status)
                self._pulse.beat()
                await asyncio.sleep(RETRY_S)
                continue
            for session, seq in waiting.items():
                session.acknowledge(seq)
                if self._waiting.get(session) == seq:
                    del self._waiting[session]
            if self._pending:
                self._pulse.beat()

    async def _store_batch(self, batch: dict[tuple[str, str], TaskStatus]) -> None:
        while ops := self._ops(batch):
            try:
                await self._store.commit(ops)
            except StaleView:  # a decision changed one of the tasks meanwhile: look again
                await asyncio.sleep(0)
                continue
            except InvalidArgument as err:
                # Too much for one transaction, or one that no store can hold: its agent must not stop the others.
                if len(batch) == 1:
                    log.error("a status report cannot be stored", tasks=[key[1] for key in batch], reason=err)
                    return
                pairs = list(batch.items())
                await self._store_batch(dict(pairs[: len(pairs) // 2]))
                await self._store_batch(dict(pairs[len(pairs) // 2 :]))
            return

    def _ops(self, batch: dict[tuple[str, str], TaskStatus]) -> list[Op]:
        ops: list[Op] = []
        now = self._now()
        for (node_id, task_id), status in batch.items():
            task = self._store.state.tasks.get(task_id)
            if task is None or task.node_id != node_id:
                continue
            changed = accept_report(task, node_id, status, now)
            if changed is not None:
                ops.append(Put(changed))
        return ops


def _clipped(status: TaskStatus) -> TaskStatus:
    if len(status.message) <= MAX_TEXT and len(status.err) <= MAX_TEXT:
        return status
    return replace(status, message=status.message[:MAX_TEXT], err=status.err[:MAX_TEXT])
