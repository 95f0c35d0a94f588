"""The cluster's networks on a node: whatever was told in whatever pieces, the kernel and the names have it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess

import pytest
from net_lab import Lab, in_own_network

from swarmlet.model.ids import new_cluster_id
from swarmlet.wire.networking import EndpointInfo, NetworkInfo, Networking, ServiceInfo

pytestmark = pytest.mark.kernel
NETWORK, HERE = new_cluster_id(), "192.0.2.1"
INFO = NetworkInfo(
    id=NETWORK, name="app", subnet="10.9.0.0/24", gateway="10.9.0.1", subnet6="fd09::/64", gateway6="fd09::1",
    vni=4097, mtu=1450,
)  # fmt: skip
NODES = (HERE, "192.0.2.2", "192.0.2.3")
STEPS = 80


class Told:
    """What a manager knows; each change as the increment it would send."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.endpoints: dict[str, EndpointInfo] = {}
        self.services: dict[str, ServiceInfo] = {}

    def full(self) -> Networking:
        return Networking(
            full=True, networks=(INFO,), endpoints=tuple(self.endpoints.values()),
            services=tuple(self.services.values()),
        )

    def change(self) -> Networking:
        ident = f"t{self.rng.randrange(8)}"
        service = f"s{self.rng.randrange(3)}"
        match self.rng.randrange(6):
            case 0 if ident in self.endpoints:
                del self.endpoints[ident]
                return Networking(gone_endpoints=((NETWORK, ident),))
            case 1 if service in self.services:
                del self.services[service]
                return Networking(gone_services=((NETWORK, service),))
            case 2:
                last = 200 + int(service[1:]) if self.rng.randrange(4) else 0
                self.services[service] = ServiceInfo(
                    network_id=NETWORK, id=service, name=f"web-{service}",
                    vip=f"10.9.0.{last}" if last else "", vip6=f"fd09::{last}" if last else "",
                )
                return Networking(services=(self.services[service],))
            case _:
                last = 10 + int(ident[1:])
                node = self.rng.choice(NODES)
                self.endpoints[ident] = EndpointInfo(
                    network_id=NETWORK, id=ident, address=f"10.9.0.{last}", address6=f"fd09::{last}", node_id=node,
                    node_addr=node, names=(f"name-{ident}",), service_id=service, slot=1 + int(ident[1:]),
                    serving=bool(self.rng.randrange(2)),
                )
                return Networking(endpoints=(self.endpoints[ident],))


def check(lab: Lab, told: Told) -> None:
    """The forwarding and neighbour entries, the virtual addresses and the names are those of what was told."""
    remote = {one.address: one for one in told.endpoints.values() if one.node_addr != HERE}
    assert forwarded() == {_mac(one): one.node_addr for one in remote.values()}
    assert neighbours() == {address: _mac(one) for one in remote.values() for address in one.addresses}
    ground = lab.networks._ground
    assert set(ground.granted[NETWORK]) == {
        address for one in told.endpoints.values() if one.node_addr == HERE for address in one.addresses
    }
    serving = {
        ident: [one for one in told.endpoints.values() if one.service_id == ident and one.serving]
        for ident in told.services
    }
    assert ground.vips.get(NETWORK, {}) == {
        vip: tuple(sorted(a for one in serving[ident] for a in one.addresses if (":" in a) == (":" in vip)))
        for ident, service in told.services.items() for vip in service.vips
    }
    for ident in ("s0", "s1", "s2"):
        found = ground.names.find(f"tasks.web-{ident}", [NETWORK], {})
        assert (found is None) == (ident not in told.services)
        if found is not None:
            assert set(found.addresses) == {address for one in serving[ident] for address in one.addresses}
    for number in range(8):
        found = ground.names.find(f"name-t{number}", [NETWORK], {})
        assert (found is None) == (f"t{number}" not in told.endpoints)


def _mac(endpoint: EndpointInfo) -> str:
    return "02:42:0a:09:00:" + f"{int(endpoint.address.rpartition('.')[2]):02x}"


def ask(*words: str) -> list[dict[str, object]]:
    said = subprocess.run([*words], check=True, capture_output=True, text=True).stdout
    return [entry for entry in json.loads(said or "[]") if entry]


def forwarded() -> dict[object, object]:
    entries = ask("bridge", "-j", "fdb", "show", "dev", f"vx-{NETWORK[:12]}")
    return {entry["mac"]: entry["dst"] for entry in entries if "dst" in entry}


def neighbours() -> dict[object, object]:
    entries = ask("ip", "-j", "neigh", "show", "dev", f"ov-{NETWORK[:12]}", "nud", "permanent")
    return {entry["dst"]: entry["lladdr"] for entry in entries if not str(entry["dst"]).startswith(("ff", "224"))}


@in_own_network
async def test_increments_add_up_whatever_is_cut_short_between_them(lab: Lab) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    rng = random.Random(seed)
    cluster, told = lab.networks.cluster, Told(rng)
    await cluster.update(told.full(), node_id="here", underlay=HERE)
    for _ in range(STEPS):
        news = told.change()
        update = asyncio.create_task(cluster.update(news, node_id="here", underlay=HERE))
        if rng.randrange(4) == 0:
            # The session ends somewhere in it; the next one begins with everything.
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            update.cancel()
            await asyncio.gather(update, return_exceptions=True)
            await cluster.update(told.full(), node_id="here", underlay=HERE)
        else:
            await update
        check(lab, told)


@in_own_network
async def test_an_agent_that_comes_back_has_what_was_told_last(lab: Lab) -> None:
    told = Told(random.Random(7))
    await lab.networks.cluster.update(told.full(), node_id="here", underlay=HERE)
    for _ in range(40):
        await lab.networks.cluster.update(told.change(), node_id="here", underlay=HERE)
    await lab.restart()
    check(lab, told)
    # Leaving takes all of it away, from the journal too.
    await lab.networks.cluster.update(Networking(full=True), node_id="here", underlay=HERE)
    ground = lab.networks._ground
    assert ground.journal.items("overlay_parts") == [] and NETWORK not in ground.vips
    assert ground.names.find("name-t1", [NETWORK], {}) is None
