"""Small makers of records for the tests of decisions. Times are ns; 0 is when the tests begin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from swarmlet.model.common import Platform
from swarmlet.model.node import Node, NodeDescription, NodeResources, NodeSpec
from swarmlet.model.service import (
    ContainerSpec,
    GlobalMode,
    Placement,
    PortConfig,
    ReplicatedMode,
    Reservation,
    ResourceRequirements,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskRestartPolicy,
    TaskSpec,
    UpdateConfig,
)
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.times import NS
from swarmlet_manager.decide.orchestrate import plan_service
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.state import Change, Put, State

GIB = 1 << 30


def make_node(
    name: str = "n1",
    *,
    cpus: float = 4,
    memory: int = 8 * GIB,
    labels: dict[str, str] | None = None,
    state: NodeState = NodeState.READY,
    availability: Availability = Availability.ACTIVE,
    arch: str = "x86_64",
    addr: str = "10.0.0.1",
) -> Node:
    return Node(
        id=name,
        spec=NodeSpec(labels=labels or {}, availability=availability),
        description=NodeDescription(
            hostname=f"host-{name}",
            platform=Platform(os="linux", architecture=arch),
            resources=NodeResources(nano_cpus=int(cpus * NS), memory_bytes=memory),
        ),
        state=state,
        addr=addr,
    )


def make_template(
    image: str = "busybox:1",
    *,
    cpus: float = 0,
    memory: int = 0,
    constraints: Iterable[str] = (),
    max_replicas: int = 0,
    restart: TaskRestartPolicy | None = None,
) -> TaskSpec:
    return TaskSpec(
        container_spec=ContainerSpec(image=image),
        resources=ResourceRequirements(reservations=Reservation(nano_cpus=int(cpus * NS), memory_bytes=memory)),
        placement=Placement(constraints=tuple(constraints), max_replicas=max_replicas),
        restart_policy=restart,
    )


def make_service(
    replicas: int | None = 3,
    template: TaskSpec | None = None,
    *,
    ident: str = "s1",
    name: str = "web",
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
    ports: tuple[PortConfig, ...] = (),
) -> Service:
    """replicas None = global."""
    mode = (
        ServiceMode(global_=GlobalMode())
        if replicas is None
        else ServiceMode(replicated=ReplicatedMode(replicas=replicas))
    )
    spec = ServiceSpec(
        name=name, mode=mode, task_template=template or make_template(), update_config=update, rollback_config=rollback
    )
    return Service(id=ident, spec=spec, ports=ports)


def make_task(
    ident: str = "t1",
    *,
    service: Service | None = None,
    slot: int = 1,
    node: str = "n1",
    state: TaskState = TaskState.RUNNING,
    desired: TaskState = TaskState.RUNNING,
    created: int = 0,
    template: TaskSpec | None = None,
    spec_version: int = 1,
    **more: object,
) -> Task:
    service = service or make_service()
    running_at = created if TaskState.RUNNING <= state <= TaskState.FAILED else 0
    return Task(
        id=ident,
        service_id=service.id,
        service_name=service.spec.name,
        slot=slot,
        node_id=node,
        spec=template or service.spec.task_template,
        spec_version=spec_version,
        ports=service.ports,
        desired_state=desired,
        status=TaskStatus(state=state, at=created, applied_at=created, running_at=running_at),
        created_at=created,
        **more,
    )


def make_state(*records: Node | Service | Task) -> State:
    state = State()
    for record in records:
        state.apply(Put(record))
    return state


def carry_out(state: State, plan: Plan) -> list[Change]:
    return [state.apply(op) for op in plan.ops]


def id_maker(prefix: str = "new") -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"{prefix}{next(numbers):04}"


class Rig:
    """One service's plan, carried out again and again on a state of its own, at times the test chooses."""

    def __init__(self, *records: Node | Service | Task) -> None:
        self.state = make_state(*records)
        self._new_id = id_maker()

    def plan(self, now: int = 0, service_id: str = "s1") -> Plan:
        """Decide, carry out, and check that nothing is left to decide."""
        plan = plan_service(self.state, service_id, now, self._new_id)
        carry_out(self.state, plan)
        again = plan_service(self.state, service_id, now, self._new_id)
        assert again.ops == (), "a second pass found more to do"
        return plan

    def tasks(self, service_id: str = "s1") -> list[Task]:
        return sorted(self.state.tasks_of_service(service_id), key=lambda task: (task.slot, task.created_at, task.id))

    def active(self) -> list[Task]:
        return [task for task in self.tasks() if task.desired_state <= TaskState.RUNNING]

    def service(self) -> Service:
        return self.state.services["s1"]

    def put(self, record: Node | Service | Task) -> None:
        self.state.apply(Put(record))

    def observe(self, task_id: str, state: TaskState, at: int, node: str = "") -> None:
        """The agent (or scheduler) says so."""
        task = self.state.tasks[task_id]
        status = replace(
            task.status,
            state=state,
            at=at,
            applied_at=at,
            running_at=task.status.running_at or (at if state == TaskState.RUNNING else 0),
        )
        self.put(replace(task, status=status, node_id=node or task.node_id or "n1"))

    def run_all(self, at: int) -> None:
        """Whatever should run, runs; whatever should stop, has stopped."""
        for task in self.tasks():
            if task.desired_state == TaskState.RUNNING and task.status.state < TaskState.RUNNING:
                self.observe(task.id, TaskState.RUNNING, at)
            if task.desired_state > TaskState.RUNNING and task.status.state <= TaskState.RUNNING:
                self.observe(task.id, TaskState.SHUTDOWN, at)
