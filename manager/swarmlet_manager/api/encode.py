"""From stored records to Engine API objects (API 1.50: Node, Service, Task, Swarm). Pure.

Lists of tasks are the largest answers: what tasks share (their spec) is encoded once per spec, and each task
once per version, and both are kept until they change.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from swarmlet.model import defaults
from swarmlet.model.base import to_api
from swarmlet.model.cluster import Cluster
from swarmlet.model.network import Network
from swarmlet.model.node import Node
from swarmlet.model.service import EndpointSpec, PortConfig, Service, ServiceSpec, TaskSpec
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import rfc3339
from swarmlet.pki import subject_and_key
from swarmlet_manager.api import encode_network

Json = dict[str, Any]

#: Encoded specs remembered; more than services in use, so that clearing is rare.
MAX_SPECS = 4096


def meta(version: int, created_at: int, updated_at: int) -> Json:
    """What every object of the cluster begins with, its id apart."""
    return {
        "Version": {"Index": version},
        "CreatedAt": rfc3339(created_at),
        "UpdatedAt": rfc3339(updated_at or created_at),
    }


def node(record: Node, *, leader_id: str = "") -> Json:
    """Engine API Node; ManagerStatus only for managers."""
    description = to_api(replace(record.description, problems=()))
    # The Engine API has no place for a host's troubles but this: a node that is ready has nothing else to say there.
    message = record.message or "; ".join(record.description.problems)
    description.setdefault("Platform", {})
    description.setdefault("Resources", {})
    description.setdefault("Engine", {})
    answer: Json = {
        "ID": record.id,
        **meta(record.version, record.created_at, record.updated_at),
        "Spec": {
            "Labels": record.spec.labels,
            "Role": str(record.spec.role),
            "Availability": str(record.spec.availability),
            **({"Name": record.spec.name} if record.spec.name else {}),
        },
        "Description": description,
        "Status": {
            "State": str(record.state),
            "Addr": record.addr,
            **({"Message": message} if message else {}),
        },
    }
    if record.manager_addr:
        reachable = "reachable" if record.state is NodeState.READY else "unreachable"
        answer["ManagerStatus"] = {"Reachability": reachable, "Addr": record.manager_addr}
        if record.id == leader_id:
            answer["ManagerStatus"]["Leader"] = True
    return answer


def service_spec(spec: ServiceSpec, *, insert_defaults: bool = False) -> Json:
    """The spec as it was given; fields that clients read without looking are always there."""
    answer: Json = to_api(spec)
    answer.setdefault("Labels", {})
    template = answer.setdefault("TaskTemplate", {})
    template.setdefault("ForceUpdate", 0)
    template.setdefault("Runtime", "container")
    template.setdefault("ContainerSpec", {}).setdefault("Isolation", "default")
    mode = answer.setdefault("Mode", {})
    if not mode:
        mode["Replicated"] = {}
    if "Replicated" in mode:
        mode["Replicated"].setdefault("Replicas", 1)
    if spec.endpoint_spec is not None:
        answer["EndpointSpec"] = endpoint_spec(spec.endpoint_spec)
    for name in ("UpdateConfig", "RollbackConfig"):
        if name in answer:
            answer[name].setdefault("Parallelism", defaults.UPDATE_PARALLELISM)
            answer[name].setdefault("FailureAction", "pause")
            # As Go writes it: a whole number without a point.
            ratio = answer[name].get("MaxFailureRatio", 0)
            answer[name]["MaxFailureRatio"] = int(ratio) if ratio == int(ratio) else ratio
            answer[name].setdefault("Order", "stop-first")
    if insert_defaults:
        _insert_defaults(spec, answer)
    return answer


def _insert_defaults(spec: ServiceSpec, answer: Json) -> None:
    """What holds where the user said nothing (GET /services/{id}?insertDefaults=true)."""
    template = answer["TaskTemplate"]
    template["ContainerSpec"].setdefault("StopGracePeriod", defaults.STOP_GRACE_PERIOD_NS)
    template["ContainerSpec"].setdefault("DNSConfig", {})
    policy = template.setdefault("RestartPolicy", {})
    policy["Condition"] = defaults.restart_condition(spec.task_template)
    policy["Delay"] = defaults.restart_delay_ns(spec.task_template)
    policy["MaxAttempts"] = defaults.restart_max_attempts(spec.task_template)
    for name in ("UpdateConfig", "RollbackConfig"):
        config = answer.setdefault(name, {})
        config.setdefault("Parallelism", defaults.UPDATE_PARALLELISM)
        config.setdefault("Monitor", defaults.UPDATE_MONITOR_NS)
        config.setdefault("FailureAction", "pause")
        config.setdefault("MaxFailureRatio", 0)
        config.setdefault("Order", "stop-first")
    template.setdefault("Resources", {})
    template.setdefault("Placement", {})


def endpoint_spec(spec: EndpointSpec) -> Json:
    return {"Mode": spec.mode or "vip", **({"Ports": [port(entry) for entry in spec.ports]} if spec.ports else {})}


def port(config: PortConfig) -> Json:
    answer: Json = {
        "Protocol": config.protocol,
        "TargetPort": config.target_port,
        "PublishMode": config.publish_mode,
    }
    if config.published_port:
        answer["PublishedPort"] = config.published_port
    if config.name:
        answer["Name"] = config.name
    if config.host_ip:
        answer["HostIP"] = config.host_ip
    if config.local_only:
        answer["LocalOnly"] = True
    return answer


def service(
    record: Service, *, insert_defaults: bool = False, tasks: Iterable[Task] | None = None, desired: int = 0
) -> Json:
    """Engine API Service; with tasks given, its ServiceStatus too (desired = what that counts up to)."""
    endpoint: Json = {}
    if record.spec.endpoint_spec is not None:
        endpoint["Spec"] = endpoint_spec(record.spec.endpoint_spec)
    if record.ports:
        endpoint["Ports"] = [port(entry) for entry in record.ports]
    if record.vips:
        endpoint["VirtualIPs"] = [
            {"NetworkID": vip.network_id, "Addr": address} for vip in record.vips for address in vip.addresses
        ]
    answer: Json = {
        "ID": record.id,
        **meta(record.version, record.created_at, record.updated_at),
        "Spec": service_spec(record.spec, insert_defaults=insert_defaults),
        "Endpoint": endpoint or {"Spec": {}},
    }
    if record.previous_spec is not None:
        answer["PreviousSpec"] = service_spec(record.previous_spec)
    if (update := record.update_status) is not None and update.state:
        answer["UpdateStatus"] = {
            "State": update.state,
            "StartedAt": rfc3339(update.started_at),
            "Message": update.message,
            **({"CompletedAt": rfc3339(update.completed_at)} if update.completed_at else {}),
        }
    if tasks is not None:
        every = list(tasks)
        answer["ServiceStatus"] = {
            "RunningTasks": sum(1 for task in every if task.status.state == TaskState.RUNNING and task.is_active),
            "DesiredTasks": desired,
            "CompletedTasks": sum(1 for task in every if task.status.state == TaskState.COMPLETE),
        }
    return answer


def task(record: Task, networks: Mapping[str, Network] = MappingProxyType({}), spec: Any = None) -> Json:
    """Engine API Task. networks: the cluster's, by id. spec: the encoded task spec if the caller has it."""
    status = record.status
    answer: Json = {
        "ID": record.id,
        **meta(record.version, record.created_at, record.updated_at),
        "Labels": {},
        "Spec": task_spec(record.spec) if spec is None else spec,
        "ServiceID": record.service_id,
        "Status": {
            "Timestamp": rfc3339(status.at),
            "State": status.state.api_name,
            "Message": status.message,
            "PortStatus": {"Ports": [port(entry) for entry in status.ports]} if status.ports else {},
        },
        "DesiredState": record.desired_state.api_name,
        "Volumes": None,
    }
    if record.networks:
        answer["NetworksAttachments"] = [
            encode_network.attachment(networks[place.network_id], place)
            for place in record.networks
            if place.network_id in networks
        ]
    if record.slot:
        answer["Slot"] = record.slot
    if record.node_id:
        answer["NodeID"] = record.node_id
    if status.err:
        answer["Status"]["Err"] = status.err
    if status.container_id or status.state is TaskState.REJECTED:
        answer["Status"]["ContainerStatus"] = {
            "ContainerID": status.container_id,
            "PID": status.pid,
            "ExitCode": status.exit_code,
        }
    return answer


