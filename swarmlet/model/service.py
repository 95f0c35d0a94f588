"""Service specifications (Engine API 1.50: ServiceSpec, TaskSpec) and the stored service record.

A spec is the user's: it is stored as it came and never edited. Durations are nanoseconds.
None means "not given"; the defaults that then hold stand in `defaults.py`.
"""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct, Record
from swarmlet.model.common import Driver, HealthConfig, Mount, Platform, Ulimit
from swarmlet.model.network import NetworkAttachment


class DnsConfig(ApiStruct, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class FileTarget(ApiStruct, frozen=True, kw_only=True, omit_defaults=False):
    """Shown whole, as by dockerd: whether a text is taken for the default depends on where it was made."""

    name: str = ""
    uid: str = field(name="UID", default="0")
    gid: str = field(name="GID", default="0")
    mode: int = 0


class SecretReference(ApiStruct, frozen=True, kw_only=True):
    file: FileTarget | None = None
    secret_id: str = field(name="SecretID", default="")
    secret_name: str = ""


class ConfigReference(ApiStruct, frozen=True, kw_only=True):
    file: FileTarget | None = None
    runtime: dict[str, str] | None = None
    config_id: str = field(name="ConfigID", default="")
    config_name: str = ""


class CredentialSpec(ApiStruct, frozen=True, kw_only=True):
    config: str = ""
    file: str = ""
    registry: str = ""


class SeLinuxContext(ApiStruct, frozen=True, kw_only=True):
    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class SeccompOptions(ApiStruct, frozen=True, kw_only=True):
    mode: str = ""
    profile: str = ""


class AppArmorOptions(ApiStruct, frozen=True, kw_only=True):
    mode: str = ""


class Privileges(ApiStruct, frozen=True, kw_only=True):
    credential_spec: CredentialSpec | None = None
    selinux_context: SeLinuxContext | None = field(name="SELinuxContext", default=None)
    seccomp: SeccompOptions | None = None
    app_armor: AppArmorOptions | None = None
    no_new_privileges: bool = False


class ContainerSpec(ApiStruct, frozen=True, kw_only=True):
    """What runs in each task. `command` replaces the image's entrypoint, `args` its cmd."""

    image: str = ""
    labels: dict[str, str] = {}
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    privileges: Privileges | None = None
    stop_signal: str = ""
    tty: bool = field(name="TTY", default=False)
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    stop_grace_period: int | None = None
    healthcheck: HealthConfig | None = None
    hosts: tuple[str, ...] = ()
    dns_config: DnsConfig | None = field(name="DNSConfig", default=None)
    secrets: tuple[SecretReference, ...] = ()
    configs: tuple[ConfigReference, ...] = ()
    isolation: str = ""
    init: bool | None = None
    sysctls: dict[str, str] = {}
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0


class Limit(ApiStruct, frozen=True, kw_only=True):
    nano_cpus: int = field(name="NanoCPUs", default=0)
    memory_bytes: int = 0
    pids: int = 0


class NamedResource(ApiStruct, frozen=True, kw_only=True):
    kind: str = ""
    value: str = ""


class DiscreteResource(ApiStruct, frozen=True, kw_only=True):
    kind: str = ""
    value: int = 0


class GenericResource(ApiStruct, frozen=True, kw_only=True):
    named_resource_spec: NamedResource | None = None
    discrete_resource_spec: DiscreteResource | None = None


class Reservation(ApiStruct, frozen=True, kw_only=True):
    nano_cpus: int = field(name="NanoCPUs", default=0)
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] = ()


class ResourceRequirements(ApiStruct, frozen=True, kw_only=True):
    limits: Limit | None = None
    reservations: Reservation | None = None


class TaskRestartPolicy(ApiStruct, frozen=True, kw_only=True):
    """condition: none, on-failure, any ("" = any); delay, window in ns; None = default."""

    condition: str = ""
    delay: int | None = None
    max_attempts: int | None = None
    window: int | None = None


class SpreadOver(ApiStruct, frozen=True, kw_only=True):
    spread_descriptor: str = ""


class PlacementPreference(ApiStruct, frozen=True, kw_only=True):
    spread: SpreadOver | None = None


