"""From a task to the container that runs it: pure.

Follows dockerd's own conversion (daemon/cluster/executor/container/container.go): `command` replaces the whole
invocation, `args` only the image's cmd; system labels win over the user's; limits and reservations become the
container's resources. What this engine cannot honour is refused, never dropped.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import (
    TASK_LABEL,
    ContainerCreate,
    EndpointIPAMConfig,
    EndpointSettings,
    HostConfig,
    LogConfig,
    NetworkingConfig,
    PortBinding,
)
from swarmlet.model.defaults import NODE_NETWORKS, cluster_networks, ingress_ports
from swarmlet.model.network import NetworkAttachment
from swarmlet.model.service import ContainerSpec, Limit, PortConfig, Privileges, Reservation, TaskSpec
from swarmlet.model.task import Task
from swarmlet.model.template import NodeFacts, expand, expand_mount, fields_of

LABEL_PREFIX = "com.docker.swarm."


def container_for(
    task: Task, node: NodeFacts, networks: Mapping[str, NetworkAttachment] = MappingProxyType({})
) -> ContainerCreate:
    """What to create for a task. networks: its places in the cluster's networks, by name.

    InvalidArgument (NotSupported) tells why it cannot be.
    """
    spec = container_spec(task)
    if len(networks) < len(cluster_networks(task.spec)):
        raise InvalidArgument(f"task {task.name} was given no address in some of its networks")
    fields = fields_of(task, node)
    main = next(iter(networks), "") if ingress_ports(task.ports) else ""
    return ContainerCreate(
        image=spec.image,
        hostname=expand(spec.hostname, fields, "hostname"),
        user=spec.user,
        env=tuple(expand(entry, fields, "env") for entry in spec.env),
        entrypoint=spec.command or None,
        cmd=spec.args if spec.args or spec.command else None,
        working_dir=spec.dir,
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        stop_signal=spec.stop_signal,
        healthcheck=spec.healthcheck,
        labels={**spec.labels, **system_labels(task)},
        exposed_ports={_port_key(port): {} for port in task.ports},
        host_config=_host_config(task, spec, fields, next(iter(networks), "")),
        networking_config=NetworkingConfig(
            endpoints_config={name: _endpoint(place, name == main) for name, place in networks.items()}
        ),
    )


def container_spec(task: Task) -> ContainerSpec:
    if task.spec.container_spec is None:
        raise NotSupported("only tasks that run a container are supported")
    return task.spec.container_spec


def system_labels(task: Task) -> dict[str, str]:
    """The labels by which clients find a task's container."""
    return {
        f"{LABEL_PREFIX}task": "",
        TASK_LABEL: task.id,
        f"{LABEL_PREFIX}task.name": task.name,
        f"{LABEL_PREFIX}node.id": task.node_id,
        f"{LABEL_PREFIX}service.id": task.service_id,
        f"{LABEL_PREFIX}service.name": task.service_name,
    }


def published(
    ports: Mapping[str, Sequence[PortBinding]], wanted: Sequence[PortConfig]
) -> tuple[PortConfig, ...]:
    """The task's host-mode ports as the engine really published them, in the wanted order."""
    found: list[PortConfig] = []
    for port in wanted:
        if port.publish_mode != "host":
            continue
        for binding in ports.get(_port_key(port), ()):
            if binding.host_port.isdigit():
                found.append(replace(port, published_port=int(binding.host_port), publish_mode="host"))
                break
    return tuple(found)


