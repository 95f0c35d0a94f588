"""Status reports on their way to the manager: newest per task, sent again until acknowledged. Pure bookkeeping.

Its size is bounded by the number of tasks. An acknowledgement covers its update and all before it; a report
that was overtaken by a newer one of the same task while it was on its way stays pending in the newer form.
"""

from __future__ import annotations

from swarmlet.model.task import TaskStatus
from swarmlet.wire.messages import StatusUpdate, TaskReport

#: Reports per frame: what queues up beyond rides in the next.
MAX_REPORTS = 2000


class StatusBuffer:
    def __init__(self) -> None:
        self._pending: dict[str, TaskStatus] = {}
        self._sent: dict[int, dict[str, TaskStatus]] = {}
        self._seq = 0

    def __len__(self) -> int:
        """Tasks whose newest status is not acknowledged."""
        return len(self._pending.keys() | {ident for sent in self._sent.values() for ident in sent})

    def report(self, task_id: str, status: TaskStatus) -> None:
        self._pending[task_id] = status

    def forget(self, task_id: str) -> None:
        """The task's record is gone: nobody wants to know any more."""
        self._pending.pop(task_id, None)
        for sent in self._sent.values():
            sent.pop(task_id, None)

    def take(self) -> StatusUpdate | None:
        """The next frame, or None if there is nothing new to send."""
        if not self._pending:
            return None
        batch = dict(list(self._pending.items())[:MAX_REPORTS])
        for ident in batch:
            del self._pending[ident]
        self._seq += 1
        self._sent[self._seq] = batch
        reports = tuple(TaskReport(task_id=ident, status=status) for ident, status in batch.items())
        return StatusUpdate(seq=self._seq, reports=reports)

    def acknowledge(self, seq: int) -> None:
        for sent in [sent for sent in self._sent if sent <= seq]:
            del self._sent[sent]

    def session_lost(self) -> None:
        """What was sent without an acknowledgement is to be sent again."""
        for seq in sorted(self._sent, reverse=True):  # the newest word on a task is kept
            for ident, status in self._sent[seq].items():
                self._pending.setdefault(ident, status)
        self._sent.clear()
