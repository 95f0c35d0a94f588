"""Published ports of services: unique over the cluster for the routing mesh, chosen where the user left it open.

Addresses are the allocator's (`addresses.py`).
"""

from __future__ import annotations

from collections import defaultdict

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.defaults import cluster_networks, ingress_ports
from swarmlet.model.publishing import with_rules
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
    wanted = with_rules(() if spec.endpoint_spec is None else spec.endpoint_spec.ports, spec.labels)
    taken = _Taken(state, service_id)
    held = state.services[service_id].ports if service_id in state.services else ()
    free_again = [port for port in held if _is_ingress(port)]
    chosen: list[PortConfig] = []
    for port in wanted:
        if not port.published_port and _is_ingress(port):
            port = replace(port, published_port=_choose(port, free_again, taken, wanted))
        elif reason := taken.refusal(port):
            raise InvalidArgument(f"rpc error: code = InvalidArgument desc = {reason}")
        if _is_ingress(port):
            taken.add(port, "this service")
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


class _Taken:
    """Ports that are other services', by protocol and number."""

    def __init__(self, state: State, service_id: str) -> None:
        self._ports: defaultdict[tuple[str, int], list[tuple[PortConfig, str]]] = defaultdict(list)
        for service in state.services.values():
            if service.id != service_id and not service.pending_delete:
                for port in service.ports:
                    if port.published_port:
                        self.add(port, f"service '{service.spec.name}' ({service.id})")

    def add(self, port: PortConfig, owner: str) -> None:
        self._ports[port.protocol, port.published_port].append((port, owner))

    def has(self, protocol: str, number: int) -> bool:
        return (protocol, number) in self._ports

    def refusal(self, port: PortConfig) -> str:
        """Who stands in the way, in SwarmKit's words; "" for nobody. Services may share a port of the hosts (mode
        host): the scheduler keeps their tasks apart."""
        for other, owner in self._ports.get((port.protocol, port.published_port), ()):
            if not (_is_ingress(port) or _is_ingress(other)):
                continue
            if port.host_ip and other.host_ip and port.host_ip != other.host_ip:
                continue
            how = "an ingress port" if _is_ingress(other) else "a host-published port"
            return f"port '{port.published_port}' is already in use by {owner} as {how}"
        return ""


def _choose(
    port: PortConfig,
    held: list[PortConfig],
    taken: _Taken,
    wanted: tuple[PortConfig, ...],
) -> int:
    """The number this service had for the same target before, else the lowest free one."""
    named = {(other.protocol, other.published_port) for other in wanted if other.published_port}
    same_target = [old for old in held if (old.protocol, old.target_port) == (port.protocol, port.target_port)]
    before = [old.published_port for old in same_target if old.published_port >= FIRST_DYNAMIC_PORT]
    number: int
    for number in (*before, *range(FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT + 1)):
        if not taken.has(port.protocol, number) and (port.protocol, number) not in named:
            return number
    raise InvalidArgument(f"no free {port.protocol} port between {FIRST_DYNAMIC_PORT} and {LAST_DYNAMIC_PORT} is left")
