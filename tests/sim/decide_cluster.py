"""A cluster without machines: the real decisions, agents that only pretend to run containers, and a virtual clock.

Everything that happens follows from one seed. After every write the safety rules are checked; `settle` then lets
time pass, and `check_settled` asks whether the cluster has become what its users asked for.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from swarmlet.model.common import Platform
from swarmlet.model.defaults import replicas
from swarmlet.model.node import Node, NodeDescription, NodeResources, NodeSpec
from swarmlet.model.service import Service, ServiceSpec
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.times import NS
from swarmlet_manager.control import edits
from swarmlet_manager.decide import allocate
from swarmlet_manager.decide.dirty import is_dirty
from swarmlet_manager.decide.nodes import is_valid, plan_node, suits
from swarmlet_manager.decide.orchestrate import plan_service
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.decide.reaper import plan_reap
from swarmlet_manager.decide.resources import capacity_of, demand_of, holds_resources, host_ports
from swarmlet_manager.decide.schedule import Scheduler
from swarmlet_manager.decide.status import accept_report
from swarmlet_manager.dispatch.feed import Feed
from swarmlet_manager.state import Change, Delete, Op, Put, State

MS = NS // 1000
GIB = 1 << 30
#: Decisions must come to rest within so many passes after a single event.
MOST_PASSES = 30


@dataclass
class Container:
    """What an agent has of a task. alive: a process runs."""

    state: TaskState
    alive: bool = False
    stopping: bool = False


@dataclass
class Agent:
    """A host: `up` is power, `linked` the network to the managers. Containers outlive a cut link, not power."""

    node_id: str
    up: bool = True
    linked: bool = True
    wrong_clock: int = 0
    containers: dict[str, Container] = field(default_factory=dict)
    #: What it was last told, and the manager's memory of that, which lasts as long as their session.
    orders: dict[str, Task] = field(default_factory=dict)
    feed: Feed = field(init=False)
    unsent: dict[str, TaskStatus] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.feed = Feed(self.node_id)


class Cluster:
    """State, planners and agents in one virtual time."""

    def __init__(self, seed: int, hosts: int = 3, now: int = 1_000 * NS) -> None:
        self.random = random.Random(seed)
        self.now = now
        self.state = State()
        self.agents: dict[str, Agent] = {}
        self.peak_active: Counter[str] = Counter()
        self.least_running: dict[str, int] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._revision = 0
        self._dirty_services: set[str] = set()
        self._dirty_nodes: set[str] = set()
        self._reap: set[str] = set()
        self.scheduler = Scheduler(self.state)
        for number in range(hosts):
            self.add_host(f"n{number}", zone=f"z{number % 2}")

    # Users

    def new_id(self) -> str:
        return f"id{next(self._ids):05}"

    def add_host(self, name: str, zone: str = "z0", cpus: int = 4, memory: int = 8 * GIB) -> None:
        node = Node(
            id=name,
            spec=NodeSpec(labels={"zone": zone}),
            description=NodeDescription(
                hostname=name,
                platform=Platform(architecture="x86_64", os="linux"),
                resources=NodeResources(nano_cpus=cpus * NS, memory_bytes=memory),
            ),
            state=NodeState.READY,
        )
        self.agents[name] = Agent(name, wrong_clock=self.random.choice((0, 0, -3600 * NS, 3600 * NS)))
        self.commit([Put(node)])

    def create(self, spec: ServiceSpec) -> str:
        ports = allocate.plan_ports(self.state, "", spec)
        service = Service(id=self.new_id(), spec=spec, created_at=self.now, updated_at=self.now, ports=ports)
        self.commit([Put(service)])
        return service.id

    def update(self, service_id: str, spec: ServiceSpec) -> None:
        service = self.state.services[service_id]
        ports = allocate.plan_ports(self.state, service_id, spec)
        self.commit([Put(edits.updated_service(service, spec, ports, b"", self.now))])

    def roll_back(self, service_id: str) -> None:
        service = self.state.services[service_id]
        assert service.previous_spec is not None
        ports = allocate.plan_ports(self.state, service_id, service.previous_spec)
        self.commit([Put(edits.rolled_back_service(service, ports, self.now))])

    def remove(self, service_id: str) -> None:
        self.commit([Put(replace(self.state.services[service_id], pending_delete=True))])

    def set_availability(self, name: str, availability: Availability) -> None:
        node = self.state.nodes[name]
        self.commit([Put(replace(node, spec=replace(node.spec, availability=availability)))])

    def set_labels(self, name: str, labels: dict[str, str]) -> None:
        node = self.state.nodes[name]
        self.commit([Put(replace(node, spec=replace(node.spec, labels=labels)))])

    def remove_host(self, name: str) -> None:
        """Power off, and `node rm --force`."""
        self.power_off(name)
        del self.agents[name]
        self.commit([Delete(self.state.nodes[name])])

    # Misfortune

    def power_off(self, name: str) -> None:
        agent = self.agents[name]
        agent.up = False
        for container in agent.containers.values():
            container.alive = False
        self._lost(name)

    def power_on(self, name: str) -> None:
        """It comes back and remembers its tasks; what ran has died without a report."""
        agent = self.agents[name]
        agent.up = True
        for task_id, container in agent.containers.items():
            if not container.state.is_terminal:
                self._report(agent, task_id, TaskState.FAILED, err="task: lost with the host")
        self._found(name)

    def cut(self, name: str) -> None:
        self.agents[name].linked = False
        self._lost(name)

    def heal(self, name: str) -> None:
        self.agents[name].linked = True
        self._found(name)

    def crash_one(self) -> None:
        """Some running container dies."""
        alive = [
            (agent, task_id)
            for agent in self.agents.values()
            for task_id, container in sorted(agent.containers.items())
            if container.alive and not container.stopping
        ]
        if alive:
            agent, task_id = self.random.choice(alive)
            self._end(agent, task_id, TaskState.FAILED, "task: non-zero exit (1)")

    def new_leader(self) -> None:
        """Another manager takes over: it has nothing but the state."""
        self.scheduler = Scheduler(self.state)
        self._dirty_services |= set(self.state.services)
        self._dirty_nodes |= set(self.state.nodes)

    def _lost(self, name: str) -> None:
        self.after(3 * NS, lambda: self._judge(name))

    def _found(self, name: str) -> None:
        agent = self.agents[name]
        if agent.up and agent.linked:
            self._set_node_state(name, NodeState.READY)
            for task_id, status in list(agent.unsent.items()):
                self._send(agent, task_id, status)
            agent.feed = Feed(agent.feed.node_id)
            self._sync(agent)

    def _judge(self, name: str) -> None:
        agent = self.agents.get(name)
        if agent is not None and not (agent.up and agent.linked):
            self._set_node_state(name, NodeState.DOWN)

    def _set_node_state(self, name: str, state: NodeState) -> None:
        node = self.state.nodes.get(name)
        if node is not None and node.state is not state:
            self.commit([Put(replace(node, state=state, state_changed_at=self.now))])

    # Time

    def after(self, delay: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let time pass, deciding whenever something happens."""
        end = self.now + int(seconds * NS)
        self._decide()
        while self._events and self._events[0][0] <= end:
            at, _, action = heapq.heappop(self._events)
            self.now = max(self.now, at)
            action()
            self._decide()
        self.now = end

    # Writing

    def commit(self, ops: Sequence[Op]) -> None:
        """All or nothing, guarded by versions, as the store does it."""
        for op in ops:
            current = self.state.get(op.record)
            version = 0 if current is None else current.version
            assert op.record.version == version, f"stale write of {op.record.id}"
            if isinstance(op, Put) and isinstance(current, Task) and isinstance(op.record, Task):
                check_growth(current, op.record)
        changes = []
        for op in ops:
            self._revision += 1
            stamped = Put(replace(op.record, version=self._revision)) if isinstance(op, Put) else op
            changes.append(self.state.apply(stamped))
        self.scheduler.apply(changes)
        for change in changes:
            self._mark(change)
        for task in [record for change in changes if isinstance(record := change.record, Task)]:
            agent = self.agents.get(task.node_id)
            if agent is not None:
                agent.feed.note(task.id)
                self.after(self.random.randrange(1, 50) * MS, lambda agent=agent: self._sync(agent))
        self._check_safety()

    def _mark(self, change: Change) -> None:
        record = change.record
        if isinstance(record, Task):
            self._dirty_services.add(record.service_id)
            self._reap.add(record.service_id)
            self._dirty_nodes.add(record.node_id)
        elif isinstance(record, Service):
            self._dirty_services.add(record.id)
            self._dirty_nodes |= {task.node_id for task in self.state.tasks_of_service(record.id)}
        elif isinstance(record, Node):
            self._dirty_nodes.add(record.id)
            self._dirty_services |= set(self.state.services)

    def _decide(self) -> None:
        for _ in range(MOST_PASSES):
            plans = self._plans()
            if not any(plan.ops for plan in plans):
                return
        raise AssertionError(f"decisions do not come to rest: {plans}")

    def _plans(self) -> list[Plan]:
        plans = []
        nodes, self._dirty_nodes = self._dirty_nodes, set()
        for node_id in sorted(filter(None, nodes)):
            plans.append(self._carry_out(plan_node(self.state, node_id, self.now), lambda n=node_id: {n}, set))
        services, self._dirty_services = self._dirty_services, set()
        for service_id in sorted(services):
            plan = plan_service(self.state, service_id, self.now, self.new_id)
            plans.append(self._carry_out(plan, set, lambda s=service_id: {s}))
        plans.append(self._carry_out(self.scheduler.schedule(self.now), set, set))
        reap, self._reap = self._reap, set()
        plans.append(self._carry_out(plan_reap(self.state, self.now, services=reap), set, set))
        return plans

    def _carry_out(self, plan: Plan, nodes: Callable[[], set[str]], services: Callable[[], set[str]]) -> Plan:
        if plan.ops:
            self.commit(plan.ops)
        if plan.wake_at is not None:

            def wake() -> None:
                self._dirty_nodes |= nodes()
                self._dirty_services |= services()

            assert plan.wake_at > self.now, f"to be woken in the past: {plan}"
            self.after(plan.wake_at - self.now, wake)
        return plan

    # Agents

    def _sync(self, agent: Agent) -> None:
        """The agent learns its orders and acts on what has changed."""
        if not (agent.up and agent.linked) or self.agents.get(agent.node_id) is not agent:
            return
        full, tasks, removed = agent.feed.take(self.state)
        if full:
            agent.orders = {}
        agent.orders.update((task.id, task) for task in tasks)
        for task_id in removed:
            agent.orders.pop(task_id, None)
        for task_id in [task_id for task_id in agent.containers if task_id not in agent.orders]:
            del agent.containers[task_id]
            agent.unsent.pop(task_id, None)
        for task in agent.orders.values():
            container = agent.containers.get(task.id)
            if container is None:
                container = agent.containers[task.id] = Container(max(task.status.state, TaskState.ASSIGNED))
                if full and not container.state.is_terminal and container.state > TaskState.ASSIGNED:
                    self._report(agent, task.id, TaskState.FAILED, err="task: unknown to the host")
            if not container.stopping:
                self._step(agent, task, container)

    def _step(self, agent: Agent, task: Task, container: Container) -> None:
        if container.state.is_terminal:
            return
        if task.desired_state > TaskState.RUNNING:
            container.stopping = True
            delay = self.random.randrange(1, 300) * MS if container.alive else MS
            self.after(delay, lambda: self._end(agent, task.id, TaskState.SHUTDOWN, ""))
        elif container.state < TaskState.READY:
            self._report(agent, task.id, TaskState.PREPARING)
            self.after(self.random.randrange(1, 800) * MS, lambda: self._prepared(agent, task.id))
        elif container.state == TaskState.READY and task.desired_state == TaskState.RUNNING:
            self._report(agent, task.id, TaskState.STARTING)
            self.after(self.random.randrange(1, 400) * MS, lambda: self._started(agent, task.id))

    def _prepared(self, agent: Agent, task_id: str) -> None:
        container, task = agent.containers.get(task_id), agent.orders.get(task_id)
        if not agent.up or container is None or task is None or container.state != TaskState.PREPARING:
            return
        if "missing" in image_of(task):
            self._end(agent, task_id, TaskState.REJECTED, "No such image: missing")
            return
        self._report(agent, task_id, TaskState.READY)
        self._sync(agent)

    def _started(self, agent: Agent, task_id: str) -> None:
        container, task = agent.containers.get(task_id), agent.orders.get(task_id)
        if not agent.up or container is None or task is None or container.state != TaskState.STARTING:
            return
        container.alive = True
        self._report(agent, task_id, TaskState.RUNNING)
        if "crash" in image_of(task):
            self.after(500 * MS, lambda: self._end(agent, task_id, TaskState.FAILED, "task: non-zero exit (1)"))
        if "once" in image_of(task):
            self.after(500 * MS, lambda: self._end(agent, task_id, TaskState.COMPLETE, ""))
        self._sync(agent)

    def _end(self, agent: Agent, task_id: str, state: TaskState, err: str) -> None:
        container = agent.containers.get(task_id)
        if agent.up and container is not None and not container.state.is_terminal:
            container.alive = False
            self._report(agent, task_id, state, err=err)

    def _report(self, agent: Agent, task_id: str, state: TaskState, err: str = "") -> None:
        """States only grow; without a link they are kept, the newest per task."""
        container = agent.containers[task_id]
        if state <= container.state and container.state.is_terminal:
            return
        container.state = state
        status = TaskStatus(state=state, at=self.now + agent.wrong_clock, err=err, message=state.api_name)
        if agent.up and agent.linked:
            self._send(agent, task_id, status)
        else:
            agent.unsent[task_id] = status

    def _send(self, agent: Agent, task_id: str, status: TaskStatus) -> None:
        agent.unsent.pop(task_id, None)
        task = self.state.tasks.get(task_id)
        taken = None if task is None else accept_report(task, agent.node_id, status, self.now)
        if taken is not None:
            self.commit([Put(taken)])

    # What must hold

    def _check_safety(self) -> None:
        for node in self.state.nodes.values():
            self._check_node(node)
        for service in self.state.services.values():
            self._check_slots(service)

    def _check_node(self, node: Node) -> None:
        held = [task for task in self.state.tasks_on_node(node.id) if holds_resources(task)]
        cpus, memory = map(sum, zip((0, 0), *(demand_of(task.spec) for task in held), strict=True))
        capacity = capacity_of(node)
        assert cpus <= capacity.nano_cpus and memory <= capacity.memory_bytes, f"{node.id} is overbooked"
        ports = [port for task in held for port in host_ports(task.ports)]
        assert len(set(ports)) == len(ports), f"{node.id} has a host port twice"
        for task in held:
            limit = task.spec.placement.max_replicas if task.spec.placement else 0
            own = sum(
                1 for other in held if other.service_id == task.service_id and other.desired_state <= TaskState.COMPLETE
            )
            assert not limit or own <= limit, f"{node.id} has too many tasks of one service"

    def _check_slots(self, service: Service) -> None:
        active = Counter(
            task.slot_key
            for task in self.state.tasks_of_service(service.id)
            if task.desired_state <= TaskState.RUNNING
        )
        config = service.spec.update_config
        rollback = service.spec.rollback_config
        orders = {one.order for one in (config, rollback) if one is not None}
        self.peak_active[service.id] = max(self.peak_active[service.id], sum(active.values()))
        most = 2 if "start-first" in orders else 1
        # A spec that is on its way out may have left an overlap behind.
        if service.previous_spec is None or not service.previous_spec.update_config:
            assert not active or max(active.values()) <= most, f"slots of {service.spec.name} held twice: {active}"

    def serving(self, service_id: str) -> list[Task]:
        """Tasks that run, and are meant to."""
        return [
            task
            for task in self.state.tasks_of_service(service_id)
            if task.status.state == TaskState.RUNNING
            and task.desired_state == TaskState.RUNNING
            and is_valid(self.state.nodes.get(task.node_id))
        ]

    def check_settled(self) -> None:
        """Every service is what was asked for, and hosts run exactly what the state says."""
        for service in self.state.services.values():
            assert not service.pending_delete, f"{service.spec.name} is still being removed"
            serving = self.serving(service.id)
            if service.spec.mode.global_ is not None:
                placement = service.spec.task_template.placement
                nodes = {node.id for node in self.state.nodes.values() if is_valid(node) and suits(placement, node)}
                paused = {
                    node.id
                    for node in self.state.nodes.values()
                    if node.spec.availability is Availability.PAUSE
                }
                found = sorted(task.node_id for task in serving)
                assert len(set(found)) == len(found) and nodes - paused <= set(found) <= nodes, (found, nodes)
            else:
                slots = {task.slot for task in serving}  # a scale-down may have left any of them
                assert len(serving) == len(slots) == replicas(service) and 0 not in slots, [
                    (task.id, task.slot, task.node_id, task.desired_state.name, task.status)
                    for task in self.state.tasks_of_service(service.id)
                ]
            for task in serving:
                node = self.state.nodes[task.node_id]
                if node.spec.availability is not Availability.PAUSE:
                    assert not is_dirty(service, task, node), f"{task.id} is outdated"
            status = service.update_status
            assert status is None or status.state in ("completed", "rollback_completed"), status
        self._check_hosts()

    def _check_hosts(self) -> None:
        for agent in self.agents.values():
            if not (agent.up and agent.linked):
                continue
            alive = {task_id for task_id, container in agent.containers.items() if container.alive}
            expected = {
                task.id
                for task in self.state.tasks_on_node(agent.node_id)
                if task.status.state == TaskState.RUNNING and task.desired_state == TaskState.RUNNING
            }
            assert alive == expected, f"{agent.node_id} runs {alive ^ expected} against the state"


def image_of(task: Task) -> str:
    assert task.spec.container_spec is not None
    return task.spec.container_spec.image


def check_growth(before: Task, after: Task) -> None:
    """A task's states only grow, it never moves, and its spec never changes."""
    assert after.status.state >= before.status.state, f"{before.id} goes back to {after.status.state}"
    assert after.desired_state >= before.desired_state, f"{before.id} is wanted less than before"
    assert before.node_id in ("", after.node_id), f"{before.id} moves"
    assert (before.spec, before.slot, before.service_id) == (after.spec, after.slot, after.service_id)
