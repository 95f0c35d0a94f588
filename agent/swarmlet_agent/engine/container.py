"""The engine's record of a container, and the small values its operations take and give.

Records are frozen: a change makes a new one, which is in the journal before anyone is told of it.
Times are nanoseconds since the epoch, 0 = never.
"""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct, Record
from swarmlet.model.container import ContainerConfig, ContainerCreate, EndpointSettings, HostConfig, PortBinding
from swarmlet.model.ids import short_id
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.decide.selinux import Labels

#: What a client may wait for (Engine API ContainerWait).
WAIT_CONDITIONS = ("not-running", "next-exit", "removed")


class HealthResult(Record, frozen=True, kw_only=True):
    """One probe. exit_code 0 healthy, 1 unhealthy, -1 it could not be run or timed out."""

    start: int
    end: int
    exit_code: int
    output: str = ""


class Health(Record, frozen=True, kw_only=True):
    """status: starting, healthy or unhealthy; log: the last five probes, oldest first."""

    status: str = "starting"
    failing_streak: int = 0
    log: tuple[HealthResult, ...] = ()


class ContainerState(Record, frozen=True, kw_only=True):
    """status: created, running, paused, restarting, removing, exited or dead. pid is init's on the host, 0 = none.

    manually_stopped: a client stopped or killed it, so `unless-stopped` leaves it alone.
    health is None for a container without a health check.
    """

    status: str = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0
    manually_stopped: bool = False
    health: Health | None = None


class SuppliedFile(Record, frozen=True, kw_only=True):
    """A read-only file that a container has from elsewhere than its image and the host: its content is in memory only,
    and is given before each start (`supplies.py`). uid, gid: as the container sees them; mode: all twelve bits."""

    target: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o444


class Container(Record, frozen=True, kw_only=True):
    """A container. `request` is what was asked for with the image's defaults and the engine's own merged in,
    which is what inspect shows as Config and HostConfig.

    name: without the leading slash. image_ref: the image as the client named it; image_id: what it was then.
    args: full argv. wishes by network name: what was asked for; endpoints: the same with what was given while it is
    attached. ports: "80/tcp" -> bindings as really published, only while attached. files: /etc/hostname, /etc/hosts,
    /etc/resolv.conf -> host files. log_path "": the log driver keeps nothing. uid, gid, groups: of the last start;
    linked_env: what links told it then.
    """

    id: str
    name: str
    created_at: int
    request: ContainerCreate
    image_id: str
    image_ref: str
    args: tuple[str, ...]
    state: ContainerState = ContainerState()
    mounts: tuple[MountPoint, ...] = ()
    wishes: dict[str, EndpointSettings] = {}
    endpoints: dict[str, EndpointSettings] = {}
    ports: dict[str, tuple[PortBinding, ...]] = {}
    files: dict[str, str] = {}
    netns_path: str = ""
    sandbox_id: str = ""
    log_path: str = ""
    restart_count: int = 0
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    linked_env: tuple[str, ...] = ()
    #: The ids it has on the host, for its whole life; None: its own.
    remap: Remap | None = None
    platform: str = "linux"
    driver: str = "overlay2"
    supplied: tuple[SuppliedFile, ...] = ()
    #: SELinux's, for its whole life; None: it was made without SELinux.
    selinux: Labels | None = None
    #: Set with status removing: whether its anonymous volumes go with it.
    removes_volumes: bool = False

    @property
    def short_id(self) -> str:
        return short_id(self.id)

    @property
    def config(self) -> ContainerConfig:
        """Docker's Config (the same object as `request`)."""
        return self.request

    @property
    def host(self) -> HostConfig:
        """Docker's HostConfig."""
        return self.request.host_config

    @property
    def path(self) -> str:
        """The program: argv's first word."""
        return self.args[0]

    @property
    def has_process(self) -> bool:
        """True while its program runs (or is frozen)."""
        return self.state.status in ("running", "paused")

    @property
    def is_running(self) -> bool:
        """As Docker's State.Running: also while it waits for its next restart."""
        return self.has_process or self.state.status == "restarting"


class ExecRequest(ApiStruct, frozen=True, kw_only=True):
    """The body of POST /containers/{id}/exec (Engine API ExecConfig)."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    tty: bool = False
    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    console_size: tuple[int, int] | None = None


class ExecRecord(Record, frozen=True, kw_only=True):
    """An exec instance; it lives in memory only, as long as its container runs. exit_code None: not ended."""

    id: str
    container_id: str
    request: ExecRequest
    running: bool = False
    pid: int = 0
    exit_code: int | None = None


class WaitResult(Record, frozen=True, kw_only=True):
    """How the awaited end came about; error is the container's State.Error."""

    exit_code: int
    error: str = ""


class PruneReport(ApiStruct, frozen=True, kw_only=True):
    """Answer of POST /containers/prune."""

    containers_deleted: tuple[str, ...] = ()
    space_reclaimed: int = field(name="SpaceReclaimed", default=0)
