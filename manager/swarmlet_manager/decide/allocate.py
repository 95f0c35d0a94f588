"""Published ports of services: unique over the cluster for the routing mesh, chosen where the user left it open.

Addresses are the allocator's (`addresses.py`).
"""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.defaults import cluster_networks, ingress_ports
from swarmlet.model.service import PortConfig, ServiceSpec, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import TaskStatus
from swarmlet_manager.state import State

#: Ports given out where none was asked for (SwarmKit's dynamic range).
FIRST_DYNAMIC_PORT = 30_000
LAST_DYNAMIC_PORT = 32_767


def plan_ports(state: State, service_id: str, spec: ServiceSpec) -> tuple[PortConfig, ...]:
    """The spec's ports with every ingress port filled in, in the spec's order.

    service_id: the service's own id ("" for one that does not exist yet): what it holds already it keeps.
    InvalidArgument if a port is another service's, or none is left. Ports are unique only if creates and
    updates are decided one after another: two decided on the same state may pick the same port.
    """
    wanted = () if spec.endpoint_spec is None else spec.endpoint_spec.ports
    taken = _taken(state, service_id)
    held = state.services[service_id].ports if service_id in state.services else ()
    free_again = [port for port in held if _is_ingress(port)]
    chosen: list[PortConfig] = []
    for port in wanted:
        if not _is_ingress(port):
            chosen.append(port)
            continue
        if not port.published_port:
            port = replace(port, published_port=_choose(port, free_again, taken, wanted))
        elif owner := taken.get((port.protocol, port.published_port)):
            raise InvalidArgument(f"port '{port.published_port}' is already in use by {owner} as an ingress port")
        taken[port.protocol, port.published_port] = "this service"
        chosen.append(port)
    return tuple(chosen)


def initial_status(spec: TaskSpec, ports: tuple[PortConfig, ...], now: int) -> TaskStatus:
    """The status a new task is stored with: NEW if the allocator must give it addresses first.

    Every other task begins as PENDING: the move would be a write for nothing.
    """
    if cluster_networks(spec) or ingress_ports(ports):
        return TaskStatus(state=TaskState.NEW, at=now, message="created")
    return pending_status(now)


def pending_status(now: int) -> TaskStatus:
    """Of a task that only waits for a node."""
    return TaskStatus(state=TaskState.PENDING, at=now, message="pending task scheduling")


def _is_ingress(port: PortConfig) -> bool:
    return port.publish_mode in ("", "ingress")


def _taken(state: State, service_id: str) -> dict[tuple[str, int], str]:
    """(protocol, port) -> "service 'name' (id)", of every other service's ingress ports."""
    return {
        (port.protocol, port.published_port): f"service '{service.spec.name}' ({service.id})"
        for service in state.services.values()
        if service.id != service_id and not service.pending_delete
        for port in service.ports
        if _is_ingress(port)
    }


def _choose(
    port: PortConfig,
    held: list[PortConfig],
    taken: dict[tuple[str, int], str],
    wanted: tuple[PortConfig, ...],
) -> int:
    """The number this service had for the same target before, else the lowest free one."""
    named = {(other.protocol, other.published_port) for other in wanted if other.published_port}
    same_target = [old for old in held if (old.protocol, old.target_port) == (port.protocol, port.target_port)]
    before = [old.published_port for old in same_target if old.published_port >= FIRST_DYNAMIC_PORT]
    number: int
    for number in (*before, *range(FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT + 1)):
        if (port.protocol, number) not in taken and (port.protocol, number) not in named:
            return number
    raise InvalidArgument(f"no free {port.protocol} port between {FIRST_DYNAMIC_PORT} and {LAST_DYNAMIC_PORT} is left")
