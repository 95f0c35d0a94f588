"""What tasks take from a node: reservations and host ports. Limits take nothing (SwarmKit's rule)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from swarmlet.model.node import Node
from swarmlet.model.service import PortConfig, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task

#: One published port of a host: protocol and number.
HostPort = tuple[str, int]


class Demand(NamedTuple):
    """What one task needs kept free: NanoCPUs and bytes. Zero asks for nothing and always fits."""

    nano_cpus: int
    memory_bytes: int


NO_DEMAND = Demand(0, 0)


def demand_of(spec: TaskSpec) -> Demand:
    """The reservations of a task."""
    if spec.resources is None or spec.resources.reservations is None:
        return NO_DEMAND
    reserved = spec.resources.reservations
    return Demand(reserved.nano_cpus, reserved.memory_bytes)


def capacity_of(node: Node) -> Demand:
    """Everything a node has to give: all its CPUs and all its memory."""
    resources = node.description.resources
    return Demand(resources.nano_cpus, resources.memory_bytes)


def host_ports(ports: Iterable[PortConfig]) -> Iterator[HostPort]:
    """The ports that a task must have for itself on its host; port 0 is chosen there and never collides."""
    own = (port for port in ports if port.publish_mode == "host" and port.published_port)
    return ((port.protocol, port.published_port) for port in own)


def holds_resources(task: Task) -> bool:
    """True while a task occupies its node, whatever is wanted of it: one being stopped still does."""
    return bool(task.node_id) and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING


def counts_for_spread(task: Task) -> bool:
    """True if the scheduler counts it as one of the node's active tasks."""
    return holds_resources(task) and task.desired_state <= TaskState.COMPLETE
