"""A whole cluster on this machine: up, down, and what can be done to its hosts.

Starting is recovering: `up` looks at every step first and does only what is missing, so a second one is quick,
and one that was interrupted is finished by the next. What the cluster is (name, nodes, subnet) stands in
`NAME.json` beside its data folder, written before anything is made and removed last, so that `down` always knows what
to remove.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.config import EtcdSettings
from swarmlet.errors import Conflict, InvalidArgument, NotFound, SwarmletError
from swarmlet.local import hosts
from swarmlet.local.client import ApiError, call, wait_until
from swarmlet.local.layout import (
    CGROUP_ROOT,
    DATA_ROOT,
    EMBEDDED_ETCD,
    RUN_ROOT,
    ClusterLayout,
    HostLayout,
    agent_config,
    plan_cluster,
    preferred_subnet,
)
from swarmlet.local.tracked import forget_connections

DEFAULT_NAME = "default"
DEFAULT_NODES = 3
#: A cold start on a busy two-core machine takes some seconds; this is for one that swaps.
START_TIMEOUT_S = 60.0

Report = Callable[[str], None]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `NAME.json`."""

    name: str
    nodes: int
    subnet: int
    etcd: EtcdSettings = EtcdSettings()
    managers: int = 1
    going: bool = False  # its removal has begun: what is left of it can only be removed


def find(name: str) -> ClusterLayout:
    """The layout of an existing cluster. NotFound says how to make it; InvalidArgument for a bad name."""
    saved = _read(name)
    return plan_cluster(saved.name, saved.nodes, saved.subnet, saved.etcd, saved.managers)


def _read(name: str) -> _Record:
    try:
        return msgspec.json.decode(plan_cluster(name, 1, 0).record.read_bytes(), type=_Record)
    except FileNotFoundError as err:
        message = f"there is no cluster {name!r} on this machine: start it with swarmlet up"
        raise NotFound("cluster", name, message) from err


def _write(cluster: ClusterLayout, *, going: bool = False) -> None:
    """Write it down; whoever is interrupted leaves the old record or the new one."""
    record = _Record(
        name=cluster.name, nodes=len(cluster.nodes), subnet=cluster.subnet, etcd=cluster.etcd,
        managers=cluster.manager_count, going=going,
    )
    DATA_ROOT.mkdir(parents=True, exist_ok=True)
    draft = cluster.record.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(record))
    draft.replace(cluster.record)


def all_names() -> list[str]:
    """Names of the clusters on this machine."""
    return sorted(file.stem for file in DATA_ROOT.glob("*.json"))


@contextlib.contextmanager
def changing(name: str) -> Iterator[None]:
    """Around `up` and `down`. Conflict if another command is at it already.

    The lock is a name in the kernel (unix(7), abstract sockets): it goes with the command, however that ends.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            lock.bind(f"\0swarmlet-local/{name}")
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise
            raise Conflict(f"cluster {name!r} is being changed by another command: try again when it is done") from err
        yield


def up(
    name: str, nodes: int | None, report: Report, etcd: EtcdSettings = EMBEDDED_ETCD, managers: int | None = None
) -> ClusterLayout:
    """Make the cluster complete: hosts, agents and membership. nodes None: as many as it has, or DEFAULT_NODES;
    managers None: as many as it has, or one."""
    if name in all_names() and _read(name).going:
        report(f"finishing the removal of the old cluster {name!r}")
        down(name)
    cluster = _plan(name, nodes, etcd, managers)
    cluster.data_dir.mkdir(exist_ok=True)
    cluster.data_dir.chmod(0o711)
    hosts.ensure_bridge(cluster)
    for host in cluster.nodes:
        hosts.ensure_host(cluster, host)
        host.config_file.write_text(agent_config(cluster, host))
    for host in cluster.nodes:
        hosts.start_supervisor(host, agent_command())
    report(f"{len(cluster.nodes)} hosts at {cluster.nodes[0].address} to {cluster.nodes[-1].address}")
    for host in cluster.nodes:
        wait_for_agent(host)
    _form_cluster(cluster)
    for host in cluster.managers:
        wait_until(f"{host.name}'s manager answers", functools.partial(_answers, host), START_TIMEOUT_S)
    wait_for_ready(cluster, cluster.nodes)
    report("all nodes are ready")
    return cluster


def down(name: str) -> None:
    """Remove every process, mount, namespace, cgroup, link and file of the cluster."""
    cluster = find(name)
    _write(cluster, going=True)
    hosts.kill_cluster(cluster)
    hosts.remove_mounts_below(cluster.data_dir, cluster.run_dir)
    for host in cluster.nodes:
        hosts.remove_host_network(host)
    hosts.remove_bridge(cluster)
    forget_connections(cluster.cidr)
    hosts.remove_cgroups(cluster.cgroup)
    for folder in (cluster.run_dir, cluster.data_dir):
        if folder.exists():
            shutil.rmtree(folder)
    # Its record goes last: as long as it is there, the next `down` or `up` goes on where this one was cut off.
    cluster.record.unlink()
    for root in (DATA_ROOT, RUN_ROOT):
        with contextlib.suppress(OSError):  # other clusters are in it
            root.rmdir()
    if not all_names():
        hosts.remove_cgroups(CGROUP_ROOT)


def kill(cluster: ClusterLayout, host: HostLayout) -> None:
    """As if its power were cut: every process dies at once, mounts and interfaces of its containers with them."""
    hosts.kill_host(host)
    hosts.remove_mounts_below(host.data_dir, host.run_dir)
    hosts.remove_host_network(host)
    hosts.remove_cgroups(host.cgroup)
    shutil.rmtree(host.run_dir, ignore_errors=True)  # /run is memory on a real host


def start(cluster: ClusterLayout, host: HostLayout) -> None:
    """Boot a killed host again. It keeps its disk, its name and its address."""
    hosts.ensure_host(cluster, host)
    hosts.start_supervisor(host, agent_command())
    wait_for_agent(host)


def agent_command() -> str:
    """The agent beside this very installation."""
    return str(Path(sys.executable).with_name("swarmlet-agent"))


def wait_for_agent(host: HostLayout) -> None:
    """Until the node's engine answers. The error names its log."""
    try:
        wait_until("the agent answers", lambda: call(host.agent_socket, "GET", "/_ping"), START_TIMEOUT_S)
    except SwarmletError as err:
        raise type(err)(f"{host.name}: {err}; its log is {host.log_file}") from err


