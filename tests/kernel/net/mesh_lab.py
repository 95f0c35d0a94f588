"""Three nodes on one LAN with a container each, and a client behind a router: the world of the routing mesh's tests.

The container's subnet is the same on all nodes, as an overlay network's is, but nothing but the mesh connects them.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from net_lab import Lab
from net_spaces import Spaces

from swarmlet.model.network import Subnet
from swarmlet_agent.net import netns
from swarmlet_agent.net.mesh.kernel import Mesh
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published
from swarmlet_agent.net.plan_rules import ruleset
from swarmlet_agent.net.records import NetworkRecord

PORT, TARGET = 8080, 80
NODES = {"n1": 1, "n2": 2, "n3": 3}
CLIENT, CLIENT6 = "198.51.100.9", "fd51::9"
SUBNETS = ("10.7.0.0/24", "fd07::/64")
_NETWORK = NetworkRecord(
    id="7" * 64, name="net", bridge="br0", subnet=SUBNETS[0], gateway="10.7.0.1",
    v6=Subnet(subnet=SUBNETS[1], gateway="fd07::1"),
)


def node_ip(number: int, version: int = 4) -> str:
    return f"192.0.2.{number}" if version == 4 else f"fd02::{number}"


def backend_ip(number: int, version: int = 4) -> str:
    return f"10.7.0.{10 + number}" if version == 4 else f"fd07::1{number}"


def backends(*numbers: int, serving: bool = True, versions: tuple[int, ...] = (4, 6)) -> tuple[Backend, ...]:
    return tuple(Backend(backend_ip(n, version), TARGET, n, serving) for n in numbers for version in versions)


def published(*numbers: int, **more: Any) -> tuple[Published, ...]:
    return tuple(Published(protocol, PORT, backends(*numbers), **more) for protocol in ("tcp", "udp"))


class MeshLab:
    """Nodes n1 to n3, containers c1 to c3 (serving on port 80 as "c1" …), the outside client `x`."""

    def __init__(self, lab: Lab, stack: AsyncExitStack) -> None:
        self.spaces = Spaces(lab.root / "spaces")
        stack.callback(netns.remove_folder, self.spaces.folder)
        self._stack = stack
        self.meshes: dict[str, Mesh] = {}

    async def build(self, *ports: Published) -> None:
        spaces = self.spaces
        spaces.add("lan")
        spaces.ip("lan", "link add lan type bridge", "link set lan up", "addr add 192.0.2.254/24 dev lan",
                  "addr add fd02::254/64 dev lan nodad")
        self._forward("lan")
        for name, number in NODES.items():
            spaces.host_on_bridge("lan", "lan", name, f"{node_ip(number)}/24", f"{node_ip(number, 6)}/64",
                                  via=("192.0.2.254", "fd02::254"))
            self._forward(name)
            spaces.ip(name, "link add br0 type bridge", "link set br0 up", "addr add 10.7.0.1/24 dev br0",
                      "addr add fd07::1/64 dev br0 nodad")
            self._write(name, "net/ipv4/conf/br0/route_localnet", "1")
            # The node's own rules for its networks: the way out, and that nobody else gets in.
            spaces.command(name, "nft", "-f", "-", text=ruleset([_NETWORK], []))
            container = f"c{number}"
            spaces.host_on_bridge(name, "br0", container, f"{backend_ip(number)}/24", f"{backend_ip(number, 6)}/64",
                                  via=("10.7.0.1", "fd07::1"))
            await self._stack.enter_async_context(spaces.serve(container, TARGET, container))
            self.start_agent(name)
        spaces.add("x")
        spaces.wire("lan", "vx", "x", "eth0")
        spaces.ip("lan", "link set vx up", "addr add 198.51.100.1/24 dev vx", "addr add fd51::1/64 dev vx nodad")
        spaces.ip("x", f"addr add {CLIENT}/24 dev eth0", f"addr add {CLIENT6}/64 dev eth0 nodad", "link set eth0 up",
                  "route add default via 198.51.100.1", "route add default via fd51::1")
        self.ensure(*ports)

    def start_agent(self, name: str) -> None:
        """A new agent's mesh, knowing nothing; the one before is gone without a word."""
        if (old := self.meshes.get(name)) is not None:
            old.close()
        self.meshes[name] = self.spaces.inside(name, Mesh)
        self._stack.callback(self.meshes[name].close)

    def state(self, name: str, *ports: Published) -> MeshState:
        nodes = {other: MeshNode(number, node_ip(number), (node_ip(number, 6),)) for other, number in NODES.items()}
        own = nodes.pop(name)
        return MeshState(own, 1450, tuple(nodes.values()), ports, SUBNETS)

    def ensure(self, *ports: Published, only: tuple[str, ...] = tuple(NODES), **more: Any) -> None:
        for name in only:
            state = replace(self.state(name, *ports), **more)
            self.spaces.inside(name, lambda name=name, state=state: self.meshes[name].ensure(state))  # type: ignore[misc]

    def picture(self, name: str) -> dict[str, Any]:
        """Everything of a node's network that the mesh might touch, as the stock tools tell it."""
        spaces = self.spaces
        links = [[link[key] for key in ("ifname", "ifindex", "mtu", "address")] for link in spaces.ask_ip(name, "link")]
        lines: dict[str, Any] = {"links": links}
        for key, words in (
            ("rules", "ip rule"), ("rules6", "ip -6 rule"), ("routes", "ip route show table all"),
            ("routes6", "ip -6 route show table all"), ("neighbours", "ip neigh show nud permanent"),
            ("neighbours6", "ip -6 neigh show nud permanent"),
        ):
            lines[key] = sorted(line.strip() for line in spaces.command(name, *words.split()).splitlines())
        if any(link[0] == "ing0" for link in links):
            lines["fdb"] = sorted(spaces.command(name, "bridge", "fdb", "show", "dev", "ing0").splitlines())
        found = json.loads(spaces.command(name, "nft", "-j", "list", "ruleset"))["nftables"]
        lines["nft"] = sorted(json.dumps(_without_handles(entry)) for entry in found if "metainfo" not in entry)
        return lines

    def _forward(self, name: str) -> None:
        self._write(name, "net/ipv4/ip_forward", "1")
        self._write(name, "net/ipv6/conf/all/forwarding", "1")

    def _write(self, name: str, switch: str, value: str) -> None:
        self.spaces.inside(name, lambda: netns.write_sysctl(switch, value))


def _without_handles(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _without_handles(value) for key, value in entry.items() if key != "handle"}
    if isinstance(entry, list):
        return sorted((_without_handles(value) for value in entry), key=json.dumps)
    return entry
