"""Whose order to stop waits until every node sends new clients elsewhere. Pure bookkeeping of the leader.

A task that clients are led to leaves the virtual addresses and the routing mesh first, and is told to stop afterwards:
as soon as every node that led there has said that it does so no more, or after a grace. A node that has no session is
not waited for: it would hear of the stop no sooner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Group:
    """Tasks that leave together. nodes: those that have not answered yet."""

    tasks: frozenset[str]
    nodes: set[str]


class Leaving:
    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._held: dict[str, int] = {}
        self._last = 0

    def begin(self, tasks: Iterable[str], nodes: Iterable[str]) -> int:
        """The group's number, 0 if there is nobody to wait for."""
        waiting = set(nodes)
        going = frozenset(tasks)
        if not waiting or not going:
            return 0
        self._last += 1
        self._groups[self._last] = _Group(going, waiting)
        self._held.update(dict.fromkeys(going, self._last))
        return self._last

    def holds(self, task_id: str) -> bool:
        return task_id in self._held

    def awaiting(self, node_id: str) -> tuple[int, ...]:
        """The groups that wait for this node."""
        return tuple(number for number, group in self._groups.items() if node_id in group.nodes)

    def left(self, node_id: str, groups: Iterable[int]) -> list[str]:
        """This node leads to none of these groups' tasks any more. The tasks that nobody is waited for now."""
        free: list[str] = []
        for number in groups:
            if (group := self._groups.get(number)) is not None:
                group.nodes.discard(node_id)
                if not group.nodes:
                    free += self.end(number)
        return free

    def end(self, number: int) -> list[str]:
        """Wait no longer, whoever has not answered. The tasks that waited; none if they do not any more."""
        group = self._groups.pop(number, None)
        if group is None:
            return []
        free = sorted(task for task in group.tasks if self._held.get(task) == number)
        for task in free:
            del self._held[task]
        return free
