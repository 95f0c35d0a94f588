"""Where a cluster on one machine keeps its things, and how they are named. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from swarmlet.config import EtcdSettings
from swarmlet.errors import InvalidArgument

DATA_ROOT = Path("/var/lib/swarmlet-local")
RUN_ROOT = Path("/run/swarmlet-local")
NETNS_ROOT = Path("/run/netns")
CGROUP_ROOT = "/swarmlet-local"
MAX_NODES = 200
EMBEDDED_ETCD = EtcdSettings()


@dataclass(frozen=True, slots=True)
class HostLayout:
    """One node: a network and a UTS namespace, folders, a cgroup, an address."""

    cluster: str
    name: str
    index: int  # from 1
    subnet: int

    @property
    def data_dir(self) -> Path:
        return DATA_ROOT / self.cluster / self.name

    @property
    def run_dir(self) -> Path:
        return RUN_ROOT / self.cluster / self.name

    @property
    def agent_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def manager_socket(self) -> Path:
        return self.run_dir / "manager.sock"

    @property
    def netns(self) -> Path:
        return NETNS_ROOT / f"swl-{self.cluster}-{self.name}"

    @property
    def utsns(self) -> Path:
        return self.run_dir / "uts"

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_ROOT}/{self.cluster}/{self.name}"

    @property
    def address(self) -> str:
        return f"10.213.{self.subnet}.{self.index}"

    @property
    def address6(self) -> str:
        """Where its services' ports answer over IPv6; the nodes themselves speak IPv4."""
        return f"{prefix6(self.subnet)}{self.index:x}"

    @property
    def link(self) -> str:
        """The bridge's end of the node's cable; interface names have at most 15 characters."""
        return f"swl{_digest(self.cluster)}n{self.index}"

    @property
    def config_file(self) -> Path:
        return self.data_dir / "agent.toml"

    @property
    def log_file(self) -> Path:
        return self.data_dir / "agent.log"


def prefix6(subnet: int) -> str:
    """The unique local /64 beside 10.213.<subnet>.0/24."""
    return f"fd53:574c:6e6f:{subnet:x}::"


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """One cluster on this machine: a bridge, a subnet of 10.213.0.0/16, and its nodes."""

    name: str
    subnet: int  # third octet
    nodes: tuple[HostLayout, ...]
    etcd: EtcdSettings = EMBEDDED_ETCD  # without endpoints the first node embeds one
    manager_count: int = 1  # the first so many nodes

    @property
    def managers(self) -> tuple[HostLayout, ...]:
        return self.nodes[: self.manager_count]

    @property
    def data_dir(self) -> Path:
        return DATA_ROOT / self.name

    @property
    def record(self) -> Path:
        """What the cluster is; written before anything is made, removed after all of it is gone."""
        return DATA_ROOT / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def bridge(self) -> str:
        return f"swl{_digest(self.name)}"

    @property
    def gateway(self) -> str:
        return f"10.213.{self.subnet}.254"

    @property
    def gateway6(self) -> str:
        return f"{prefix6(self.subnet)}fffe"

    @property
    def cidr(self) -> str:
        return f"10.213.{self.subnet}.0/24"

    @property
    def nft_table(self) -> str:
        return f"swarmlet_local_{self.name.replace('-', '_')}"

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_ROOT}/{self.name}"

    def node(self, ref: str) -> HostLayout:
        """By name ("node-2") or number ("2"). InvalidArgument lists what there is."""
        for node in self.nodes:
            if ref in (node.name, str(node.index)):
                return node
        raise InvalidArgument(f"no node {ref!r}; there are {', '.join(node.name for node in self.nodes)}")


def plan_cluster(
    name: str, nodes: int, subnet: int, etcd: EtcdSettings = EMBEDDED_ETCD, managers: int = 1
) -> ClusterLayout:
    """The layout of a cluster. InvalidArgument for a bad name or number of nodes or managers, or bad etcd settings."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise InvalidArgument(
            f"invalid cluster name {name!r}: use lower case letters, digits and dashes, at most 31, no dash first"
        )
    if not 1 <= nodes <= MAX_NODES:
        raise InvalidArgument(f"invalid number of nodes {nodes}: it must be from 1 to {MAX_NODES}")
    if not 1 <= managers <= nodes:
        raise InvalidArgument(f"invalid number of managers {managers}: there are {nodes} nodes")
    if managers > 1 and not etcd.endpoints:
        raise InvalidArgument("more than one manager needs an etcd of yours (--etcd): the embedded one has one member")
    _check_etcd(etcd)
    hosts = tuple(HostLayout(name, f"node-{index}", index, subnet) for index in range(1, nodes + 1))
    return ClusterLayout(name, subnet, hosts, etcd, managers)


def agent_config(cluster: ClusterLayout, host: HostLayout) -> str:
    """The text of a node's agent.toml."""
    lines = [
        "# Written by swarmlet up.",
        f"data_dir = {_quoted(f'{host.data_dir}/data')}",
        f"run_dir = {_quoted(str(host.run_dir))}",
        f"hostname = {_quoted(host.name)}",
        f"advertise_addr = {_quoted(host.address)}",
        f"cgroup_parent = {_quoted(host.cgroup)}",
        f'insecure_registries = ["127.0.0.0/8", {_quoted(cluster.cidr)}]',
    ]
    if cluster.etcd.endpoints:
        lines += ["", "[etcd]", f"endpoints = [{', '.join(map(_quoted, cluster.etcd.endpoints))}]"]
        files = (("ca", cluster.etcd.ca), ("cert", cluster.etcd.cert), ("key", cluster.etcd.key))
        lines += [f"{name} = {_quoted(file)}" for name, file in files if file]
    return "\n".join(lines) + "\n"


def preferred_subnet(name: str) -> int:
    """Where to start looking for a free third octet: the same for the same name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 250


def _check_etcd(etcd: EtcdSettings) -> None:
    files = (etcd.ca, etcd.cert, etcd.key)
    for endpoint in etcd.endpoints:
        if not re.fullmatch(r"https?://[^/\s]+", endpoint):
            raise InvalidArgument(f"invalid etcd endpoint {endpoint!r}: use http[s]://host:port")
        if endpoint.startswith("https:") and not all(files):
            raise InvalidArgument("https endpoints of etcd need --etcd-ca, --etcd-cert and --etcd-key")
    if any(files) and not etcd.endpoints:
        raise InvalidArgument("--etcd-ca, --etcd-cert and --etcd-key go with --etcd")


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:5]
