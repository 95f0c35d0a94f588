"""What the scheduler knows of all nodes: what is free on each, who runs there, and which of them look alike.

Fed with single changes; `place` decides for many tasks at once and books what it decides. Nodes are numbered here,
because the innermost loops work on lists.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from swarmlet.model.node import Node
from swarmlet.model.task import Task
from swarmlet.model.times import NS
from swarmlet_manager.decide.constraints import value_of
from swarmlet_manager.decide.filters import Filter, Wish, normal_architecture, static_refusal
from swarmlet_manager.decide.ladder import Loads, Rack
from swarmlet_manager.decide.nodes import takes_new_tasks
from swarmlet_manager.decide.resources import (
    NO_DEMAND,
    Demand,
    HostPort,
    capacity_of,
    counts_for_spread,
    demand_of,
    holds_resources,
    host_ports,
)

#: This many failures of a service within the window, and its other nodes are preferred (SwarmKit).
MAX_FAILURES = 5
FAILURE_WINDOW_NS = 300 * NS
#: Racks kept: the common one, and one per demand many nodes are too full for. A cluster has a few sizes of tasks.
_MAX_RACKS = 64
#: A demand for which more nodes than this (and than were found) are too full gets a rack of its own.
_MANY_MISFITS = 32

#: Wishes remembered; forgetting them costs one question per class.
_MAX_VERDICTS = 4096

_Version = tuple[str, int]  # service id and spec version
_Signature = tuple[object, ...]


@dataclass(slots=True)
class _Verdicts:
    """What the classes say to one wish, whatever runs on their nodes: refusals by class, and who has none."""

    refusals: list[Filter | None]
    eligible: list[int]


class Seats:
    """Nodes with their free resources, ports and task counts."""

    def __init__(self) -> None:
        self.loads = Loads()
        self._nodes: list[Node | None] = []
        self._numbers: dict[str, int] = {}
        self._held: dict[str, Task] = {}
        self._own: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self._ports: defaultdict[int, Counter[HostPort]] = defaultdict(Counter)
        self._failures: defaultdict[_Version, dict[int, list[int]]] = defaultdict(dict)
        self._racks: dict[Demand, Rack] = {}
        self._keys: frozenset[str] = frozenset()
        self._signatures: dict[_Signature, int] = {}
        self._samples: list[Node] = []
        self._members: list[int] = []
        self._verdicts: dict[Wish, _Verdicts] = {}
        self._shared_verdicts: dict[tuple[object, ...], _Verdicts] = {}
        #: Nodes on which something was freed or changed for the better since the caller last cleared it.
        self.freed: set[str] = set()

    # What happens to nodes

    def set_node(self, node: Node) -> None:
        """A node is new or has changed."""
        number = self._number_for(node.id)
        known = self._nodes[number]
        before = NO_DEMAND if known is None else capacity_of(known)
        now = capacity_of(node)
        self._nodes[number] = node
        self.loads.nano_cpus[number] += now.nano_cpus - before.nano_cpus
        self.loads.memory[number] += now.memory_bytes - before.memory_bytes
        self._set_class(number, self._class_of(node))
        self._changed(number)

    def remove_node(self, node: Node) -> None:
        """A node has left the cluster. Its number is not used again; what its tasks hold is let go with them."""
        number = self._numbers.get(node.id)
        known = None if number is None else self._nodes[number]
        if number is None or known is None:
            return
        capacity = capacity_of(known)
        self.loads.nano_cpus[number] -= capacity.nano_cpus
        self.loads.memory[number] -= capacity.memory_bytes
        self._nodes[number] = None
        self._set_class(number, -1)
        self._changed(number)

    def set_task(self, task_id: str, task: Task | None) -> None:
        """A task's record has changed, or (None) is gone."""
        before = self._held.get(task_id)
        after = task if task is not None and holds_resources(task) else None
        if after is not None:
            self._held[task_id] = after
        elif before is not None:
            del self._held[task_id]
        if before is None or after is None or before.node_id != after.node_id:
            self._move(before, -1)
            self._move(after, 1)
        elif counts_for_spread(before) != counts_for_spread(after):
            self._count(self._number_for(after.node_id), after, 1 if counts_for_spread(after) else -1)

    def note_failure(self, task: Task, at: int) -> None:
        """A task failed on its node at this time, ns."""
        number = self._numbers.get(task.node_id)
        if number is not None:
            times = self._failures[task.service_id, task.spec_version].setdefault(number, [])
            times.append(at)
            del times[:-MAX_FAILURES]

    # What the scheduler asks

    def node_id(self, number: int) -> str:
        node = self._nodes[number]
        assert node is not None
        return node.id

    def all_nodes(self) -> Iterator[int]:
        return (number for number, node in enumerate(self._nodes) if node is not None)

    def number_of(self, node_id: str) -> int | None:
        number = self._numbers.get(node_id)
        return None if number is None or self._nodes[number] is None else number

    def own_tasks(self, service_id: str, number: int) -> int:
        """Active tasks of the service on the node."""
        return self._own[service_id].get(number, 0) if service_id in self._own else 0

    def label(self, number: int, descriptor: str) -> str:
        """The value that a placement preference spreads over; "" where the node has none."""
        node = self._nodes[number]
        return "" if node is None else value_of(descriptor, node) or ""

    def refusal(self, wish: Wish, number: int) -> Filter | None:
        """The first filter the node fails; None if it can take one more such task."""
        loads, demand = self.loads, wish.demand
        if loads.classes[number] < 0:
            return Filter.READY
        # What promises too much already still takes tasks that reserve nothing.
        if demand.nano_cpus > max(0, loads.nano_cpus[number]) or demand.memory_bytes > max(0, loads.memory[number]):
            return Filter.RESOURCE
        if (static := self._static_refusal(wish, number)) is not None:
            return static
        return self._refusal_now(wish, number)

    def many_failures(self, version: _Version, now: int) -> dict[int, int]:
        """Nodes on which this version has failed often lately, with how often."""
        failures = self._failures.get(version)
        if failures is None:
            return {}
        since = now - FAILURE_WINDOW_NS
        recent = {number: sum(1 for at in times if at > since) for number, times in failures.items()}
        if not any(recent.values()):
            del self._failures[version]
        return {number: count for number, count in recent.items() if count >= MAX_FAILURES}

    def book(self, wish: Wish, number: int) -> None:
        """Count one more such task on the node (the ladders' own `take` has done so already)."""
        self.loads.nano_cpus[number] -= wish.demand.nano_cpus
        self.loads.memory[number] -= wish.demand.memory_bytes
        self.loads.tasks[number] += 1
        own = self._own[wish.service_id]
        own[number] = own.get(number, 0) + 1
        self._ports[number].update(wish.ports)

    def adopt(self, task: Task) -> None:
        """A task that was placed by `take` or `book`: from now on its record stands for what they have counted."""
        self._held[task.id] = task

    def take(self, wish: Wish, need: int) -> list[int]:
        """Up to `need` nodes for tasks that differ in nothing, booked: evenly, the emptiest nodes first.

        Nodes with the fewest tasks of the service come first, among them those with the fewest in all. A node may
        come several times. For wishes that are per node or have preferences there is `spread.take_spread`.
        """
        taken: list[int] = []
        classes = self._verdicts_on(wish).eligible
        rack = self._racks.get(wish.demand) or self._racks.get(NO_DEMAND) or self._new_rack(NO_DEMAND)
        own = self._own[wish.service_id]
        allows = self._check(wish) if wish.ports or wish.max_replicas else None
        at_most: int | None = self._fewest(own, classes) if own else 0
        while at_most is not None and len(taken) < need:
            before = len(taken)
            at_most = rack.take(wish.demand, classes, need - before, own, at_most, taken, allows)
            if rack.misfits > _MANY_MISFITS + len(taken) - before:
                rack = self._new_rack(wish.demand)
            if wish.ports:
                for number in taken[before:]:
                    self._ports[number].update(wish.ports)
        if not taken and not own:
            del self._own[wish.service_id]
        return taken

    # Inside

    def _fewest(self, own: dict[int, int], classes: list[int]) -> int:
        """A round to begin with that skips none: where each node has tasks of the service, the first are in vain."""
        nodes = sum(self._members[class_id] for class_id in classes)
        if len(own) < nodes:
            return 0
        chosen = set(classes)
        counts = [count for number, count in own.items() if self.loads.classes[number] in chosen]
        return 0 if len(counts) < nodes else min(counts, default=0)

    def _check(self, wish: Wish) -> Callable[[int], bool]:
        return lambda number: self._refusal_now(wish, number) is None

    def _refusal_now(self, wish: Wish, number: int) -> Filter | None:
        if wish.ports and number in self._ports and not self._ports[number].keys().isdisjoint(wish.ports):
            return Filter.HOST_PORT
        if wish.max_replicas and self.own_tasks(wish.service_id, number) >= wish.max_replicas:
            return Filter.MAX_REPLICAS
        return None

    def _new_rack(self, demand: Demand) -> Rack:
        while len(self._racks) >= _MAX_RACKS:
            del self._racks[next(iter(self._racks))]
        rack = self._racks[demand] = Rack(demand, self.loads)
        return rack

    def _static_refusal(self, wish: Wish, number: int) -> Filter | None:
        if wish.is_per_node:
            node = self._nodes[number]
            return None if node is None else static_refusal(wish, node)
        verdicts = self._verdicts_on(wish)
        return verdicts.refusals[self.loads.classes[number]]

    def _verdicts_on(self, wish: Wish) -> _Verdicts:
        """What each class says to a wish. Asked once per class, on a sample, not once per node."""
        verdicts = self._verdicts.get(wish)
        if verdicts is None:
            if not wish.keys <= self._keys:
                self._keys |= wish.keys
                self._classify()
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
                self._shared_verdicts.clear()
            # Most wishes ask the same few things: those share what was found.
            statics = (wish.constraints, wish.platforms, wish.plugins, wish.encrypted)
            verdicts = self._verdicts[wish] = self._shared_verdicts.setdefault(statics, _Verdicts([], []))
        if len(verdicts.refusals) == len(self._samples):
            return verdicts
        for class_id in range(len(verdicts.refusals), len(self._samples)):
            refused = static_refusal(wish, self._samples[class_id])
            verdicts.refusals.append(refused)
            if refused is None:
                verdicts.eligible.append(class_id)
        return verdicts

    def _classify(self) -> None:
        self._signatures.clear()
        self._samples.clear()
        self._members.clear()
        self._verdicts.clear()
        self._shared_verdicts.clear()
        self._racks.clear()
        self.loads.classes[:] = [-1] * len(self._nodes)
        for number, node in enumerate(self._nodes):
            if node is not None:
                self._set_class(number, self._class_of(node))

    def _class_of(self, node: Node) -> int:
        """Nodes of one class answer every question that is asked so far alike."""
        if not takes_new_tasks(node):
            return -1
        platform = node.description.platform
        signature = (
            platform.os.lower(),
            normal_architecture(platform.architecture),
            frozenset((plugin.type, plugin.name) for plugin in node.description.engine.plugins),
            not node.ways.lacking,
            *(value_of(key, node) for key in sorted(self._keys)),
        )
        class_id = self._signatures.get(signature)
        if class_id is None:
            class_id = self._signatures[signature] = len(self._samples)
            self._samples.append(node)
            self._members.append(0)
        return class_id

    def _set_class(self, number: int, class_id: int) -> None:
        classes = self.loads.classes
        if classes[number] >= 0:
            self._members[classes[number]] -= 1
        classes[number] = class_id
        if class_id >= 0:
            self._members[class_id] += 1

    def _number_for(self, node_id: str) -> int:
        """The node's number; a node first heard of through one of its tasks has one, but takes none."""
        number = self._numbers.get(node_id)
        if number is None:
            number = self._numbers[node_id] = len(self._nodes)
            self._nodes.append(None)
            for row in (self.loads.nano_cpus, self.loads.memory, self.loads.tasks):
                row.append(0)
            self.loads.classes.append(-1)
        return number

    def _move(self, task: Task | None, sign: int) -> None:
        if task is not None:
            number = self._number_for(task.node_id)
            self._book(number, task, sign)
            self._changed(number)

    def _book(self, number: int, task: Task, sign: int) -> None:
        demand = demand_of(task.spec)
        self.loads.nano_cpus[number] -= sign * demand.nano_cpus
        self.loads.memory[number] -= sign * demand.memory_bytes
        for port in host_ports(task.ports):
            self._ports[number][port] += sign
            if not self._ports[number][port]:
                del self._ports[number][port]
        if counts_for_spread(task):
            self._count(number, task, sign)

    def _count(self, number: int, task: Task, sign: int) -> None:
        self.loads.tasks[number] += sign
        own = self._own[task.service_id]
        own[number] = own.get(number, 0) + sign
        if not own[number]:
            del own[number]
        if not own:
            del self._own[task.service_id]
        self._changed(number)

    def _changed(self, number: int) -> None:
        node = self._nodes[number]
        if node is not None:
            self.freed.add(node.id)
        for rack in self._racks.values():
            rack.refresh(number)