def _host_config(task: Task, spec: ContainerSpec, fields: Mapping[str, str], network: str) -> HostConfig:
    """network: the first of the cluster's networks it is on, "" for none."""
    resources = task.spec.resources
    limits = (resources.limits if resources else None) or Limit()
    reservations = (resources.reservations if resources else None) or Reservation()
    dns = spec.dns_config
    if spec.isolation not in ("", "default"):
        raise NotSupported(f"isolation {spec.isolation!r} is not supported on linux")
    if reservations.generic_resources:
        raise NotSupported("generic resources are not supported yet")
    return HostConfig(
        memory=limits.memory_bytes,
        nano_cpus=limits.nano_cpus,
        pids_limit=limits.pids if limits.pids > 0 else None,
        memory_reservation=reservations.memory_bytes,
        mounts=tuple(expand_mount(mount, fields) for mount in spec.mounts),
        group_add=spec.groups,
        readonly_rootfs=spec.read_only,
        init=spec.init,
        sysctls=spec.sysctls,
        cap_add=spec.capability_add,
        cap_drop=spec.capability_drop,
        ulimits=spec.ulimits,
        oom_score_adj=spec.oom_score_adj,
        extra_hosts=tuple(_extra_host(entry) for entry in spec.hosts),
        dns=(dns.nameservers or None) if dns else None,
        dns_search=(dns.search or None) if dns else None,
        dns_options=(dns.options or None) if dns else None,
        security_opt=_security(spec.privileges),
        log_config=_log_config(task.spec),
        network_mode=network or _network_mode(task.spec),
        port_bindings=_bindings(task.ports),
    )


def _extra_host(entry: str) -> str:
    """Services have "IP name [alias]" lines; containers "name:IP" (one name each, as dockerd makes of them)."""
    words = entry.split()
    if len(words) < 2:
        raise InvalidArgument(f"invalid host entry {entry!r}: expected an address and a name")
    return f"{words[1]}:{words[0]}"


def _security(privileges: Privileges | None) -> tuple[str, ...]:
    if privileges is None:
        return ()
    if privileges.credential_spec is not None:
        raise NotSupported("credential specs are not supported on linux")
    options: list[str] = []
    if privileges.no_new_privileges:
        options.append("no-new-privileges=true")
    if (selinux := privileges.selinux_context) is not None:
        if selinux.disable:
            options.append("label=disable")
        labels = (("user", selinux.user), ("role", selinux.role), ("type", selinux.type), ("level", selinux.level))
        options += [f"label={name}:{value}" for name, value in labels if value]
    if (seccomp := privileges.seccomp) is not None:
        options += _seccomp(seccomp.mode, seccomp.profile)
    if (apparmor := privileges.app_armor) is not None and apparmor.mode == "disabled":
        options.append("apparmor=unconfined")
    return tuple(options)


def _seccomp(mode: str, profile: str) -> list[str]:
    match mode:
        case "" | "default":
            return []
        case "unconfined":
            return ["seccomp=unconfined"]
        case _:
            # The API carries the profile itself, base64 of JSON; an engine option takes it as text.
            return [f"seccomp={_decoded(profile)}"]


def _decoded(profile: str) -> str:

    try:
        return base64.b64decode(profile, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as err:
        raise InvalidArgument("the seccomp profile is not base64 of JSON") from err


def _log_config(spec: TaskSpec) -> LogConfig:
    driver = spec.log_driver
    return LogConfig() if driver is None else LogConfig(type=driver.name, config=driver.options)


def _network_mode(spec: TaskSpec) -> str:
    """A task without networks sits on the default bridge; local networks may be named instead. Those of the cluster
    are endpoints."""
    targets = [network.target for network in spec.networks if network.target in NODE_NETWORKS]
    if len(targets) > 1:
        raise NotSupported(f"network {targets[1]} cannot be combined with network {targets[0]}")
    return targets[0] if targets else "default"


def _endpoint(place: NetworkAttachment, main: bool) -> EndpointSettings:
    """main: what the routing mesh brings must go back the way it came, so the default route is there."""
    return EndpointSettings(
        gw_priority=1 if main else 0,
        mac_address=place.mac,
        ipam_config=EndpointIPAMConfig(
            ipv4_address=place.address.partition("/")[0], ipv6_address=place.address6.partition("/")[0]
        ),
    )


def _bindings(ports: Sequence[PortConfig]) -> dict[str, tuple[PortBinding, ...] | None]:
    bindings: dict[str, tuple[PortBinding, ...] | None] = {}
    for port in ports:
        if port.publish_mode != "host":
            continue  # the routing mesh publishes it, on every node
        chosen = str(port.published_port) if port.published_port else ""
        binding = PortBinding(host_ip=port.host_ip, host_port=chosen)
        bindings[_port_key(port)] = (*(bindings.get(_port_key(port)) or ()), binding)
    return bindings


def _port_key(port: PortConfig) -> str:
    return f"{port.target_port}/{port.protocol or 'tcp'}"
