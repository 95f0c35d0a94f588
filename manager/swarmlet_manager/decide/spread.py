"""Placing node by node: for preferences, for constraints on single nodes, and where a service keeps failing.

Slower than the ladders (a node is looked at once per group), and therefore only used where they cannot answer.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

from swarmlet_manager.decide.filters import Wish
from swarmlet_manager.decide.seats import Seats


def take_spread(seats: Seats, wish: Wish, need: int, failures: dict[int, int]) -> list[int]:
    """Like `Seats.take`, node by node: for preferences, constraints on single nodes, and nodes that failed often.

    Tasks are made equal over the values of each preference's label in turn, counting those that run already; a
    value whose nodes are full leaves the rest to the others. Inside, nodes that failed often come last.
    """
    candidates = [number for number in seats.all_nodes() if seats.refusal(wish, number) is None]
    branch = _Branch(seats, wish, candidates, failures, wish.spread)
    taken: list[int] = []
    while len(taken) < need and (number := branch.take()) is not None:
        taken.append(number)
    return taken


class _Branch:
    """Nodes that agree in the labels above; split by the next preference's label, or, at a leaf, a queue."""

    def __init__(
        self, seats: Seats, wish: Wish, nodes: list[int], failures: dict[int, int], spread: tuple[str, ...]
    ) -> None:
        self._seats = seats
        self._wish = wish
        self._leaf: list[tuple[int, int, int, int]] = []
        self._branches: list[tuple[int, str, _Branch]] = []
        self.tasks = sum(seats.own_tasks(wish.service_id, number) for number in nodes)
        self._failures = failures
        if not spread:
            self._leaf = [self._rank(number) for number in nodes]
            heapq.heapify(self._leaf)
            return
        parts: defaultdict[str, list[int]] = defaultdict(list)
        for number in nodes:
            parts[seats.label(number, spread[0])].append(number)
        for value, part in sorted(parts.items()):
            branch = _Branch(seats, wish, part, failures, spread[1:])
            self._branches.append((branch.tasks, value, branch))
        heapq.heapify(self._branches)

    def take(self) -> int | None:
        """The next node, booked; None if no node of this branch can take more."""
        number = self._take_leaf() if not self._branches else self._take_branch()
        self.tasks += number is not None
        return number

    def _take_branch(self) -> int | None:
        while self._branches:
            _, value, branch = self._branches[0]
            number = branch.take()
            if number is None:
                heapq.heappop(self._branches)
                continue
            heapq.heapreplace(self._branches, (branch.tasks, value, branch))
            return number
        return None

    def _take_leaf(self) -> int | None:
        while self._leaf:
            number = self._leaf[0][3]
            if self._seats.refusal(self._wish, number) is not None:
                heapq.heappop(self._leaf)
                continue
            self._seats.book(self._wish, number)
            heapq.heapreplace(self._leaf, self._rank(number))
            return number
        return None

    def _rank(self, number: int) -> tuple[int, int, int, int]:
        own = self._seats.own_tasks(self._wish.service_id, number)
        return (self._failures.get(number, 0), own, self._seats.loads.tasks[number], number)
