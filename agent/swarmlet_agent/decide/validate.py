"""Whether a container's configuration can be meant, in dockerd's words (moby daemon/container.go, daemon_unix.go,
runconfig). What depends on the image, other containers or the host's files is checked where those are known.
"""

from __future__ import annotations

from ipaddress import ip_address

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ContainerCreate, HostConfig, RestartPolicy
from swarmlet_agent.decide.health import check_config
from swarmlet_agent.decide.links import check_links
from swarmlet_agent.decide.log_options import check_log
from swarmlet_agent.decide.ports import wanted_ports
from swarmlet_agent.decide.sets import parse_set
from swarmlet_agent.decide.signals import parse_signal

_MINIMUM_MEMORY = 6 << 20
_HOSTNAME_LENGTH = 64  # the kernel's limit (sethostname(2))


def check_request(request: ContainerCreate, *, cpus: int) -> list[str]:
    """Warnings; InvalidArgument (NotSupported) for what is wrong. cpus: how many the host has."""
    _check_config(request)
    host = request.host_config
    check_resources(host, cpus=cpus)
    check_restart(host)
    check_log(host.log_config)
    _check_modes(request)
    _check_names(host)
    wanted_ports(request)
    check_links(host)
    warnings = []
    if host.oom_kill_disable and not host.memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    if host.network_mode == "host" and (host.port_bindings or host.publish_all_ports):
        warnings.append("Published ports are discarded when using host network mode")
    return warnings


def _check_config(request: ContainerCreate) -> None:
    if request.working_dir and not request.working_dir.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{request.working_dir}' is invalid, it needs to be an absolute path"
        )
    for entry in request.env:
        if not entry or entry.startswith("="):
            raise InvalidArgument(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidArgument("invalid environment variable: a null byte cannot be part of it")
    if any("\0" in word for word in (*(request.cmd or ()), *(request.entrypoint or ()))):
        raise InvalidArgument("invalid command: a null byte cannot be part of it")
    if len(request.hostname) > _HOSTNAME_LENGTH:
        raise InvalidArgument(f"invalid hostname format: {request.hostname}: longer than {_HOSTNAME_LENGTH} characters")
    if request.stop_signal:
        parse_signal(request.stop_signal)
    check_config(request.healthcheck)


def check_image_part(merged: ContainerCreate) -> None:
    """What may have come from the image: InvalidArgument if no run of it could work."""
    if merged.stop_signal:
        parse_signal(merged.stop_signal)
    check_config(merged.healthcheck)


def check_resources(host: HostConfig, *, cpus: int) -> None:
    """Limits by themselves and against each other; bytes and Docker's units."""
    _check_memory(host)
    _check_cpu(host, cpus)
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    if host.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidArgument(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")


def _check_memory(host: HostConfig) -> None:
    swap = host.memory_swap
    if host.memory and host.memory < _MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if host.memory and 0 < swap < host.memory:
        raise InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
    if not host.memory and swap > 0:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
    swappiness = host.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidArgument(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if host.memory_reservation and host.memory_reservation < _MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if host.memory and host.memory_reservation > host.memory:
        raise InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")


def _check_cpu(host: HostConfig, cpus: int) -> None:
    if host.nano_cpus and host.cpu_period > 0:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if host.nano_cpus and host.cpu_quota > 0:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if host.nano_cpus and not 10_000_000 <= host.nano_cpus <= cpus * 1_000_000_000:
        raise InvalidArgument(
            f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )
    if host.cpu_shares < 0:
        raise InvalidArgument(f"invalid CPU shares ({host.cpu_shares}): value must be a positive integer")
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidArgument("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < host.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    for name, text in (("cpus", host.cpuset_cpus), ("mems", host.cpuset_mems)):
        numbers = parse_set(text, name)
        if name == "cpus" and numbers and max(numbers) >= cpus:
            available = f"0-{cpus - 1}" if cpus > 1 else "0"
            raise InvalidArgument(f"Requested CPUs are not available - requested {text}, available: {available}")


def check_restart(host: HostConfig) -> None:
    """The policy, and that a container does not both stay and go."""
    check_policy(host.restart_policy)
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")


def check_policy(policy: RestartPolicy) -> None:
    """The name is known and a count only goes with on-failure."""
    count = policy.maximum_retry_count
    if policy.name == "on-failure":
        if count < 0:
            raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    elif policy.name in ("", "no", "always", "unless-stopped"):
        if count:
            raise InvalidArgument(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                + (" and cannot be negative" if count < 0 else "")
            )
    else:
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{policy.name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )


def _check_modes(request: ContainerCreate) -> None:
    host = request.host_config
    for name, mode, known in (
        ("IPC", host.ipc_mode, ("", "private", "shareable", "host", "none")),
        ("PID", host.pid_mode, ("", "host")),
        ("UTS", host.uts_mode, ("", "host")),
    ):
        shares = name != "UTS" and mode.startswith("container:") and mode != "container:"
        if mode not in known and not shares:
            raise InvalidArgument(f"invalid {name} mode: {mode}")
    if host.uts_mode == "host" and request.hostname:
        raise InvalidArgument("conflicting options: hostname and the UTS mode")
    if host.uts_mode == "host" and request.domainname:
        raise InvalidArgument("conflicting options: domainname and the UTS mode")
    mode = host.network_mode
    if mode == "container:":
        raise InvalidArgument("invalid network mode: invalid container format container:<name|id>")
    if not mode.startswith("container:"):
        return
    for given, what in (
        (request.hostname, "hostname and the network mode"),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (request.mac_address, "mac-address and the network mode"),
        (host.port_bindings or host.publish_all_ports, "port publishing and the container type network mode"),
        (request.exposed_ports, "port exposing and the container type network mode"),
    ):
        if given:
            raise InvalidArgument(f"conflicting options: {what}")


def _check_names(host: HostConfig) -> None:
    for entry in host.extra_hosts:
        name, separator, address = entry.partition(":") if "=" not in entry else entry.partition("=")
        if not name or not separator or not address:
            raise InvalidArgument(f'bad format for add-host: "{entry}"')
        if address != "host-gateway" and not _is_address(address.strip().removeprefix("[").removesuffix("]")):
            raise InvalidArgument(f'invalid IP address in add-host: "{address}"')
    if any(word == ".." for word in host.cgroup_parent.split("/")):
        raise InvalidArgument(f"invalid cgroup parent: {host.cgroup_parent}")
    for text in host.group_add:
        if not text:
            raise InvalidArgument("unable to find group : no matching entries in group file")
    if "" in host.annotations:
        raise InvalidArgument("invalid Annotations: the empty string is not permitted as an annotation key")
    for target in host.tmpfs:
        if not target.startswith("/"):
            raise InvalidArgument(f"invalid mount path: '{target}' mount path must be absolute")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
