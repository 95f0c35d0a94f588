"""How fast the scheduler places tasks: 5,000 nodes, 100,000 tasks, constraints and reservations in play.

Each case is measured twice in the same run: with Swarmlet's scheduler, and with the plain way to do the same (look at
every node for each group, keep them in a heap, take the best). The ratio is what to watch: it does not
depend on the machine. CPU time of this process, best of the rounds. Every outcome is checked: no node
over its capacity, no constraint broken, spread per service at most 1.

Usage: python -m benchmarks.scheduler [--nodes N] [--tasks N] [--rounds N]
"""

from __future__ import annotations

import argparse
import gc
import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.figures import Figure
from swarmlet.model.common import Platform
from swarmlet.model.node import Node, NodeDescription, NodeResources, NodeSpec
from swarmlet.model.service import ContainerSpec, Placement, Reservation, ResourceRequirements, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.decide import constraints
from swarmlet_manager.decide.filters import Wish, wish_of
from swarmlet_manager.decide.resources import capacity_of
from swarmlet_manager.decide.schedule import Scheduler
from swarmlet_manager.state import Put, State

GIB = 1 << 30
CPU = 1_000_000_000
CLASSES = 8
NODES = 5_000
TASKS = 100_000
#: (NanoCPUs, bytes) reserved by tasks; the last takes nothing.
SIZES = ((CPU // 2, GIB), (CPU // 4, GIB // 2), (CPU // 10, GIB // 4), (0, 0))
#: The plain way is slow: so many tasks of a case are enough to know its speed.
PLAIN_SAMPLE = 3_000


@dataclass(frozen=True, slots=True)
class Case:
    """target_us: the most a placement should cost on one core of a usual machine."""

    name: str
    group_size: int
    target_us: float


CASES = (Case("one at a time", 1, 10.0), Case("groups of 100", 100, 1.0), Case("groups of 1000", 1_000, 1.0))


def make_nodes(count: int) -> list[Node]:
    """Nodes of eight classes: two disks in each of four zones; 32 CPUs and 128 GiB."""
    return [
        Node(
            id=f"node{number:05}",
            spec=NodeSpec(labels={"zone": f"z{number % 4}", "disk": "ssd" if number % CLASSES < 4 else "hdd"}),
            description=NodeDescription(
                hostname=f"host-{number}",
                platform=Platform(architecture="x86_64", os="linux"),
                resources=NodeResources(nano_cpus=32 * CPU, memory_bytes=128 * GIB),
            ),
            state=NodeState.READY,
        )
        for number in range(count)
    ]


def make_task(service: int, number: int, spec: TaskSpec) -> Task:
    return Task(
        id=f"t{service}.{number}",
        service_id=f"s{service}",
        service_name=f"web{service}",
        slot=number + 1,
        spec=spec,
        spec_version=1,
        status=TaskStatus(state=TaskState.PENDING),
    )


def make_groups(tasks: int, group_size: int) -> list[list[Task]]:
    """Tasks of as many services as it takes; every second one is restricted to half of the nodes."""
    groups = []
    for service in range(tasks // group_size):
        cpus, memory = SIZES[service // 2 % len(SIZES)]
        placement = Placement(constraints=("node.labels.disk == ssd",)) if service % 2 else Placement()
        spec = TaskSpec(
            container_spec=ContainerSpec(image="busybox"),
            resources=ResourceRequirements(reservations=Reservation(nano_cpus=cpus, memory_bytes=memory)),
            placement=placement,
        )
        groups.append([make_task(service, number, spec) for number in range(group_size)])
    return groups


def in_single_steps(groups: list[list[Task]]) -> list[list[Task]]:
    """The same tasks one at a time, services taking turns."""
    return [[task] for turn in zip(*groups, strict=True) for task in turn]


def swarmlet_places(nodes: list[Node], groups: list[list[Task]]) -> tuple[float, dict[str, str]]:
    """CPU seconds for the placement alone, and node id by task id."""
    state = State()
    for node in nodes:
        state.apply(Put(node))
    scheduler = Scheduler(state)
    wishes: dict[str, Wish] = {}  # the scheduler keeps them per service and version, too
    asked = [(group, wishes.setdefault(group[0].service_id, wish_of(group[0]))) for group in groups]
    found: list[list[int]] = []
    start = time.process_time()
    for group, wish in asked:
        found.append(scheduler.find_places(wish, 1, len(group), 0))
    spent = time.process_time() - start
    names = [node.id for node in nodes]
    places = {
        task.id: names[number]
        for group, numbers in zip(groups, found, strict=True)
        for task, number in zip(group, numbers, strict=True)
    }
    return spent, places


def swarmlet_plans(nodes: list[Node], groups: list[list[Task]]) -> float:
    """CPU seconds for the whole decision, group by group: told of new tasks, records for the store, told of those."""
    state = State()
    for node in nodes:
        state.apply(Put(node))
    scheduler = Scheduler(state)
    spent = 0.0
    for group in groups:
        created = [state.apply(Put(task)) for task in group]
        start = time.process_time()
        scheduler.apply(created)
        plan = scheduler.schedule(1)
        spent += time.process_time() - start
        assert len(plan.ops) == len(group)
        written = [state.apply(op) for op in plan.ops]
        start = time.process_time()
        scheduler.apply(written)
        spent += time.process_time() - start
    return spent


def plain_places(nodes: list[Node], groups: list[list[Task]]) -> tuple[float, dict[str, str]]:
    """The plain way: filter all nodes for each group, order them in a heap, take and put back."""
    free = {node.id: list(capacity_of(node)) for node in nodes}
    total: Counter[str] = Counter()
    own: defaultdict[str, Counter[str]] = defaultdict(Counter)
    wishes = [wish_of(group[0]) for group in groups]
    places: dict[str, str] = {}
    start = time.process_time()
    for group, wish in zip(groups, wishes, strict=True):
        mine, (cpus, memory) = own[wish.service_id], wish.demand
        heap = [
            (mine[node.id], total[node.id], node.id)
            for node in nodes
            if free[node.id][0] >= cpus
            and free[node.id][1] >= memory
            and constraints.matches_all(wish.constraints or (), node)
        ]
        heapq.heapify(heap)
        for task in group:
            count, tasks, name = heap[0]
            free[name][0] -= cpus
            free[name][1] -= memory
            mine[name] += 1
            total[name] += 1
            places[task.id] = name
            if free[name][0] >= cpus and free[name][1] >= memory:
                heapq.heapreplace(heap, (count + 1, tasks + 1, name))
            else:
                heapq.heappop(heap)
    return time.process_time() - start, places


def check(nodes: list[Node], groups: Iterable[list[Task]], places: dict[str, str]) -> None:
    """Every task has a place that it may have, and no place is given away twice."""
    by_id = {node.id: node for node in nodes}
    used: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    spread: defaultdict[str, Counter[str]] = defaultdict(Counter)
    wishes: dict[str, Wish] = {}
    for group in groups:
        for task in group:
            wish = wishes.setdefault(task.service_id, wish_of(task))
            name = places[task.id]
            assert constraints.matches_all(wish.constraints or (), by_id[name]), f"{task.id} may not be on {name}"
            used[name][0] += wish.demand.nano_cpus
            used[name][1] += wish.demand.memory_bytes
            spread[task.service_id][name] += 1
    for name, (cpus, memory) in used.items():
        has = capacity_of(by_id[name])
        assert cpus <= has.nano_cpus and memory <= has.memory_bytes, f"{name} is over its capacity"
    for service, counts in spread.items():
        assert max(counts.values()) == -(-sum(counts.values()) // len(nodes)), f"{service} is not spread out"


def best(rounds: int, measure: Callable[[], float]) -> float:
    times = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()  # the records themselves are not tracked; the benchmark's own lists are
        times.append(measure())
        gc.enable()
    return min(times)


def run(nodes: list[Node], tasks: int, case: Case, rounds: int) -> tuple[float, float, float]:
    """Microseconds of CPU per task: placement alone, the whole decision, placement the plain way."""
    groups = make_groups(tasks, max(case.group_size, 100))
    if case.group_size == 1:
        groups = in_single_steps(groups)
    some = groups[: max(1, PLAIN_SAMPLE // case.group_size)]
    spent, places = swarmlet_places(nodes, groups)
    check(nodes, groups, places)
    spent = min(spent, best(rounds, lambda: swarmlet_places(nodes, groups)[0]))
    whole = best(rounds, lambda: swarmlet_plans(nodes, groups))
    plain = best(1, lambda: plain_places(nodes, some)[0])
    count, sample = sum(map(len, groups)), sum(map(len, some))
    return spent / count * 1e6, whole / count * 1e6, plain / sample * 1e6


def measure(nodes: int = NODES, tasks: int = TASKS, rounds: int = 3) -> list[Figure]:
    """Times per task, so that less is better; 10 us are 100,000 a second, 1 us is a million."""
    hosts = make_nodes(nodes)
    figures = []
    for case in CASES:
        placing, whole, plain = run(hosts, tasks, case, rounds)
        figures += [
            Figure(f"placement, {case.name}", placing, "us", plain, "the plain way", n=tasks),
            Figure("  against the target", placing, "us", bound=case.target_us, n=tasks),
            Figure("  with records, told and told back", whole, "us", plain, "the plain way", n=tasks),
        ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for figure in measure(options.nodes, options.tasks, options.rounds):
        print(figure, flush=True)


if __name__ == "__main__":
    main()
