"""The scheduler: gives every pending task a node, or says why none will do.

Fed with changes, it never looks at the whole state again. Tasks of one service and spec version are placed as one
group. Rules, order and words are SwarmKit's; how it is quick stands in `ladder.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.model.node import Node
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.times import NS
from swarmlet_manager.decide.filters import Wish, explain, wish_of
from swarmlet_manager.decide.plan import Plan, earliest
from swarmlet_manager.decide.seats import Seats
from swarmlet_manager.decide.spread import take_spread
from swarmlet_manager.decide.ways import is_encrypted
from swarmlet_manager.state import Change, Put, State

#: A group that finds no place is told the reason anew at most this often: it takes a look at every node.
EXPLAIN_EVERY_NS = 1 * NS
_FAILED = (TaskState.FAILED, TaskState.REJECTED)
_Group = tuple[str, int]  # service id and spec version


@dataclass(slots=True)
class _Stuck:
    """A group of which some tasks found no place: why, and when that was looked at."""

    reason: str
    explained_at: int
    outdated: bool = False


class Scheduler:
    """One per leader. Not pure, but without I/O: its memory is an index of the state it was given.

    What a plan places counts as placed for the next one. If the plan was not written (no `apply` of its tasks came
    before the next `schedule`), the placements are taken back and decided again. Any part of a plan may be
    written without the rest: its writes do not depend on each other.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._seats = Seats()
        self._pending: dict[_Group, dict[str, Task]] = {}
        self._preassigned: dict[str, dict[str, Task]] = {}
        self._refused: set[str] = set()
        self._stuck: dict[_Group, _Stuck] = {}
        self._wishes: dict[_Group, Wish] = {}
        self._unconfirmed: dict[str, Task] = {}
        for node in state.nodes.values():
            self._seats.set_node(node)
        for task in state.tasks.values():
            self._set_task(None, task)

    def apply(self, changes: Sequence[Change]) -> None:
        """Take in what was written: by the scheduler itself as well as by others."""
        for change in changes:
            before, after = change.before, change.after
            if isinstance(after, Node):
                self._seats.set_node(after)
            elif isinstance(before, Node):
                self._seats.remove_node(before)
            elif isinstance(before, Task) or isinstance(after, Task):
                self._set_task(before if isinstance(before, Task) else None, after if isinstance(after, Task) else None)

    def schedule(self, now: int) -> Plan:
        """Places for all pending tasks that can have one; the others' reasons, where these have changed."""
        self._take_back()
        freed = self._seats.freed
        puts = [put for node_id in list(self._preassigned) for put in self._confirm(node_id, freed, now)]
        for group in list(self._pending):
            stuck = self._stuck.get(group)
            if stuck is None or freed or stuck.outdated:
                puts += self._place(group, now)
        freed.clear()
        self._stuck = {group: stuck for group, stuck in self._stuck.items() if group in self._pending}
        due = [stuck.explained_at + EXPLAIN_EVERY_NS for stuck in self._stuck.values() if stuck.outdated]
        return Plan(ops=tuple(map(Put, puts)), wake_at=earliest(*due))

    # Taking in

    def _set_task(self, before: Task | None, after: Task | None) -> None:
        newest = after or before
        assert newest is not None
        self._unconfirmed.pop(newest.id, None)
        if before is not None:
            self._leave_queue(before)
        self._seats.set_task(newest.id, after)
        if after is None:
            self._refused.discard(newest.id)
            return
        if after.status.state in _FAILED and (before is None or before.status.state not in _FAILED):
            self._seats.note_failure(after, after.status.applied_at or after.status.at)
        if after.status.state == TaskState.PENDING and after.desired_state <= TaskState.RUNNING:
            self._enqueue(after, is_new=before is None or before.status.err == after.status.err)

    def _enqueue(self, task: Task, is_new: bool) -> None:
        """is_new: not merely the echo of a reason just given, which is no cause to look again."""
        if task.node_id:
            self._preassigned.setdefault(task.node_id, {})[task.id] = task
            if is_new:
                self._refused.discard(task.id)
            return
        group = (task.service_id, task.spec_version)
        self._pending.setdefault(group, {})[task.id] = task
        if is_new and group in self._stuck:
            self._stuck[group].outdated = True

    def _leave_queue(self, task: Task) -> None:
        group = (task.service_id, task.spec_version)
        waiting = self._preassigned.get(task.node_id) if task.node_id else self._pending.get(group)
        if waiting is None or waiting.pop(task.id, None) is None or waiting:
            return
        if task.node_id:
            del self._preassigned[task.node_id]
        else:
            del self._pending[group]

    def _take_back(self) -> None:
        """Forget placements that nobody wrote."""
        for task_id in list(self._unconfirmed):
            del self._unconfirmed[task_id]
            self._seats.set_task(task_id, None)
            current = self._state.tasks.get(task_id)
            if current is not None:
                self._set_task(None, current)

    # Deciding

    def _wish(self, group: _Group, task: Task) -> Wish:
        wish = self._wishes.get(group)
        if wish is None:
            if len(self._wishes) > 4 * (len(self._pending) + 1024):
                self._wishes.clear()
            wish = self._wishes[group] = wish_of(
                task, encrypted=any(is_encrypted(self._state.networks.get(place.network_id)) for place in task.networks)
            )
        return wish

    def _place(self, group: _Group, now: int) -> list[Task]:
        tasks = self._pending[group]
        first = next(iter(tasks.values()))
        wish = self._wish(group, first)
        nodes = self.find_places(wish, first.spec_version, len(tasks), now)
        status = TaskStatus(
            state=TaskState.ASSIGNED, at=now, applied_at=now, message="scheduler assigned task to node"
        )
        placed = [
            replace(task, node_id=self._seats.node_id(number), status=status, updated_at=now)
            for task, number in zip(list(tasks.values()), nodes, strict=False)
        ]
        for task in placed:
            self._seats.adopt(task)
            self._unconfirmed[task.id] = task
            del tasks[task.id]
        if not tasks:
            del self._pending[group]
            self._stuck.pop(group, None)
            return placed
        return placed + self._explain(group, wish, tasks.values(), now)

    def find_places(self, wish: Wish, spec_version: int, need: int, now: int) -> list[int]:
        """The placement itself: up to `need` node numbers, already booked."""
        failures = self._seats.many_failures((wish.service_id, spec_version), now)
        if wish.is_per_node or wish.spread or failures:
            return take_spread(self._seats, wish, need, failures)
        return self._seats.take(wish, need)

    def _explain(self, group: _Group, wish: Wish, tasks: Iterable[Task], now: int) -> list[Task]:
        """Say why the rest of a group waits, to those that have not been told the same before."""
        stuck = self._stuck.get(group)
        if stuck is None or now >= stuck.explained_at + EXPLAIN_EVERY_NS:
            refusals = (self._seats.refusal(wish, number) for number in self._seats.all_nodes())
            text = explain(refusal for refusal in refusals if refusal is not None)
            stuck = self._stuck[group] = _Stuck(f"no suitable node ({text})" if text else "no suitable node", now)
        else:
            stuck.outdated = True
        return [_waiting(task, stuck.reason, now) for task in tasks if task.status.err != stuck.reason]

    def _confirm(self, node_id: str, freed: set[str], now: int) -> list[Task]:
        """Check the tasks made for one node (global services) against its filters."""
        found: list[Task] = []
        number = self._seats.number_of(node_id)
        for task in list(self._preassigned[node_id].values()):
            if number is None or (task.id in self._refused and node_id not in freed):
                continue
            wish = self._wish((task.service_id, task.spec_version), task)
            refusal = self._seats.refusal(wish, number)
            if refusal is not None:
                self._refused.add(task.id)
                reason = explain([refusal])
                found += [] if task.status.err == reason else [_waiting(task, reason, now)]
                continue
            self._seats.book(wish, number)
            message = "scheduler confirmed task can run on preassigned node"
            status = TaskStatus(state=TaskState.ASSIGNED, at=now, applied_at=now, message=message)
            placed = replace(task, status=status, updated_at=now)
            self._seats.adopt(placed)
            self._unconfirmed[task.id] = placed
            self._refused.discard(task.id)
            self._leave_queue(task)
            found.append(placed)
        return found


def _waiting(task: Task, reason: str, now: int) -> Task:
    return replace(task, status=replace(task.status, err=reason, at=now), updated_at=now)
