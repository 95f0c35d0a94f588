"""Changing a container's limits and restart policy after it was made (Engine API ContainerUpdate)."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.errors import Conflict, NotSupported
from swarmlet.model.container import HostConfig, RestartPolicy
from swarmlet_agent.decide.validate import check_policy, check_resources

#: What may be changed. A field that has its default value in a change is left as it is.
_LIMITS = (
    "cpu_shares", "memory", "blkio_weight", "cpu_period", "cpu_quota", "cpu_realtime_period", "cpu_realtime_runtime",
    "cpuset_cpus", "cpuset_mems", "memory_reservation", "memory_swap", "nano_cpus", "pids_limit",
)  # fmt: skip


#: Resources that a change cannot set: dockerd passes them over, here they are refused.
_FIXED = (
    "blkio_weight_device", "blkio_device_read_bps", "blkio_device_write_bps", "blkio_device_read_iops",
    "blkio_device_write_iops", "cgroup_parent", "devices", "device_cgroup_rules", "device_requests",
    "memory_swappiness", "oom_kill_disable", "init", "ulimits",
)  # fmt: skip


def apply_update(host: HostConfig, changes: HostConfig, *, cpus: int) -> HostConfig:
    """The new HostConfig; nothing of `host` but limits and the restart policy changes.

    InvalidArgument for a limit that cannot be, NotSupported for what cannot be changed,
    Conflict where the old and new ones contradict each other.
    """
    untouched = HostConfig()
    for name in _FIXED:
        if getattr(changes, name) not in (getattr(untouched, name), None, False, -1):
            raise NotSupported(f"update: {name.replace('_', '-')} cannot be changed once a container is made")
    given = {name: getattr(changes, name) for name in _LIMITS if getattr(changes, name) != getattr(untouched, name)}
    for name, word in (("cpu_period", "Period"), ("cpu_quota", "Quota")):
        if host.nano_cpus and given.get(name, 0) > 0:
            raise Conflict(f"Conflicting options: CPU {word} cannot be updated as NanoCPUs has already been set")
    if (host.cpu_period > 0 or host.cpu_quota > 0) and "nano_cpus" in given:  # a quota of -1 is none
        raise Conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period/Quota has already been set")
    memory = given.get("memory")
    if memory and 0 < host.memory_swap < memory and "memory_swap" not in given:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    if given.get("pids_limit", 1) <= 0:
        given["pids_limit"] = 0  # however it is said: without limit
    policy = changes.restart_policy
    if policy != RestartPolicy():
        check_policy(policy)
        if host.auto_remove and policy.name not in ("", "no"):
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        given["restart_policy"] = policy
    after = replace(host, **given)
    check_resources(after, cpus=cpus)
    return after