def wait_for_ready(cluster: ClusterLayout, wanted: Iterable[HostLayout]) -> None:
    """Until a manager sees these nodes ready."""
    names = {host.name for host in wanted}

    def ready() -> bool:
        nodes = ask_managers(cluster, "/nodes")
        return names <= {node["Description"]["Hostname"] for node in nodes if node["Status"]["State"] == "ready"}

    wait_until("all nodes are ready", ready, START_TIMEOUT_S)


def ask_managers(cluster: ClusterLayout, url: str, timeout: float = 60) -> Any:
    """The answer of the first manager that gives one. Unavailable, ApiError: of the last."""
    *others, last = cluster.managers
    for host in others:
        with contextlib.suppress(SwarmletError):
            return call(host.manager_socket, "GET", url, timeout=timeout)
    return call(last.manager_socket, "GET", url, timeout=timeout)


def status(cluster: ClusterLayout) -> list[dict[str, Any]]:
    """One row per host: name, address, whether its agent runs, processes, and the cluster's view of the node."""
    try:
        nodes = ask_managers(cluster, "/nodes", timeout=5)
    except SwarmletError:  # no manager is a state worth showing, not an error
        nodes = []
    states = {node["Description"].get("Hostname"): node["Status"]["State"] for node in nodes}
    return [
        {
            "name": host.name,
            "address": host.address,
            "running": hosts.supervisor_pid(host) is not None,
            "processes": len(hosts.host_pids(host)),
            "node": states.get(host.name, "?"),
        }
        for host in cluster.nodes
    ]


def _plan(name: str, nodes: int | None, etcd: EtcdSettings, managers: int | None) -> ClusterLayout:
    if name in all_names():
        cluster = find(name)
        remove = f"remove it first (swarmlet down --name {name})"
        if nodes is not None and len(cluster.nodes) != nodes:
            count = len(cluster.nodes)
            raise InvalidArgument(f"cluster {name!r} has {count} {'node' if count == 1 else 'nodes'} already: {remove}")
        if managers not in (None, cluster.manager_count):
            has = f"{cluster.manager_count} {'manager' if cluster.manager_count == 1 else 'managers'}"
            raise InvalidArgument(f"cluster {name!r} has {has} already: {remove}")
        if etcd not in (EMBEDDED_ETCD, cluster.etcd):
            kept = ", ".join(cluster.etcd.endpoints) or "an etcd of its own"
            raise InvalidArgument(f"cluster {name!r} keeps its state in {kept} already: {remove}")
        return cluster
    nodes, managers = DEFAULT_NODES if nodes is None else nodes, 1 if managers is None else managers
    plan_cluster(name, nodes, 0, etcd, managers)
    for file in filter(None, (etcd.ca, etcd.cert, etcd.key)):
        if not Path(file).is_file():
            raise InvalidArgument(f"there is no file {file}")
    used = hosts.used_subnets() | {find(other).subnet for other in all_names()}
    first = preferred_subnet(name)
    subnet = next(octet for octet in ((first + step) % 250 for step in range(250)) if octet not in used)
    cluster = plan_cluster(name, nodes, subnet, etcd, managers)
    _write(cluster)
    return cluster


def _form_cluster(cluster: ClusterLayout) -> None:
    """`docker swarm init` on the first node and `docker swarm join` on the others, where that has not been done."""
    first, *others = cluster.nodes
    _unless_member(first, "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": first.address})
    tokens: dict[str, str] = wait_until(
        "a manager answers", lambda: ask_managers(cluster, "/swarm")["JoinTokens"], START_TIMEOUT_S
    )
    for host in others:
        token = tokens["Manager" if host in cluster.managers else "Worker"]
        request = {"RemoteAddrs": [f"{manager.address}:2377" for manager in cluster.managers], "JoinToken": token}
        _unless_member(host, "/swarm/join", request | {"AdvertiseAddr": host.address})


def _answers(host: HostLayout) -> bool:
    return bool(call(host.manager_socket, "GET", "/_ping") == "OK")


def _unless_member(host: HostLayout, url: str, request: dict[str, Any]) -> None:
    """An earlier command's request may still be on its way: then it is waited for."""

    def state() -> str:
        swarm = call(host.agent_socket, "GET", "/info")["Swarm"]
        if swarm["LocalNodeState"] == "error":
            raise InvalidArgument(
                f"{host.name}: {swarm['Error']}: let it leave first (docker swarm leave --force, on that node)"
            )
        return str(swarm["LocalNodeState"])

    if (found := state()) == "inactive":
        try:
            call(host.agent_socket, "POST", url, request, timeout=START_TIMEOUT_S)
        except ApiError as err:
            if (found := state()) not in ("pending", "active"):
                raise InvalidArgument(f"{host.name}: {err}; its log is {host.log_file}") from err
    if found == "pending":
        wait_until(f"{host.name} is a member", lambda: state() == "active", START_TIMEOUT_S)
