"""What every node's kernel must have of the cluster's networks, told by the API, and what it has, told by stock tools.

Both are sets of lines, so that a difference reads as what is missing and what is left over. What other tests of the
cluster make (local networks, published ports of single containers) must be gone.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from e2e_cluster import Cluster, eventually

from swarmlet.errors import SwarmletError
from swarmlet.local.client import call

TERMINAL = frozenset({"complete", "shutdown", "failed", "rejected", "remove", "orphaned"})
UNPLACED = frozenset({"new", "pending"})
FAMILIES = ("ip", "ip6")
MESH, BALANCE = "swlmesh4", "swlbalance3"
_NODES = (1, 2, 3)


def settled(cluster: Cluster, timeout_s: float = 30) -> World:
    """Wait until every node has exactly what the cluster's state asks for; that state."""

    def same() -> World:
        world = World.read(cluster)
        wanted = world.lines()
        there = frozenset(line for number in _NODES for line in actual(cluster, number))
        differences = [*(f"missing: {line}" for line in sorted(wanted - there)),
                       *(f"left over: {line}" for line in sorted(there - wanted))]  # fmt: skip
        assert not differences, "\n".join(["nodes differ from the cluster's state:", *differences])
        return world

    return eventually(same, timeout_s, 0.2)


@dataclass(frozen=True)
class Task:
    """A task that is on a node. addresses: network id -> its addresses there, IPv4 first."""

    id: str
    service: str
    node: int
    container: str
    addresses: dict[str, list[str]]
    serving: bool


@dataclass(frozen=True)
class World:
    """The cluster's state as its API tells it. nodes: number -> address; vips: (network id, service id, address);
    ports: (protocol, port) -> (service id, target port)."""

    nodes: dict[int, str]
    networks: dict[str, dict[str, Any]]
    tasks: list[Task]
    vips: set[tuple[str, str, str]]
    ports: dict[tuple[str, int], tuple[str, int]]

    @classmethod
    def read(cls, cluster: Cluster) -> World:
        manager = cluster.host(1).manager_socket
        nodes = {node["ID"]: node for node in ask(manager, "/nodes")}
        networks = {net["Id"]: net for net in ask(manager, "/networks") if net["Driver"] == "overlay"}
        services, rows = ask(manager, "/services"), ask(manager, "/tasks")
        numbers = {ident: int(node["Description"]["Hostname"][-1]) for ident, node in nodes.items()}
        up = {ident for ident, node in nodes.items() if node["Status"]["State"] != "down"}
        ingress = {ident for ident, net in networks.items() if net["Ingress"]}
        tasks = [
            Task(
                row["ID"], row["ServiceID"], numbers[row["NodeID"]],
                row["Status"].get("ContainerStatus", {}).get("ContainerID", ""),
                {
                    place["Network"]["ID"]: [address.partition("/")[0] for address in place["Addresses"]]
                    for place in row.get("NetworksAttachments") or []
                },
                row["Status"]["State"] == "running" and row["DesiredState"] == "running" and row["NodeID"] in up,
            )
            for row in rows if row["Status"]["State"] not in TERMINAL | UNPLACED
        ]
        return cls(
            {numbers[ident]: node["Status"]["Addr"] for ident, node in nodes.items()}, networks, tasks,
            {
                (vip["NetworkID"], service["ID"], vip["Addr"].partition("/")[0])
                for service in services for vip in service["Endpoint"].get("VirtualIPs") or []
                if vip["NetworkID"] not in ingress
            },
            {
                (port["Protocol"], port["PublishedPort"]): (service["ID"], port["TargetPort"])
                for service in services for port in service["Endpoint"].get("Ports") or []
                if port["PublishMode"] == "ingress"
            },
        )

    @property
    def ingress(self) -> str:
        return next((ident for ident, net in self.networks.items() if net["Ingress"]), "")

    def lines(self) -> frozenset[str]:
        return frozenset(line for number in self.nodes for line in self._node(number))

    def _node(self, number: int) -> Iterator[str]:
        on = f"node-{number}"
        here = [task for task in self.tasks if task.node == number]
        for network_id in {network_id for task in here for network_id in task.addresses}:
            yield from self._network(number, network_id)
        for task in here:
            yield f"{on} namespace {task.container}"
            for network_id, addresses in task.addresses.items():
                yield f"{on} endpoint {task.container[:12]} {self.networks[network_id]['Name']} {' '.join(addresses)}"
            for network_id, service_id, vip in self.vips:
                if network_id in task.addresses:
                    backends = sorted(
                        address for one in self.tasks if one.service == service_id and one.serving
                        for address in one.addresses[network_id] if (":" in address) == (":" in vip)
                    )
                    yield f"{on} container {task.container[:12]} vip {vip} -> {' '.join(backends) or 'refused'}"
        for (protocol, port), (service_id, target) in self.ports.items():
            tasks = [one for one in self.tasks if one.service == service_id and self.ingress in one.addresses]
            for family in FAMILIES:
                at = [
                    (one, address) for one in tasks for address in one.addresses[self.ingress]
                    if (":" in address) == (family == "ip6")
                ]
                backends = sorted(f"{address} {target}" for one, address in at if one.serving)
                if at or not tasks:
                    yield f"{on} port {family} {protocol}/{port} -> {', '.join(backends) or 'refused'}"
                remote = [(one, address) for one, address in at if one.node != number and one.container]
                yield from (f"{on} way {address} -> node-{one.node}" for one, address in remote)

    def _network(self, number: int, network_id: str) -> Iterator[str]:
        on, bridge, vxlan = f"node-{number}", f"ov-{network_id[:12]}", f"vx-{network_id[:12]}"
        network = self.networks[network_id]
        subnets = [config["Subnet"] for config in network["IPAM"]["Config"]]
        tasks = [task for task in self.tasks if network_id in task.addresses]
        yield f"{on} link {bridge}"
        yield f"{on} link {vxlan} in {bridge}"
        yield f"{on} {bridge} has {sum(task.node == number for task in tasks)} containers"
        for family in FAMILIES:
            yield f"{on} rule {family} br {bridge}"
            yield f"{on} rule {family} same {bridge} {bridge}"
            if network["Internal"]:
                yield f"{on} rule {family} internal {bridge}"
        for subnet in subnets:
            family = "ip6" if ":" in subnet else "ip"
            yield f"{on} rule {family} hair {subnet} {subnet}"
            if not network["Internal"]:
                yield f"{on} rule {family} masq {subnet}"
        for task in tasks:
            if task.node != number:
                mac = mac_of(task.addresses[network_id][0])
                yield f"{on} forward {vxlan} {mac} -> {self.nodes[task.node]}"
                yield f"{on} forward {bridge} {mac} by {vxlan}"
                yield from (f"{on} neighbour {bridge} {address} {mac}" for address in task.addresses[network_id])


