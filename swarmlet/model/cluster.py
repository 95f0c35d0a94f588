"""The cluster itself: its spec (Engine API 1.50: SwarmSpec) and stored record."""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct, Record
from swarmlet.model.common import Driver
from swarmlet.model.times import NS
from swarmlet.model.ways import WaysPlan

#: IANA's port of VXLAN, and Docker's.
DATA_PATH_PORT = 4789


class OrchestrationSpec(ApiStruct, frozen=True, kw_only=True):
    task_history_retention_limit: int = 5


class RaftSpec(ApiStruct, frozen=True, kw_only=True):
    """Kept and shown because clients send it; without effect, since the store is etcd."""

    snapshot_interval: int = 10_000
    keep_old_snapshots: int = 0
    log_entries_for_slow_followers: int = 500
    election_tick: int = 10
    heartbeat_tick: int = 1


class DispatcherSpec(ApiStruct, frozen=True, kw_only=True):
    """Nanoseconds between an agent's heartbeats. A node is down after three periods without one.

    Docker's default is 5 s, which makes failover 13-15 s; a beat costs the manager some 30 us, so
    1 s is affordable to a few thousand nodes.
    """

    heartbeat_period: int = 1 * NS


class ExternalCA(ApiStruct, frozen=True, kw_only=True):
    protocol: str = ""
    url: str = field(name="URL", default="")
    options: dict[str, str] = {}
    ca_cert: str = field(name="CACert", default="")


class CAConfig(ApiStruct, frozen=True, kw_only=True):
    node_cert_expiry: int = 2160 * 3600 * NS
    external_cas: tuple[ExternalCA, ...] = field(name="ExternalCAs", default=())
    signing_ca_cert: str = field(name="SigningCACert", default="")
    signing_ca_key: str = field(name="SigningCAKey", default="")
    force_rotate: int = 0


class EncryptionConfig(ApiStruct, frozen=True, kw_only=True):
    auto_lock_managers: bool = False


class TaskDefaults(ApiStruct, frozen=True, kw_only=True):
    log_driver: Driver | None = None


class SwarmSpec(ApiStruct, frozen=True, kw_only=True):
    name: str = "default"
    labels: dict[str, str] = {}
    orchestration: OrchestrationSpec = OrchestrationSpec()
    raft: RaftSpec = RaftSpec()
    dispatcher: DispatcherSpec = DispatcherSpec()
    ca_config: CAConfig = field(name="CAConfig", default=CAConfig())
    encryption_config: EncryptionConfig = EncryptionConfig()
    task_defaults: TaskDefaults = TaskDefaults()


class Cluster(Record, frozen=True, kw_only=True):
    """The one cluster record. CA key and tokens are secrets: never logged, never sent to agents."""

    id: str
    spec: SwarmSpec = SwarmSpec()
    ca_cert_pem: str = ""
    ca_key_pem: str = ""
    worker_token: str = ""
    manager_token: str = ""
    #: 32 random bytes that seal what must not lie about in clear (registry credentials of services).
    seal_key: bytes = b""
    #: Tells the key that secrets and configs are sealed with, which is not in the store; b"": none has been made.
    data_key_digest: bytes = b""
    #: Where subnets of the cluster's networks are cut from, and their prefix length.
    address_pools: tuple[str, ...] = ("10.0.0.0/8",)
    subnet_size: int = 20
    #: UDP port that carries VXLAN between nodes.
    data_path_port: int = DATA_PATH_PORT
    #: The user has removed the routing mesh's network: none is made but by the user from then on.
    ingress_removed: bool = False
    #: What agents know as a term is the leader's own and this: the moment of the last restore (us), 0 without one.
    #: It grows faster than etcd's revisions, with which it is added.
    terms_after: int = 0
    #: Keys of encrypted networks.
    ways: WaysPlan = WaysPlan()
    created_at: int = 0
    updated_at: int = 0
    version: int = 0
