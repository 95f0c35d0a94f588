"""What a client asks for when it creates a container (Engine API 1.50: ContainerCreate).

These records are stored with the container and shown by inspect as they were asked for; what the
engine makes of them (resolved user, mounts, addresses) lives beside them in the engine's own record.
"""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct
from swarmlet.model.common import HealthConfig, Mount, Ulimit

#: Label of a task's container: the task's id.
TASK_LABEL = "com.docker.swarm.task.id"


class ContainerConfig(ApiStruct, frozen=True, kw_only=True):
    """The portable part. None for cmd/entrypoint means "the image's"; [] means "none"."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, str]] = {}
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, str]] = {}
    working_dir: str = ""
    entrypoint: tuple[str, ...] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: tuple[str, ...] = ()


class LogConfig(ApiStruct, frozen=True, kw_only=True):
    type: str = ""
    config: dict[str, str] = {}


class PortBinding(ApiStruct, frozen=True, kw_only=True):
    """`host_port` "" = any free port; may be a range "8000-8010" on input."""

    host_ip: str = field(name="HostIp", default="")
    host_port: str = ""


class RestartPolicy(ApiStruct, frozen=True, kw_only=True):
    """name: "", no, always, unless-stopped, on-failure."""

    name: str = ""
    maximum_retry_count: int = 0


class DeviceMapping(ApiStruct, frozen=True, kw_only=True):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class DeviceRequest(ApiStruct, frozen=True, kw_only=True):
    driver: str = ""
    count: int = 0
    device_ids: tuple[str, ...] = field(name="DeviceIDs", default=())
    capabilities: tuple[tuple[str, ...], ...] = ()
    options: dict[str, str] = {}


class WeightDevice(ApiStruct, frozen=True, kw_only=True):
    path: str
    weight: int


class ThrottleDevice(ApiStruct, frozen=True, kw_only=True):
    path: str
    rate: int


class HostConfig(ApiStruct, frozen=True, kw_only=True):
    """The part that depends on the host. Bytes, nanoseconds and Docker's own units as the API has them."""

    cpu_shares: int = 0
    memory: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: tuple[WeightDevice, ...] = ()
    blkio_device_read_bps: tuple[ThrottleDevice, ...] = ()
    blkio_device_write_bps: tuple[ThrottleDevice, ...] = ()
    blkio_device_read_iops: tuple[ThrottleDevice, ...] = field(name="BlkioDeviceReadIOps", default=())
    blkio_device_write_iops: tuple[ThrottleDevice, ...] = field(name="BlkioDeviceWriteIOps", default=())
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: tuple[DeviceMapping, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    device_requests: tuple[DeviceRequest, ...] = ()
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    nano_cpus: int = 0
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    binds: tuple[str, ...] = ()
    container_id_file: str = field(name="ContainerIDFile", default="")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, tuple[PortBinding, ...] | None] = {}
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] = {}
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    cgroupns_mode: str = ""
    # None: nobody said anything; inspect tells that from an empty list.
    dns: tuple[str, ...] | None = None
    dns_options: tuple[str, ...] | None = None
    dns_search: tuple[str, ...] | None = None
    extra_hosts: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    ipc_mode: str = ""
    cgroup: str = ""
    links: tuple[str, ...] = ()
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: tuple[str, ...] = ()
    storage_opt: dict[str, str] = {}
    tmpfs: dict[str, str] = {}
    uts_mode: str = field(name="UTSMode", default="")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] = {}
    runtime: str = ""
    isolation: str = ""
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    # Of older clients and of Windows: told about, and never kept (decide/kernel.py).
    kernel_memory: int = 0
    kernel_memory_tcp: int = field(name="KernelMemoryTCP", default=0)
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(name="IOMaximumIOps", default=0)
    io_maximum_bandwidth: int = field(name="IOMaximumBandwidth", default=0)


class EndpointIPAMConfig(ApiStruct, frozen=True, kw_only=True):
    ipv4_address: str = field(name="IPv4Address", default="")
    ipv6_address: str = field(name="IPv6Address", default="")
    link_local_ips: tuple[str, ...] = field(name="LinkLocalIPs", default=())


class EndpointSettings(ApiStruct, frozen=True, kw_only=True):
    """A container's place in one network: what was asked for, and what was given.

    Addresses are without prefix length; 0 and "" while the container is not attached.
    """

    ipam_config: EndpointIPAMConfig | None = field(name="IPAMConfig", default=None)
    links: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    mac_address: str = ""
    driver_opts: dict[str, str] = {}
    gw_priority: int = 0
    network_id: str = field(name="NetworkID", default="")
    endpoint_id: str = field(name="EndpointID", default="")
    gateway: str = ""
    ip_address: str = field(name="IPAddress", default="")
    ip_prefix_len: int = field(name="IPPrefixLen", default=0)
    ipv6_gateway: str = field(name="IPv6Gateway", default="")
    global_ipv6_address: str = field(name="GlobalIPv6Address", default="")
    global_ipv6_prefix_len: int = field(name="GlobalIPv6PrefixLen", default=0)
    dns_names: tuple[str, ...] = field(name="DNSNames", default=())


class NetworkingConfig(ApiStruct, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointSettings | None] = {}


class ContainerCreate(ContainerConfig, frozen=True, kw_only=True):
    """The body of POST /containers/create: ContainerConfig with HostConfig and NetworkingConfig beside it.

    The rim turns string forms of Cmd and Entrypoint, and JSON nulls, into these types first.
    """

    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()


class ImageConfig(ApiStruct, frozen=True, kw_only=True):
    """The `config` object of an OCI image configuration (image-spec config.md), Docker's additions included."""

    user: str = ""
    exposed_ports: dict[str, dict[str, str]] = {}
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, dict[str, str]] = {}
    working_dir: str = ""
    labels: dict[str, str] = {}
    stop_signal: str = ""
    healthcheck: HealthConfig | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    args_escaped: bool = False
