"""200 random steps of services and published ports, compared with what the stock tools say the kernel has."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from typing import Any

import pytest
from mesh_lab import SUBNETS, MeshLab
from net_lab import Lab, in_own_network
from net_spaces import Spaces

from swarmlet_agent.net import netns
from swarmlet_agent.net.balance.kernel import Balancers
from swarmlet_agent.net.balance.plan import TABLE as BALANCE
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published
from swarmlet_agent.net.mesh.rules import TABLE

pytestmark = pytest.mark.kernel
STEPS, LOOK_EVERY = 200, 10


def seeded() -> random.Random:
    seed = time.time_ns()
    print(f"seed {seed}")  # shown when the test fails
    return random.Random(seed)


def elements(spaces: Spaces, where: str, table: str) -> dict[tuple[str, str], list[Any]]:
    """(family, set or map) -> its elements, of one table in both families."""
    found = json.loads(spaces.command(where, "nft", "-j", "list", "ruleset"))["nftables"]
    return {
        (body["family"], body["name"]): body.get("elem", [])
        for entry in found for kind, body in entry.items() if kind in ("set", "map") and body["table"] == table
    }


def chosen(found: dict[tuple[str, str], list[Any]], keys: int) -> dict[tuple[Any, ...], Counter[Any]]:
    """What the slot maps have: key without its slot -> how often each value is there."""
    shares: defaultdict[tuple[Any, ...], Counter[Any]] = defaultdict(Counter)
    for (family, name), entries in found.items():
        if name in ("vips", "ports", "oneports", "peer", "nodes", "containers"):
            continue
        for key, value in entries:
            parts = key["concat"] if isinstance(key, dict) else [key]
            shares[(family, *parts[:keys])][json.dumps(value)] += 1
    return dict(shares)


@in_own_network
async def test_vips_are_what_they_should_be_after_any_steps(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces = Spaces(lab.root / "spaces")
        stack.callback(netns.remove_folder, spaces.folder)
        spaces.add("c")
        balancers = Balancers(spaces.folder)
        chance, wanted = seeded(), dict[str, tuple[str, ...]]()
        balancers.apply("c", {"10.0.0.1": ("10.1.0.1",), "fd00::1": ("fd01::1",)})
        balancers.apply("c", {})
        for step in range(1, STEPS + 1):
            prefix, other = chance.choice((("10.0.0.", "10.1.0."), ("fd00::", "fd01::")))
            vip = f"{prefix}{chance.randint(1, 9)}"
            places = chance.sample(range(1, 90), chance.choice((0, 1, 2, 3, 5, 7, 12, 14, 30)))
            if chance.random() < 0.2:
                wanted.pop(vip, None)
                balancers.change("c", {vip: None})
            elif chance.random() < 0.5:
                wanted[vip] = tuple(f"{other}{place}" for place in places)
                balancers.change("c", {vip: wanted[vip]})
            else:
                wanted[vip] = tuple(f"{other}{place}" for place in places)
                balancers.apply("c", wanted)
            if chance.random() < 0.05:  # the agent is killed, and another comes
                balancers.close()
                balancers = Balancers(spaces.folder)
                balancers.apply("c", wanted)
            if step % LOOK_EVERY == 0:
                found = elements(spaces, "c", BALANCE)
                assert {*found["ip", "vips"], *found["ip6", "vips"]} == set(wanted), step
                shares = chosen(found, 1)
                assert {key[1]: {json.loads(one) for one in values} for key, values in shares.items()} == {
                    vip: set(backends) for vip, backends in wanted.items() if backends
                }, step
                assert all(max(values.values()) - min(values.values()) <= 1 for values in shares.values())
        balancers.close()


@dataclass
class Model:
    """The cluster as node 1 is told of it. A backend's node follows from its address."""

    peers: set[int] = field(default_factory=set)
    ports: dict[tuple[str, int], Published] = field(default_factory=dict)

    def step(self, chance: random.Random) -> None:
        match chance.randint(0, 5):
            case 0:
                self.peers ^= {chance.randint(2, 9)}
            case 1:
                self.ports.pop((chance.choice(("tcp", "udp")), chance.randint(1, 5)), None)
            case _:
                key = (chance.choice(("tcp", "udp")), chance.randint(1, 5))
                backends = tuple(
                    Backend(f"10.7.0.{place}" if version == 4 else f"fd07::{place}", 80, place % 9 + 1,
                            serving=chance.random() < 0.8)
                    for place in chance.sample(range(10, 90), chance.choice((0, 1, 2, 3, 5, 9, 14)))
                    for version in chance.choice(((4,), (6,), (4, 6)))
                )
                self.ports[key] = Published(*key, backends, local_only=chance.random() < 0.2)

    def state(self) -> MeshState:
        peers = tuple(MeshNode(number, f"192.0.2.{number}") for number in sorted(self.peers))
        return MeshState(MeshNode(1, "192.0.2.1"), 1450, peers, tuple(self.ports.values()), SUBNETS)

    def ways(self) -> set[tuple[str, str]]:
        """Routes to remote backends: (backend, the node's mesh address)."""
        return {
            (one.address, f"fd53:574c:6d65::{one.node}" if ":" in one.address else f"100.64.0.{one.node}")
            for port in self.ports.values() if not port.local_only for one in port.backends if one.node in self.peers
        }

    def served(self) -> dict[tuple[str, str, int], set[str]]:
        """(table's family, protocol, port) -> serving backends, in the families the port is served in."""
        found = {}
        for (protocol, number), port in self.ports.items():
            for family, mark in (("ip", False), ("ip6", True)):
                own = [one for one in port.backends if (":" in one.address) == mark]
                if own or not port.backends:
                    found[family, protocol, number] = {
                        one.address for one in own if one.serving and (not port.local_only or one.node == 1)
                    }
        return found