def mac_of(address: str) -> str:
    return "02:42:" + ip_address(address).packed.hex(":")


def actual(cluster: Cluster, number: int) -> Iterator[str]:
    """One node's lines."""
    on = f"node-{number}"
    links = list(_links(cluster, number))
    yield from (f"{on} {line}" for line in links)
    yield from (f"{on} {line}" for line in _rules(cluster, number))
    folder = cluster.host(number).run_dir / "netns"
    names = sorted(file.name for file in folder.iterdir())
    for name in names:
        yield f"{on} namespace {name}"
        for line in _balanced(cluster, number, name):
            yield f"{on} container {name[:12]} {line}"
    agent = cluster.host(number).agent_socket
    for network in ask(agent, "/networks"):
        if f"link ov-{network['Id'][:12]}" not in links:
            continue  # of a network that the node has no part in, its manager tells what others have
        for container, place in ask(agent, f"/networks/{network['Id']}")["Containers"].items():
            addresses = [place[key].partition("/")[0] for key in ("IPv4Address", "IPv6Address") if place[key]]
            yield f"{on} endpoint {container[:12]} {network['Name']} {' '.join(addresses)}"


def ask(socket: Path, path: str) -> Any:
    """An answer of the API; AssertionError for none, as of an agent that was killed a moment ago."""
    try:
        return call(socket, "GET", path)
    except SwarmletError as err:
        raise AssertionError(f"{path}: {err}") from err


