"""Anything done in any order leaves exactly what it should: random steps on the kernel against a plain model."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from pathlib import Path

import pytest
from net_lab import Lab, in_own_network
from test_net_life import Engine

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import SwarmletError
from swarmlet.model.container import EndpointSettings, PortBinding
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.net.records import PREDEFINED
from swarmlet_agent.net.requests import NetworkConnect, NetworkCreate, NetworkDisconnect
from swarmlet_agent.net.types import NetworkWish

pytestmark = pytest.mark.kernel
STEPS = 70
KINDS: tuple[dict[str, object], ...] = (
    {},
    {"enable_ipv6": True},
    {"enable_ipv6": True, "enable_ipv4": False},
    {"internal": True, "enable_ipv6": True},
    {"driver": "macvlan"},
    {"driver": "macvlan", "options": {"parent": "up0"}},
)


class Model:
    """What there should be: networks by name, containers with their networks and whether they publish a port."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.networks: dict[str, dict[str, object]] = {}
        self.containers: dict[str, tuple[set[str], bool]] = {}
        self.engine = Engine()
        self.before = lab.links()
        lab.networks.bind(self.engine)

    async def step(self) -> str:
        """One random step; what it was."""
        moves = [self.create, self.attach, self.attach, self.detach, self.connect, self.disconnect, self.remove]
        if self.random.random() < 0.1:
            moves = [self.restart, self.reboot, self.cancelled]
        move = self.random.choice(moves)
        await move()
        return move.__name__

    async def create(self) -> None:
        name, kind = f"n{len(self.networks)}{new_hex_id()[:4]}", self.random.choice(KINDS)
        await self.lab.networks.create(NetworkCreate(name=name, **kind))  # type: ignore[arg-type]
        self.networks[name] = kind

    async def remove(self) -> None:
        used = {name for places, _ in self.containers.values() for name in places}
        for name in self._some(self.networks):
            if name in used:
                with pytest.raises(SwarmletError, match="has active endpoints"):
                    await self.lab.networks.remove(name)
            else:
                await self.lab.networks.remove(name)
                del self.networks[name]

    async def attach(self) -> None:
        wish, places = self._wish()
        made = await self.lab.networks.attach(wish)
        assert set(made.endpoints) == places
        self.containers[wish.container_id] = (places, bool(made.ports["80/tcp"]))
        self.engine.add(wish.container_id, wish.container_name, made.endpoints)

    async def detach(self) -> None:
        for ident in self._some(self.containers):
            await self.lab.networks.detach(ident)
            del self.containers[ident]

    async def connect(self) -> None:
        for ident in self._some(self.containers):
            places, _ = self.containers[ident]
            for name in self._some(self.networks.keys() - places):
                await self.lab.networks.connect(name, NetworkConnect(container=ident))
                places.add(name)
                self._published(ident)

    async def disconnect(self) -> None:
        for ident in self._some(self.containers):
            places, _ = self.containers[ident]
            for name in self._some(places):
                await self.lab.networks.disconnect(name, NetworkDisconnect(container=ident))
                places.remove(name)
                self._published(ident)

    async def restart(self) -> None:
        await self.lab.restart()
        self.lab.networks.bind(self.engine)

    async def reboot(self) -> None:
        """The kernel forgets everything but the journal; the engine starts its containers again, or removes them."""
        ground = self.lab.networks._ground
        await ground.run(ground.kernel.teardown)
        await self.restart()
        await self.lab.networks.retain([])
        self.containers.clear()

    async def cancelled(self) -> None:
        """An attach whose caller goes away in the middle."""
        wish, _ = self._wish()
        task = asyncio.create_task(self.lab.networks.attach(wish))
        await asyncio.sleep(self.random.random() * 0.006)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.lab.networks.detach(wish.container_id)

    def _wish(self) -> tuple[NetworkWish, set[str]]:
        known = [*self.networks, "bridge"]
        places = set(self.random.sample(known, k=min(len(known), self.random.randint(1, 3))))
        ident = new_hex_id()
        return NetworkWish(
            container_id=ident, container_name=f"c{ident[:6]}", hostname=f"c{ident[:6]}", mode=min(places),
            endpoints={name: EndpointSettings() for name in places}, ports={"80/tcp": (PortBinding(),)},
        ), places  # fmt: skip

    def _published(self, ident: str) -> None:
        self.containers[ident] = (self.containers[ident][0], bool(self.lab.networks._ground.sandboxes[ident].ports))

    def _some(self, known: object) -> list[str]:
        """One of them, or none."""
        listed = sorted(known)  # type: ignore[call-overload]
        return [self.random.choice(listed)] if listed else []

    async def check(self) -> None:
        """The kernel, the journal and the memory have this, nothing less and (a moment later) nothing more."""
        ground = self.lab.networks._ground
        boxes = ground.sandboxes
        assert boxes.keys() == ground.live == self.containers.keys() == dict(ground.journal.items("endpoints")).keys()
        for ident, (places, published) in self.containers.items():
            assert {endpoint.network for endpoint in boxes[ident].endpoints} == places
            assert bool(boxes[ident].ports) == published
        assert set(os.listdir(self.lab.root / "run" / "netns")) == self.containers.keys() == self._mounts()
        ports = [port for box in boxes.values() for port in box.ports]
        assert sum(map(self._elements, ("ip", "ip6"))) == sum(port.direct for port in ports)
        assert len(ground.ports._sockets) == len(ports)
        links = {endpoint.veth for box in boxes.values() for endpoint in box.endpoints if endpoint.veth}
        links |= {name for network in ground.catalog.bridges() for name in (network.bridge,)}
        links |= {network.parent for network in ground.catalog.by_id.values() if network.parent.startswith("dm-")}
        async with asyncio.timeout(30):
            while {
                name for name in self.lab.links() - self.before if not name.startswith("dp-")
            } != links - self.before:
                await asyncio.sleep(0.01)
            while ground.resting:
                await asyncio.sleep(0.01)
        for network in ground.catalog.by_id.values():
            here = [
                endpoint for box in boxes.values() for endpoint in box.endpoints if endpoint.network_id == network.id
            ]
            for version, leased in ((4, [e for e in here if e.ip]), (6, [e for e in here if e.ip6])):
                pool = ground.catalog.pool(network.id, version)
                assert (pool.taken if pool is not None else 0) == len(leased)

    def _mounts(self) -> set[str]:
        folder = f"{self.lab.root}/run/netns/"
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return {point.removeprefix(folder) for point in points if point.startswith(folder)}

    @staticmethod
    def _elements(family: str) -> int:
        shown = subprocess.run(
            ["nft", "list", "map", family, "swl", "pubany"], capture_output=True, text=True, check=True
        )
        _, found, elements = shown.stdout.partition("elements = {")
        return elements.partition("}")[0].count("tcp") if found else 0

    async def end(self) -> None:
        for ident in list(self.containers):
            await self.lab.networks.detach(ident)
            del self.containers[ident]
        await self.lab.networks.prune(Filters())
        self.networks.clear()
        await self.check()
        assert {view.name for view in self.lab.networks.list(Filters())} == set(PREDEFINED)
        assert self.lab.links() == self.before


async def walk(lab: Lab, seed: int) -> None:
    for words in (
        ("link", "add", "up0", "type", "veth", "peer", "name", "up1"), ("link", "set", "up0", "up"),
    ):  # fmt: skip
        subprocess.run(["ip", *words], check=True)
    model, done = Model(lab, seed), []
    try:
        for number in range(STEPS):
            done.append(await model.step())
            if number % 5 == 4 or done[-1] in ("restart", "reboot", "cancelled"):
                await model.check()
        await model.end()
    except BaseException as err:
        err.add_note(f"seed {seed}, steps: {' '.join(done)}")
        raise


@in_own_network
async def test_random_steps_leave_exactly_what_they_should(lab: Lab) -> None:
    await walk(lab, 1)


@in_own_network
async def test_other_random_steps_leave_exactly_what_they_should(lab: Lab) -> None:
    await walk(lab, 2)


@in_own_network
async def test_new_random_steps_of_every_run_leave_exactly_what_they_should(lab: Lab) -> None:
    await walk(lab, random.SystemRandom().randrange(1 << 32))
