"""What a container must not see or gain: masked paths, `--security-opt`, and the options this engine refuses. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import HostConfig
from swarmlet_agent.decide.selinux import options_for
from swarmlet_agent.runtime import seccomp
from swarmlet_agent.runtime.cdi import check_requests
from swarmlet_agent.runtime.facts import HostFacts

#: moby oci/defaults.go.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_UNCONFINED = "unconfined"


@dataclass(frozen=True, slots=True)
class SecurityOptions:
    """`--security-opt` words, read. seccomp: None the default profile, "unconfined", or a profile's JSON.

    labels: what stands behind `label=`, unread: a host without SELinux takes any, as dockerd does.
    """

    no_new_privileges: bool = False
    seccomp: str | None = None
    apparmor: str | None = None
    writable_cgroups: bool = False
    labels: tuple[str, ...] = ()


def read_options(words: Sequence[str]) -> SecurityOptions:
    """InvalidArgument for a word Docker does not know."""
    no_new_privileges, profile, apparmor, writable_cgroups = False, None, None, False
    labels: list[str] = []
    for word in words:
        # Old clients separate by a colon. A profile's JSON is full of both, so the first one counts.
        separator = min((word.index(char) for char in "=:" if char in word), default=len(word))
        key, value = word[:separator], word[separator + 1 :]
        if key == "no-new-privileges":
            no_new_privileges = _flag(word, value)
        elif key == "writable-cgroups":
            writable_cgroups = _flag(word, value)
        elif key == "seccomp" and value:
            profile = value
        elif key == "apparmor" and value:
            apparmor = value
        elif key == "label" and value:
            labels.append(value)
        else:
            # dockerd tells by number where it gave up: 1 is a word without a value.
            number = 2 if "=" in word or ":" in word else 1
            raise InvalidArgument(f'invalid --security-opt {number}: "{word}"')
    return SecurityOptions(no_new_privileges, profile, apparmor, writable_cgroups, tuple(labels))


def with_labels(host: HostConfig, joined: Sequence[str] = ()) -> HostConfig:
    """With the labels of those who say nothing of them, as clients are shown them (moby generateSecurityOpt).

    SELinux does not confine who has the host's processes or IPC, or is privileged, and dockerd says so where there is
    no SELinux as well. joined: the process labels of the containers whose processes or IPC it has, which it gets, too,
    unless one of them has none. InvalidArgument if they have different ones.
    """
    if any(word.partition("=")[0] == "label" for word in host.security_opt):
        return host
    if host.privileged or host.ipc_mode == "host" or host.pid_mode == "host":
        return replace(host, security_opt=(*host.security_opt, "label=disable"))
    if not joined or "" in joined:
        return host
    if len(set(joined)) > 1:
        raise InvalidArgument("--ipc and --pid containers SELinux labels aren't the same")
    return replace(host, security_opt=(*host.security_opt, *options_for(joined[0])))


def lacking(words: Sequence[str], *, apparmor: bool, selinux: bool) -> list[str]:
    """Warnings about labels and profiles that have no effect on this host; which of the two it has."""
    warnings = []
    for word in words:
        key, _, value = word.replace(":", "=", 1).partition("=")
        if key == "label" and value != "disable" and not selinux:
            warnings.append(f'SELinux labels are not used on this host. Security option "{word}" discarded.')
        if key == "apparmor" and value != _UNCONFINED and not apparmor:
            warnings.append(f'AppArmor is not enabled on this host. Security option "{word}" discarded.')
    return warnings


def _flag(word: str, value: str) -> bool:
    if value.lower() in ("", "1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidArgument(f'invalid --security-opt 2: "{word}"')


def seccomp_profile(
    host: HostConfig, options: SecurityOptions, caps: Sequence[str], facts: HostFacts
) -> dict[str, Any] | None:
    """`linux.seccomp`, or None for no filter. NotSupported for a profile on a kernel without seccomp."""
    if options.seccomp == _UNCONFINED or (host.privileged and options.seccomp is None):
        return None
    if options.seccomp in (None, "builtin"):
        if not facts.seccomp or facts.default_profile is None:
            return None
        return seccomp.resolve(facts.default_profile, caps, facts.seccomp_host)
    if not facts.seccomp:
        raise NotSupported("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
    return seccomp.resolve(seccomp.parse(options.seccomp or ""), caps, facts.seccomp_host)


def apparmor_profile(host: HostConfig, options: SecurityOptions, facts: HostFacts) -> str:
    """`process.apparmorProfile`, or "", as always on a host without AppArmor.

    None at all is not unconfined: Ubuntu 24.04 has a profile for the program that starts containers, and they inherit
    it.
    """
    if not facts.apparmor:
        return ""
    return options.apparmor or (_UNCONFINED if host.privileged else facts.apparmor_profile)


def shown_profile(host: HostConfig, apparmor: bool, default: str) -> str:
    """What inspect says of it. apparmor: the host has it."""
    if not apparmor:
        return ""
    chosen = read_options(host.security_opt).apparmor
    return chosen or ("" if host.privileged else default) or _UNCONFINED


def paths(host: HostConfig, cpus: int) -> tuple[list[str], list[str]]:
    """Masked and read-only paths; an explicit list, also an empty one, replaces Docker's."""
    if host.privileged:
        return [], []
    throttle = [f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle" for cpu in range(cpus)]
    masked = [*MASKED_PATHS, *throttle] if host.masked_paths is None else list(host.masked_paths)
    return masked, list(READONLY_PATHS if host.readonly_paths is None else host.readonly_paths)


def refuse_unsupported(host: HostConfig) -> None:
    """NotSupported or InvalidArgument for options that would otherwise be ignored."""
    if host.userns_mode not in ("", "host"):
        raise InvalidArgument(f"invalid userns mode: {host.userns_mode}")
    if host.isolation not in ("", "default"):
        raise InvalidArgument(f'Invalid isolation: "{host.isolation}" - linux only supports \'default\'')
    if host.storage_opt:
        raise NotSupported("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    check_requests(host.device_requests)
    if host.cgroup:
        raise NotSupported(f'cgroup "{host.cgroup}" is not supported: every container has a cgroup of its own')
    if host.cgroupns_mode not in ("", "private", "host"):
        raise InvalidArgument(f"invalid cgroup namespace mode: {host.cgroupns_mode}")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidArgument(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
