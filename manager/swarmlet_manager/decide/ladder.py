"""Nodes ordered by how many tasks they run: the search order of the scheduler, kept up cheaply.

A rack has one ladder per node class, and a ladder has a rung per number of tasks. The common rack holds all nodes
and serves every demand (reservation), as long as few nodes are too full for it. A demand for which many are gets a
rack of its own: there, a node that has become too full is dropped when it is met, and comes back with `refresh` when
something is freed, so that full nodes cost nothing. Entries are lazy: a node that was filled through another rack is
found on too low a rung, and carried up on the way; a placement touches one rack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarmlet_manager.decide.resources import Demand

#: A position is rung << _CLASS_BITS | class: one comparison tells a valid entry from an outdated one.
_CLASS_BITS = 20
_ABSENT = -1
#: What a node must have at least for a demand of nothing: such tasks fit even where too much has been promised.
_ANY = -(1 << 62)
#: More stale entries than this per node, and a rack is built anew.
_STALE_FACTOR = 4
#: From this many skipped nodes on they are put behind the others, so that they are not met first again.
_SKIPPED_TO_FRONT = 8


class Loads:
    """What the nodes still have, by node number: parallel lists, because this is the innermost loop."""

    def __init__(self) -> None:
        self.nano_cpus: list[int] = []
        self.memory: list[int] = []
        self.tasks: list[int] = []
        #: The node's class, or -1 while it takes no new tasks.
        self.classes: list[int] = []


class _Ladder:
    """Rungs of one class. No node stands below `low`."""

    __slots__ = ("class_id", "low", "rungs")

    def __init__(self, class_id: int) -> None:
        self.class_id = class_id
        self.rungs: list[list[int]] = []
        self.low = 0

    def put(self, rung: int, node: int) -> int:
        """Stand the node on a rung; returns its position."""
        rungs = self.rungs
        while len(rungs) <= rung:
            rungs.append([])
        rungs[rung].append(node)
        if rung < self.low:
            self.low = rung
        return rung << _CLASS_BITS | self.class_id

    def extend(self, rung: int, nodes: Sequence[int]) -> None:
        """Stand several nodes on a rung; their positions say so already."""
        while len(self.rungs) <= rung:
            self.rungs.append([])
        self.rungs[rung] += nodes
        self.low = min(self.low, rung)


class Rack:
    """All nodes that can take a task of this demand, by class and number of tasks.

    misfits: how many nodes the last `take` met that were too full for what was asked, but not for the rack's demand.
    """

    def __init__(self, demand: Demand, loads: Loads) -> None:
        self.demand = demand
        self.misfits = 0
        self._loads = loads
        self._ladders: dict[int, _Ladder] = {}
        self._positions: list[int] = []
        self._entries = 0
        self._rebuild()

    def refresh(self, node: int) -> None:
        """The node may stand elsewhere than before: freed, changed, new, or gone."""
        positions, loads = self._positions, self._loads
        while len(positions) <= node:
            positions.append(_ABSENT)
        class_id = loads.classes[node]
        if class_id < 0 or self._is_too_full(node):
            positions[node] = _ABSENT
            return
        rung = loads.tasks[node]
        if positions[node] == rung << _CLASS_BITS | class_id:
            return
        if self._entries > _STALE_FACTOR * (len(positions) + 64):
            self._rebuild()
            return
        self._entries += 1
        positions[node] = self._ladder(class_id).put(rung, node)

    def take(
        self,
        demand: Demand,
        classes: Sequence[int],
        need: int,
        mine: dict[int, int],
        at_most: int,
        taken: list[int],
        allows: Callable[[int], bool] | None,
    ) -> int | None:
        """Take up to `need` nodes with at most `at_most` tasks of the service, the emptiest first, each once.

        demand: what each task takes, at least the rack's own.
        mine: tasks of the service per node, kept up here, as are the loads; allows: what else to ask of a node.
        Returns how many own tasks the next round must allow to find more: the least among the nodes passed over for
        having too many, and those just taken. None if there are none of either: then nothing is left to find.
        """
        ladders = [self._ladders[class_id] for class_id in classes if class_id in self._ladders]
        if not ladders:
            return None
        fresh = not mine and allows is None
        self.misfits = 0
        passed: list[int] = []
        lifted: list[tuple[_Ladder, int, list[int]]] = []
        rung = min([ladder.low for ladder in ladders])
        top = max([len(ladder.rungs) for ladder in ladders])
        start = need
        while need and rung < top:
            for ladder in ladders:
                if rung >= len(ladder.rungs):
                    continue
                if ladder.rungs[rung]:
                    if fresh:
                        found = self._take_fresh(demand, ladder, rung, need, mine)
                    else:
                        found = self._take_checked(demand, ladder, rung, need, mine, at_most, passed, allows)
                    if found:
                        taken += found
                        lifted.append((ladder, rung + 1, found))
                        need -= len(found)
                        if not need:
                            break
                if ladder.low == rung and not ladder.rungs[rung]:
                    ladder.low = rung + 1
                if len(ladder.rungs) > top:
                    top = len(ladder.rungs)
            rung += 1
        # Only after the walk, or what was taken would be met again above.
        for ladder, rung, found in lifted:
            ladder.extend(rung, found)
        if need < start:
            passed.append(at_most + 1)
        return min(passed, default=None)

    def _take_fresh(
        self, demand: Demand, ladder: _Ladder, rung: int, need: int, mine: dict[int, int]
    ) -> list[int]:
        """One rung of `take` for a service that has no task yet: nothing but demand and position is to be checked."""
        loads, positions = self._loads, self._positions
        cpus, memory, tasks = loads.nano_cpus, loads.memory, loads.tasks
        need_cpus, need_memory = demand
        least_cpus, least_memory = need_cpus or _ANY, need_memory or _ANY
        position = rung << _CLASS_BITS | ladder.class_id
        above = position + (1 << _CLASS_BITS)
        count = rung + 1
        nodes = ladder.rungs[rung]
        taken: list[int] = []
        misfits: list[int] = []
        while nodes and need:
            chunk = nodes[-need:]
            del nodes[-need:]
            good = [
                node
                for node in chunk
                if positions[node] == position
                and tasks[node] == rung
                and cpus[node] >= least_cpus
                and memory[node] >= least_memory
            ]
            if len(good) < len(chunk):
                misfits += self._sort_out(demand, ladder, rung, chunk)
            ones = dict.fromkeys(good, 1)
            if len(ones) < len(good):  # a node may stand on a rung twice
                good = list(ones)
            for node in good:
                cpus[node] -= need_cpus
                memory[node] -= need_memory
                tasks[node] = count
                positions[node] = above
            mine.update(ones)
            taken += good
            need -= len(good)
        if misfits:
            nodes[:0] = misfits
            self.misfits += len(misfits)
        return taken

    def _sort_out(self, demand: Demand, ladder: _Ladder, rung: int, nodes: Sequence[int]) -> list[int]:
        """Of nodes met on a rung: carry up those that belong higher, drop those too full for the rack.

        Returns those that are only too full for what is asked: they stay.
        """
        loads, positions, rungs = self._loads, self._positions, ladder.rungs
        tasks, class_id = loads.tasks, ladder.class_id
        least_cpus, least_memory = demand[0] or _ANY, demand[1] or _ANY
        position = rung << _CLASS_BITS | class_id
        misfits: list[int] = []
        for node in nodes:
            if positions[node] != position:
                continue
            count = tasks[node]
            if count != rung:  # always higher: what makes it lower goes through `refresh`
                while count >= len(rungs):
                    rungs.append([])
                rungs[count].append(node)
                positions[node] = count << _CLASS_BITS | class_id
            elif loads.nano_cpus[node] < least_cpus or loads.memory[node] < least_memory:
                if self._is_too_full(node):
                    positions[node] = _ABSENT
                else:
                    misfits.append(node)
        return misfits

    def _is_too_full(self, node: int) -> bool:
        least_cpus, least_memory = self.demand[0] or _ANY, self.demand[1] or _ANY
        return self._loads.nano_cpus[node] < least_cpus or self._loads.memory[node] < least_memory

    def _take_checked(
        self,
        demand: Demand,
        ladder: _Ladder,
        rung: int,
        need: int,
        mine: dict[int, int],
        at_most: int,
        passed: list[int],
        allows: Callable[[int], bool] | None,
    ) -> list[int]:
        """One rung of `take`, node by node. passed: gets the own tasks of nodes that have too many of them."""
        loads, positions = self._loads, self._positions
        cpus, memory, tasks = loads.nano_cpus, loads.memory, loads.tasks
        need_cpus, need_memory = demand
        least_cpus, least_memory = need_cpus or _ANY, need_memory or _ANY
        position = rung << _CLASS_BITS | ladder.class_id
        nodes = ladder.rungs[rung]
        skipped: list[int] = []
        taken: list[int] = []
        own = mine.get
        while nodes:
            node = nodes.pop()
            if positions[node] != position:
                continue
            if tasks[node] != rung:
                positions[node] = ladder.put(tasks[node], node)
                continue
            if cpus[node] < least_cpus or memory[node] < least_memory:
                if self._is_too_full(node):
                    positions[node] = _ABSENT
                else:
                    skipped.append(node)
                    self.misfits += 1
                continue
            have = own(node, 0)
            if have > at_most or (allows is not None and not allows(node)):
                skipped.append(node)
                if have > at_most:
                    passed.append(have)
                continue
            cpus[node] -= need_cpus
            memory[node] -= need_memory
            tasks[node] = rung + 1
            mine[node] = have + 1
            positions[node] = position + (1 << _CLASS_BITS)
            taken.append(node)
            need -= 1
            if not need:
                break
        if len(skipped) > _SKIPPED_TO_FRONT:
            nodes[:0] = skipped
        elif skipped:
            nodes += skipped
        return taken

    def _ladder(self, class_id: int) -> _Ladder:
        ladder = self._ladders.get(class_id)
        if ladder is None:
            ladder = self._ladders[class_id] = _Ladder(class_id)
        return ladder

    def _rebuild(self) -> None:
        self._ladders.clear()
        self._entries = 0
        self._positions = [_ABSENT] * len(self._loads.tasks)
        for node in range(len(self._loads.tasks)):
            self.refresh(node)
