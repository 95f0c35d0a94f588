"""What a service spec may say. Words are SwarmKit's and dockerd's, so that clients recognise them; the former's with
the code of its gRPC errors, as dockerd shows them.

Known options that this version cannot honour are refused (NotSupported), never ignored.
"""

from __future__ import annotations

import re

from swarmlet.errors import InvalidArgument, NotSupported, rpc_words
from swarmlet.model.defaults import MINIMUM_MEMORY_BYTES, MINIMUM_NANO_CPUS, cluster_networks
from swarmlet.model.service import (
    EndpointSpec,
    PortConfig,
    ServiceMode,
    ServiceSpec,
    TaskRestartPolicy,
    TaskSpec,
    UpdateConfig,
)
from swarmlet_manager.decide import constraints
from swarmlet_manager.decide.fixed import check_fixed
from swarmlet_manager.decide.validate_container import check_container_spec

#: Letters, digits, and inside also - and _ (SwarmKit's rule, in a form that takes linear time on any input).
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_a-zA-Z0-9]*[a-zA-Z0-9])?")
_MAX_NAME = 63
_PROTOCOLS = ("tcp", "udp", "sctp")


def check_service_spec(spec: ServiceSpec) -> None:
    """InvalidArgument if the spec cannot be meant, NotSupported if it asks for what is not there yet."""
    check_name(spec.name)
    _check_mode(spec.mode)
    _check_task(spec.task_template)
    _check_update_config(spec.update_config)
    _check_update_config(spec.rollback_config)
    _check_endpoint(spec.endpoint_spec)
    _check_networks(spec)


def check_update(old: ServiceSpec, new: ServiceSpec) -> None:
    """What an update may not change. The new spec must also pass `check_service_spec`."""
    if old.name != new.name:
        raise NotSupported("renaming services is not supported")
    if _mode_name(old.mode) != _mode_name(new.mode):
        raise NotSupported("service mode change is not allowed")


def check_name(name: str) -> None:
    """A service's name: what may be looked up in DNS. Clients leave it out to get one made up, before this."""
    if not name:
        raise InvalidArgument(rpc_words("meta: name must be provided"))
    if not _NAME.fullmatch(name):
        raise InvalidArgument(rpc_words("name must be valid as a DNS name component"))
    if len(name) > _MAX_NAME:
        raise InvalidArgument(rpc_words(f"name must be {_MAX_NAME} characters or fewer"))


def _mode_name(mode: ServiceMode) -> str:
    for name, chosen in (
        ("global", mode.global_),
        ("replicated job", mode.replicated_job),
        ("global job", mode.global_job),
    ):
        if chosen is not None:
            return name
    return "replicated"


def _check_mode(mode: ServiceMode) -> None:
    chosen = [one for one in (mode.replicated, mode.global_, mode.replicated_job, mode.global_job) if one is not None]
    if len(chosen) > 1:
        raise InvalidArgument("must specify only one service mode")
    if mode.replicated_job is not None or mode.global_job is not None:
        raise NotSupported(f"service mode {_mode_name(mode)} is not supported yet: use replicated or global")
    if mode.replicated is not None and (mode.replicated.replicas or 0) < 0:
        raise InvalidArgument("Number of replicas must be non-negative")


def _check_task(task: TaskSpec) -> None:
    if task.plugin_spec is not None or task.runtime == "plugin":
        raise NotSupported("plugins cannot run as services")
    if task.network_attachment_spec is not None or task.runtime not in ("", "container"):
        raise InvalidArgument("unsupported runtime")
    if task.container_spec is None:
        raise InvalidArgument("mismatched Runtime and *Spec fields")
    _check_resources(task)
    _check_restart(task.restart_policy)
    if task.placement is not None:
        constraints.parse_all(task.placement.constraints)
        if task.placement.max_replicas < 0:
            raise InvalidArgument(rpc_words("TaskSpec: max-replicas cannot be negative"))
        for preference in task.placement.preferences:
            if preference.spread is None:
                raise InvalidArgument(rpc_words("TaskSpec: a placement preference must name what to spread over"))
    check_container_spec(task.container_spec)