def _links(cluster: Cluster, number: int) -> Iterator[str]:
    """Interfaces, forwarding entries and neighbours."""
    links = {link["ifname"]: link for link in json.loads(cluster.exec(number, "ip", "-j", "link"))}
    ports: defaultdict[str, int] = defaultdict(int)
    for name, link in links.items():
        if name.startswith("veth"):
            ports[link.get("master", "nothing")] += 1
        elif name.startswith("ov-"):
            yield f"link {name}"
        elif name not in ("lo", "eth0", "swl0", "ing0"):
            yield f"link {name} in {link.get('master', 'nothing')}"
    yield from (f"{bridge} has {count} containers" for bridge, count in ports.items())
    for entry in json.loads(cluster.exec(number, "bridge", "-j", "fdb", "show")):
        name, mac = entry["ifname"], entry["mac"]
        if not name.startswith("vx-") or mac == links[name]["address"]:
            continue
        yield f"forward {name} {mac} -> {entry['dst']}" if "dst" in entry else (
            f"forward {entry.get('master')} {mac} by {name}"
        )
    for entry in json.loads(cluster.exec(number, "ip", "-j", "neigh", "show", "nud", "permanent") or "[]"):
        if entry["dev"].startswith("ov-"):
            yield f"neighbour {entry['dev']} {entry['dst']} {entry['lladdr']}"


def _rules(cluster: Cluster, number: int) -> Iterator[str]:
    """Elements of the node's own tables, and the ways to remote backends of published ports."""
    sets = _sets(cluster.exec(number, "nft", "-j", "list", "ruleset"))
    for (family, table, name), elements in sets.items():
        for element in elements if table == "swl" else ():
            words = [_text(word) for word in _parts(element)]
            if not {"swl0", "172.17.0.0/16"} & set(words):  # of the local network that every node has
                yield f"rule {family} {name} {' '.join(words)}"
    for family in FAMILIES:
        ports = {tuple(_parts(element)) for element in sets.get((family, MESH, "ports"), [])}
        shares = _shares(sets, family, MESH, "any", 2)
        for protocol, port in ports | shares.keys():
            backends = sorted(" ".join(map(str, _parts(value))) for value in shares.get((protocol, port), []))
            yield f"port {family} {protocol}/{port} -> {', '.join(backends) or 'refused'}"
        version = "-6" if family == "ip6" else "-4"
        listed = cluster.exec(number, "ip", version, "-j", "route", "show", "table", "all", "proto", "83")
        for route in json.loads(listed or "[]"):
            if route["dst"] != "default":
                # The number of the node is the end of its address on the mesh.
                yield f"way {route['dst']} -> node-{int(ip_address(route['gateway'])) & 0xFF}"


def _balanced(cluster: Cluster, number: int, name: str) -> Iterator[str]:
    """Virtual addresses in a container's namespace."""
    path = cluster.host(number).run_dir / "netns" / name
    sets = _sets(cluster.exec(number, "nsenter", f"--net={path}", "nft", "-j", "list", "ruleset"))
    for family in FAMILIES:
        shares = _shares(sets, family, BALANCE, "s", 1)
        for vip in set(sets.get((family, BALANCE, "vips"), [])) | {key[0] for key in shares}:
            yield f"vip {vip} -> {' '.join(sorted(map(str, shares.get((vip,), [])))) or 'refused'}"


def _sets(listed: str) -> dict[tuple[str, str, str], list[Any]]:
    """(family, table, set or map) -> its elements."""
    return {
        (body["family"], body["table"], body["name"]): body.get("elem", [])
        for entry in json.loads(listed)["nftables"] for kind, body in entry.items() if kind in ("set", "map")
    }


def _shares(
    sets: dict[tuple[str, str, str], list[Any]], family: str, table: str, prefix: str, keys: int
) -> dict[Any, list[Any]]:
    """Key without its slot -> the different values of its slots, of all maps of slots in a table."""
    found: defaultdict[Any, list[Any]] = defaultdict(list)
    for (version, where, name), elements in sets.items():
        if version == family and where == table and re.fullmatch(rf"{prefix}\d+", name):
            for key, value in elements:
                values = found[tuple(_parts(key)[:keys])]
                if value not in values:
                    values.append(value)
    return dict(found)


def _parts(element: Any) -> list[Any]:
    return list(element["concat"]) if isinstance(element, dict) and "concat" in element else [element]


def _text(word: Any) -> str:
    """A prefix or a range as it is written."""
    if isinstance(word, dict) and "prefix" in word:
        return f"{word['prefix']['addr']}/{word['prefix']['len']}"
    return str(word)

