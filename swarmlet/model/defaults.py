"""Every default of services and tasks in one place, with its unit (SwarmKit's api/defaults)."""

from __future__ import annotations

from collections.abc import Iterable

from swarmlet.model.service import PortConfig, Service, ServiceSpec, TaskRestartPolicy, TaskSpec, UpdateConfig
from swarmlet.model.times import NS

RESTART_DELAY_NS = 5 * NS
UPDATE_PARALLELISM = 1
UPDATE_MONITOR_NS = 5 * NS
STOP_GRACE_PERIOD_NS = 10 * NS
#: Agents beat every period; after this many silent periods a node is DOWN.
HEARTBEAT_GRACE_PERIODS = 3
NODE_DOWN_ORPHAN_NS = 24 * 3600 * NS
#: The least a container may be given (Engine API: "minimum memory limit allowed").
MINIMUM_MEMORY_BYTES = 4 << 20
MINIMUM_NANO_CPUS = 1_000_000


def restart_condition(spec: TaskSpec) -> str:
    """none, on-failure or any."""
    policy = spec.restart_policy or TaskRestartPolicy()
    return policy.condition or "any"


def restart_delay_ns(spec: TaskSpec) -> int:
    policy = spec.restart_policy
    return RESTART_DELAY_NS if policy is None or policy.delay is None else policy.delay


def restart_max_attempts(spec: TaskSpec) -> int:
    """0 = without limit."""
    policy = spec.restart_policy
    return 0 if policy is None or policy.max_attempts is None else policy.max_attempts


def restart_window_ns(spec: TaskSpec) -> int:
    """0 = attempts count for ever."""
    policy = spec.restart_policy
    return 0 if policy is None or policy.window is None else policy.window


def replicas(service: Service) -> int:
    """The replica count of a replicated service (1 where none was given)."""
    mode = service.spec.mode.replicated
    return 1 if mode is None or mode.replicas is None else mode.replicas


def update_parallelism(config: UpdateConfig | None) -> int:
    """0 = all at once."""
    return UPDATE_PARALLELISM if config is None or config.parallelism is None else config.parallelism


def update_monitor_ns(config: UpdateConfig | None) -> int:
    return UPDATE_MONITOR_NS if config is None or not config.monitor else config.monitor


def stop_grace_period_ns(spec: TaskSpec) -> int:
    container = spec.container_spec
    if container is None or container.stop_grace_period is None:
        return STOP_GRACE_PERIOD_NS
    return container.stop_grace_period


#: Networks every node has of its own; all others a service names are the cluster's.
NODE_NETWORKS = frozenset({"default", "bridge", "host", "none"})


def cluster_networks(spec: TaskSpec) -> tuple[str, ...]:
    """Ids of the cluster's networks that tasks of this spec are on, in the spec's order."""
    return tuple(network.target for network in spec.networks if network.target not in NODE_NETWORKS)


def ingress_ports(ports: Iterable[PortConfig]) -> tuple[PortConfig, ...]:
    """Those that the routing mesh publishes, on every node."""
    return tuple(port for port in ports if port.publish_mode in ("", "ingress"))


def has_vip(spec: ServiceSpec) -> bool:
    """Whether its name stands for one virtual address (else for its tasks' addresses in turn)."""
    return spec.endpoint_spec is None or spec.endpoint_spec.mode in ("", "vip")