def _check_resources(task: TaskSpec) -> None:
    if task.resources is None:
        return
    limits, reserved = task.resources.limits, task.resources.reservations
    if limits is not None:
        _check_amounts(limits.nano_cpus, limits.memory_bytes)
    if reserved is not None:
        _check_amounts(reserved.nano_cpus, reserved.memory_bytes)
        if reserved.generic_resources:
            raise NotSupported("reservations of generic resources are not supported yet")


def _check_amounts(nano_cpus: int, memory_bytes: int) -> None:
    """0 stands for none; anything else has a least value."""
    if nano_cpus and nano_cpus < MINIMUM_NANO_CPUS:
        least = f"Must be at least {MINIMUM_NANO_CPUS / 1e9:g}"
        raise InvalidArgument(rpc_words(f"invalid cpu value {nano_cpus / 1e9:g}: {least}"))
    if memory_bytes and memory_bytes < MINIMUM_MEMORY_BYTES:
        raise InvalidArgument(rpc_words(f"invalid memory value {memory_bytes}: Must be at least 4MiB"))


def _check_restart(policy: TaskRestartPolicy | None) -> None:
    if policy is None:
        return
    if policy.condition not in ("", "none", "on-failure", "any"):
        raise InvalidArgument(f'invalid RestartCondition: "{policy.condition}"')
    for name, value in (("delay", policy.delay), ("max-attempts", policy.max_attempts), ("window", policy.window)):
        if value is not None and value < 0:
            raise InvalidArgument(rpc_words(f"TaskSpec: restart-{name} cannot be negative"))


def _check_update_config(config: UpdateConfig | None) -> None:
    if config is None:
        return
    for name, value in (("parallelism", config.parallelism), ("delay", config.delay), ("monitor", config.monitor)):
        if value is not None and value < 0:
            raise InvalidArgument(rpc_words(f"TaskSpec: update-{name} cannot be negative"))
    if not 0 <= config.max_failure_ratio <= 1:
        raise InvalidArgument(rpc_words("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"))
    if config.failure_action not in ("", "pause", "continue", "rollback"):
        raise InvalidArgument(f"unrecognized update failure action {config.failure_action}")
    if config.order not in ("", "stop-first", "start-first"):
        raise InvalidArgument(f"unrecognized update order {config.order}")


def _check_endpoint(endpoint: EndpointSpec | None) -> None:
    if endpoint is None:
        return
    if endpoint.mode not in ("", "vip", "dnsrr"):
        raise InvalidArgument(f'invalid resolution mode: "{endpoint.mode}"')
    for port in endpoint.ports:
        _check_port(port)
        if port.host_ip or port.local_only:
            raise NotSupported("HostIP and LocalOnly of a port are chosen by labels of the service: swarmlet.publish.…")
        if port.publish_mode != "host" and endpoint.mode == "dnsrr":
            raise InvalidArgument(
                rpc_words("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
            )
    published = [(port.protocol, port.published_port) for port in endpoint.ports if port.published_port]
    if len(set(published)) < len(published):
        raise InvalidArgument(rpc_words("EndpointSpec: duplicate published ports provided"))


def _check_networks(spec: ServiceSpec) -> None:
    chosen = [network.target for network in spec.task_template.networks]
    if len(set(chosen)) < len(chosen):
        raise InvalidArgument("networks must be unique, but one is named twice")
    wide = cluster_networks(spec.task_template)
    if wide and len(wide) < len(chosen):
        local = next(target for target in chosen if target not in wide)
        raise NotSupported(f"network {local} cannot be combined with networks of the cluster in one service")
    check_fixed(spec)


def _check_port(port: PortConfig) -> None:
    if port.protocol not in _PROTOCOLS:
        raise InvalidArgument(f"invalid protocol value: {port.protocol}")
    if port.publish_mode not in ("", "ingress", "host"):
        raise InvalidArgument(f"invalid publish mode: {port.publish_mode}")
    if not 0 < port.target_port <= 65_535:
        raise InvalidArgument(f"invalid target port {port.target_port}: must be between 1 and 65535")
    if not 0 <= port.published_port <= 65_535:
        raise InvalidArgument(f"invalid published port {port.published_port}: must be between 0 and 65535")