def task_spec(spec: TaskSpec) -> Json:
    answer: Json = to_api(spec)
    answer.setdefault("ForceUpdate", 0)
    answer.setdefault("ContainerSpec", {}).setdefault("Isolation", "default")
    return answer


class TaskEncoder:
    """Tasks as JSON bytes, remembered per task version. One per manager, used from its loop alone."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._tasks: dict[str, tuple[int, msgspec.Raw]] = {}
        self._specs: dict[int, tuple[TaskSpec, msgspec.Raw]] = {}

    def encode(self, records: Iterable[Task], networks: Mapping[str, Network]) -> bytes:
        """A JSON array."""
        return self._encoder.encode([self._one(record, networks) for record in records])

    def forget_all_but(self, live: Iterable[str]) -> None:
        """Drop what is no longer in the state; called now and then with the ids that are."""
        keep = set(live)
        self._tasks = {ident: entry for ident, entry in self._tasks.items() if ident in keep}
        self._specs.clear()

    def __len__(self) -> int:
        return len(self._tasks)

    def _one(self, record: Task, networks: Mapping[str, Network]) -> msgspec.Raw:
        known = self._tasks.get(record.id)
        if known is not None and known[0] == record.version:
            return known[1]
        encoded = msgspec.Raw(self._encoder.encode(task(record, networks, self._spec(record.spec))))
        self._tasks[record.id] = (record.version, encoded)
        return encoded

    def _spec(self, spec: TaskSpec) -> msgspec.Raw:
        # By identity: tasks of one (service, version) share the object, and holding it keeps the identity its own.
        known = self._specs.get(id(spec))
        if known is not None and known[0] is spec:
            return known[1]
        encoded = msgspec.Raw(self._encoder.encode(task_spec(spec)))
        if len(self._specs) >= MAX_SPECS:
            self._specs.clear()
        self._specs[id(spec)] = (spec, encoded)
        return encoded


def swarm_spec(record: Cluster) -> Json:
    """SwarmSpec with every default shown; signing keys never are."""
    spec = record.spec
    return {
        "Name": spec.name,
        "Labels": spec.labels,
        "Orchestration": {"TaskHistoryRetentionLimit": spec.orchestration.task_history_retention_limit},
        "Raft": {
            "SnapshotInterval": spec.raft.snapshot_interval,
            "KeepOldSnapshots": spec.raft.keep_old_snapshots,
            "LogEntriesForSlowFollowers": spec.raft.log_entries_for_slow_followers,
            "ElectionTick": spec.raft.election_tick,
            "HeartbeatTick": spec.raft.heartbeat_tick,
        },
        "Dispatcher": {"HeartbeatPeriod": spec.dispatcher.heartbeat_period},
        "CAConfig": {"NodeCertExpiry": spec.ca_config.node_cert_expiry},
        "TaskDefaults": to_api(spec.task_defaults),
        "EncryptionConfig": {"AutoLockManagers": spec.encryption_config.auto_lock_managers},
    }


def cluster_info(record: Cluster) -> Json:
    """Engine API ClusterInfo, without join tokens."""
    return {
        "ID": record.id,
        **meta(record.version, record.created_at, record.updated_at),
        "Spec": swarm_spec(record),
        "TLSInfo": tls_info(record.ca_cert_pem),
        "RootRotationInProgress": False,
        "DefaultAddrPool": [*record.address_pools],
        "SubnetSize": record.subnet_size,
        "DataPathPort": record.data_path_port,
    }


@functools.lru_cache(maxsize=4)
def tls_info(ca_cert_pem: str) -> Json:
    """The CA certificate as clients show it; {} before there is one."""
    if not ca_cert_pem:
        return {}
    subject, public_key = subject_and_key(ca_cert_pem)  # it has signed itself: its subject is the issuer
    return {
        "TrustRoot": ca_cert_pem,
        "CertIssuerSubject": base64.b64encode(subject).decode(),
        "CertIssuerPublicKey": base64.b64encode(public_key).decode(),
    }
