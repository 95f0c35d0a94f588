"""What the engine hands to the runtime and gets back: plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.errors import SwarmletError
from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet_agent.decide.remap import MappedIds, Remap
from swarmlet_agent.decide.selinux import NO_LABELS, Labels


class StartFailed(SwarmletError):
    """The container's process could not be started. `exit_code` is what `docker run` answers with:
    127 command not found, 126 not executable or a directory, 128 anything else the runtime refused.
    The text is the runtime's own."""

    def __init__(self, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        #: As dockerd answers: a program that is not there or not one is the client's mistake.
        self.status = 400 if exit_code in (126, 127) else 500


@dataclass(frozen=True, slots=True)
class MountPlan:
    """One mount inside the container, resolved: source is a host path (bind) or "" (tmpfs).

    options are mount(8) words as OCI has them ("rbind", "ro", "rslave", "nosuid", "size=…").
    """

    target: str
    source: str
    type: str  # bind or tmpfs
    options: tuple[str, ...] = ()
    #: On the host it has the container's ids, and shall have them inside.
    mapped: bool = False


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything the OCI configuration is made from; nothing is looked up later.

    args: full argv. user ids are resolved. env is complete, in order. netns_path None = host network.
    files: host files bound at /etc/hostname, /etc/hosts, /etc/resolv.conf (target -> source).
    """

    id: str
    config: ContainerConfig
    host: HostConfig
    rootfs: Path
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    hostname: str
    cgroup_path: str  # below every hierarchy, e.g. /swarmlet/<id>
    netns_path: str | None
    mounts: tuple[MountPlan, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    #: Namespaces joined instead of made: kind (pid, ipc, uts) -> path, or "" for the host's.
    joined: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    #: The user namespace it joins, and whose ids it has there; None: the host's.
    ids: MappedIds | None = None
    #: Of SELinux.
    labels: Labels = NO_LABELS


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a container: 0-255 (128 + signal when killed), when (ns), and whether the OOM killer did it."""

    code: int
    at: int
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class ExecPlan:
    """A further process in a running container. uid/gid/groups resolved; env complete.

    detached: nobody takes its output, and it outlives this agent whatever it writes (not with a terminal).
    """

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    tty: bool = False
    privileged: bool = False
    open_stdin: bool = False
    console_size: tuple[int, int] = (0, 0)  # rows, columns
    detached: bool = False
    #: The container's ids on the host.
    remap: Remap | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters of a container's cgroup at one moment; both cgroup layouts give the same. 0 = not accounted."""

    read_at: int
    cpu_total_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_per_cpu_ns: tuple[int, ...] = ()
    throttled_periods: int = 0
    throttled_count: int = 0
    throttled_ns: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0  # the host's memory where there is no limit
    memory_max_usage_bytes: int = 0
    memory_failcnt: int = 0
    memory_stats: Mapping[str, int] = field(default_factory=dict)
    pids: int = 0
    pids_limit: int = 0
    blkio: tuple[tuple[int, int, str, int], ...] = ()  # major, minor, operation ("read", "write"), bytes