@in_own_network
async def test_a_mesh_node_has_what_it_should_have_and_no_more_after_any_steps(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build()
        spaces, chance, model = mesh.spaces, seeded(), Model()
        for step in range(1, STEPS + 1):
            model.step(chance)
            if chance.random() < 0.05:  # the agent is killed, and another comes
                mesh.start_agent("n1")
            spaces.inside("n1", lambda: mesh.meshes["n1"].ensure(model.state()))
            if step % LOOK_EVERY == 0:
                compare(spaces, model, step)
        spaces.inside("n1", mesh.meshes["n1"].remove)
        assert not [rule for rule in rules(spaces) if 1500 <= rule["priority"] <= 1503]
        assert not elements(spaces, "n1", TABLE)
        assert "ing0" not in [link["ifname"] for link in spaces.ask_ip("n1", "link")]


def rules(spaces: Spaces) -> list[dict[str, Any]]:
    return [*spaces.ask_ip("n1", "rule"), *spaces.ask_ip("n1", "-6", "rule")]


def compare(spaces: Spaces, model: Model, step: int) -> None:
    routes = [
        (route["dst"], route["gateway"])
        for family in ("-4", "-6") for route in spaces.ask_ip("n1", family, "route", "show", "table", "all")
        if route.get("dev") == "ing0" and "gateway" in route
    ]
    nodes = [address for n in model.peers for address in (f"100.64.0.{n}", f"fd53:574c:6d65::{n}")]
    expected = model.ways() | {("default", node) for node in nodes}
    assert sorted(routes) == sorted(expected), (step, expected.symmetric_difference(routes))
    neighbours = spaces.ask_ip("n1", "neigh", "show", "nud", "permanent", "dev", "ing0")
    assert sorted(entry["dst"] for entry in neighbours) == sorted(nodes), step
    forward = spaces.command("n1", "bridge", "fdb", "show", "dev", "ing0").splitlines()
    places = sorted(line.split("dst ")[1].split()[0] for line in forward if "dst " in line)
    assert places == sorted(f"192.0.2.{number}" for number in model.peers), step
    ours = Counter(rule["priority"] for rule in rules(spaces) if 1500 <= rule["priority"] <= 1503)
    assert ours == Counter({1500: 2, 1501: 2, 1502: 2 * len(model.peers), 1503: 2}), step
    found, served = elements(spaces, "n1", TABLE), model.served()
    for family in ("ip", "ip6"):
        ports = {(family, *entry["concat"]) for entry in found[family, "ports"]}
        assert ports == {key for key in served if key[0] == family}, step
        assert len(found[family, "peer"]) == len(model.peers), step
    shares = {
        key: {json.loads(one)["concat"][0] for one in values} for key, values in chosen(found, 2).items()
    }
    assert shares == {key: backends for key, backends in served.items() if backends}, step


@in_own_network
async def test_any_subnets_of_containers_are_in_the_set_at_once(lab: Lab) -> None:
    """Side by side, apart, growing and shrinking: no change of them keeps published ports from being served."""
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build()
        spaces, chance = mesh.spaces, seeded()
        for step in range(60):
            parts = chance.sample(range(8), chance.randint(0, 6))
            subnets = (*(f"10.0.{16 * part}.0/20" for part in parts), *(f"fd07:0:0:{part}::/64" for part in parts))
            state = MeshState(MeshNode(1, "192.0.2.1"), 1450, (), (Published("tcp", 80 + step),), subnets)
            spaces.inside("n1", lambda state=state: mesh.meshes["n1"].ensure(state))  # type: ignore[misc]
            found = elements(spaces, "n1", TABLE)
            for family, version in (("ip", 4), ("ip6", 6)):
                wanted = {network for text in subnets if (network := ip_network(text)).version == version}
                listed = {network for entry in found[family, "containers"] for network in networks_of(entry)}
                assert set(collapse_addresses(wanted)) == set(collapse_addresses(listed)), (step, parts)


def networks_of(entry: Any) -> list[Any]:
    """Of an interval as nft lists it: a prefix, or a range of addresses."""
    if "range" in entry:
        return list(summarize_address_range(*(ip_address(end) for end in entry["range"])))
    return [ip_network(f"{entry['prefix']['addr']}/{entry['prefix']['len']}")]