class Placement(ApiStruct, frozen=True, kw_only=True):
    constraints: tuple[str, ...] = ()
    preferences: tuple[PlacementPreference, ...] = ()
    max_replicas: int = 0
    platforms: tuple[Platform, ...] = ()


class NetworkAttachmentConfig(ApiStruct, frozen=True, kw_only=True):
    target: str = ""
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = {}


class TaskSpec(ApiStruct, frozen=True, kw_only=True):
    container_spec: ContainerSpec | None = None
    plugin_spec: dict[str, object] | None = None
    network_attachment_spec: dict[str, object] | None = None
    resources: ResourceRequirements | None = None
    restart_policy: TaskRestartPolicy | None = None
    placement: Placement | None = None
    force_update: int = 0
    runtime: str = "container"  # clients may leave it out or say it: the same
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    log_driver: Driver | None = None


class ReplicatedMode(ApiStruct, frozen=True, kw_only=True):
    replicas: int | None = None


class GlobalMode(ApiStruct, frozen=True, kw_only=True):
    pass


class ReplicatedJobMode(ApiStruct, frozen=True, kw_only=True):
    max_concurrent: int | None = None
    total_completions: int | None = None


class GlobalJobMode(ApiStruct, frozen=True, kw_only=True):
    pass


class ServiceMode(ApiStruct, frozen=True, kw_only=True):
    """Exactly one is set once the rim has checked it."""

    replicated: ReplicatedMode | None = None
    global_: GlobalMode | None = field(name="Global", default=None)
    replicated_job: ReplicatedJobMode | None = None
    global_job: GlobalJobMode | None = None


class UpdateConfig(ApiStruct, frozen=True, kw_only=True):
    """How slots are replaced. parallelism 0 = all at once; delay and monitor in ns; None = default."""

    parallelism: int | None = None
    delay: int = 0
    failure_action: str = ""
    monitor: int | None = None
    max_failure_ratio: float = 0.0
    order: str = ""


class PortConfig(ApiStruct, frozen=True, kw_only=True):
    """publish_mode: ingress ("" = ingress) or host; published_port 0 = chosen for you.

    host_ip ("" = every address of the host), local_only (only nodes with a task answer): the Engine API has no such
    fields, so clients say them by labels of the service (`publishing.py`).
    """

    name: str = ""
    protocol: str = "tcp"
    target_port: int = 0
    published_port: int = 0
    publish_mode: str = "ingress"
    host_ip: str = field(name="HostIP", default="")
    local_only: bool = False


class EndpointSpec(ApiStruct, frozen=True, kw_only=True):
    mode: str = ""
    ports: tuple[PortConfig, ...] = ()


class ServiceSpec(ApiStruct, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = {}
    task_template: TaskSpec = TaskSpec()
    mode: ServiceMode = ServiceMode()
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    endpoint_spec: EndpointSpec | None = None


class UpdateStatus(Record, frozen=True, kw_only=True):
    """Where a rolling update stands. state: updating, paused, completed, rollback_started,
    rollback_paused, rollback_completed; "" = there was none."""

    state: str = ""
    started_at: int = 0
    completed_at: int = 0
    message: str = ""
    #: How many slots had to change when it began: what the failure ratio is a ratio of.
    slots: int = 0


class Service(Record, frozen=True, kw_only=True):
    """A stored service. `spec_version` grows by one with each change of what its tasks run; tasks carry
    the one they were made from. `version` is the store's, for guarded writes."""

    id: str
    spec: ServiceSpec
    spec_version: int = 1
    previous_spec: ServiceSpec | None = None
    previous_spec_version: int = 0
    created_at: int = 0
    updated_at: int = 0
    version: int = 0
    update_status: UpdateStatus | None = None
    #: Set by rm: tasks are told to REMOVE, and the record goes once the last of them has.
    pending_delete: bool = False
    job_iteration: int = 0
    ports: tuple[PortConfig, ...] = ()  # endpoint_spec's ports with published ports filled in
    #: Registry credentials for pulls of `spec` and `previous_spec`, sealed with the cluster's `seal_key`; b"" = none.
    sealed_auth: bytes = b""
    previous_sealed_auth: bytes = b""
    #: One address for the whole service in each of its networks (endpoint mode vip).
    vips: tuple[NetworkAttachment, ...] = ()
