"""Two hundred random steps of services, networks, nodes and dead agents: every node ends with exactly what there is."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest
from e2e_cluster import Cluster, eventually
from e2e_inside import Servers, places, vip
from e2e_netstate import settled

STEPS, LOOK_EVERY = 200, 25
MOST_SERVICES, MOST_REPLICAS = 4, 4
PORT, FIRST_PORT = 7000, 18_100
SLEEP = ("--stop-grace-period", "0s", "busybox", "sleep", "600")


@pytest.fixture
def all_active(cluster: Cluster) -> Iterator[None]:
    """Nodes that a test has drained take tasks again; an agent that was killed a moment ago keeps its node."""
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "10s")
    yield
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "1s")
    for node in cluster.ready():
        cluster.view("node", "update", "--availability", "active", node)


class Walk:
    """What there should be. services: name -> (networks, replicas wanted, whether it publishes a port)."""

    def __init__(self, cluster: Cluster, overlay: Callable[..., str], seed: int) -> None:
        self.cluster, self.chance = cluster, random.Random(seed)
        self._overlay = overlay
        self.networks: list[str] = [overlay("walk-0"), overlay("walk-1", "--internal")]
        self.services: dict[str, tuple[list[str], int, bool]] = {}
        self.drained: set[str] = set()
        self._serial = 2

    def step(self) -> str:
        """One step; what it was."""
        moves = [self.create, self.create, self.scale, self.scale, self.scale, self.remove, self.replace, self.network]
        if self.chance.random() < 0.15:
            moves = [self.drain, self.kill_agent]
        return self.chance.choice(moves)()

    def create(self) -> str:
        if len(self.services) >= MOST_SERVICES:
            return self.remove()
        name = f"walk{self._next()}"
        networks = self.chance.sample(self.networks, self.chance.randint(1, min(2, len(self.networks))))
        replicas, published = self.chance.randint(0, MOST_REPLICAS), self.chance.random() < 0.3
        words = [word for network in networks for word in ("--network", network)]
        if published:
            words += ["-p", f"{FIRST_PORT + self._serial}:{PORT}"]
        mode = self.chance.choice(("vip", "vip", "dnsrr")) if not published else "vip"
        self.cluster.view("service", "create", "-d", "--name", name, "--replicas", str(replicas), "--endpoint-mode",
                          mode, *words, *SLEEP)  # fmt: skip
        self.services[name] = networks, replicas, published
        return f"create {name} {replicas} on {' '.join(networks)}"

    def scale(self) -> str:
        if not self.services:
            return self.create()
        name = self._any(self.services)
        networks, _, published = self.services[name]
        replicas = self.chance.randint(0, MOST_REPLICAS)
        self._change("service", "scale", "-d", f"{name}={replicas}")
        self.services[name] = networks, replicas, published
        return f"scale {name} {replicas}"

    def remove(self) -> str:
        if not self.services:
            return self.create()
        name = self._any(self.services)
        self.cluster.view("service", "rm", name)
        del self.services[name]
        return f"remove {name}"

    def replace(self) -> str:
        """Every task of a service is replaced."""
        if not self.services:
            return self.create()
        name = self._any(self.services)
        self._change("service", "update", "-d", "--force", "--update-parallelism", "0", name)
        return f"replace {name}"

    def network(self) -> str:
        """One more, or one less: the API refuses to remove one in use."""
        used = {name for networks, _, _ in self.services.values() for name in networks}
        free = [name for name in self.networks if name not in used]
        if free and self.chance.random() < 0.5 and len(self.networks) > 1:
            name = self.chance.choice(free)
            self.cluster.view("network", "rm", name)
            self.networks.remove(name)
            return f"no network {name}"
        if len(self.networks) >= 4:
            return self.scale()
        name = self._overlay(f"walk-{self._next()}")
        self.networks.append(name)
        return f"network {name}"

    def drain(self) -> str:
        """One node at most is without tasks."""
        if self.drained:
            node = self.drained.pop()
            self._change("node", "update", "--availability", "active", node)
            return f"active {node}"
        node = f"node-{self.chance.randint(1, 3)}"
        self._change("node", "update", "--availability", "drain", node)
        self.drained.add(node)
        return f"drain {node}"

    def kill_agent(self) -> str:
        number = self.chance.randint(1, 3)
        try:
            os.kill(self.cluster.pid(number, "swarmlet-agent"), signal.SIGKILL)
        except (LookupError, ProcessLookupError):
            return f"agent {number} is not up again yet"
        return f"kill agent {number}"

    def check(self) -> None:
        """As many tasks as wanted, every kernel as it should be, and everybody reached by everybody on a network."""
        wanted = {name: replicas for name, (_, replicas, _) in self.services.items()}
        eventually(lambda: {name: len(self.cluster.running(name)) for name in wanted} == wanted
                   and len(self.cluster.ready()) == 3, 60)  # fmt: skip
        settled(self.cluster, 60)
        with Servers() as servers:
            self._reach(servers)

    def _reach(self, servers: Servers) -> None:
        here = {name: places(self.cluster, name) for name in self.services}
        for name, found in here.items():
            for place in found:
                servers.add(place, f"{name}/{place.container[:6]}", PORT)
        wrong = []
        modes = {
            name: self.cluster.view.json("service", "inspect", name)[0]["Endpoint"].get("VirtualIPs") or []
            for name in self.services
        }
        for network in self.networks:
            on = [(name, place) for name, found in here.items() for place in found if network in place.addresses]
            for _, asker in on:
                for name, target in on:
                    heard = asker.ask(target.addresses[network], PORT)
                    if heard != f"{name}/{target.container[:6]}":
                        wrong.append(f"{asker} to {target} on {network}: {heard}")
                for name in {name for name, _ in on if modes[name]}:
                    heard = asker.ask(vip(self.cluster, name, network), PORT)
                    if heard.partition("/")[0] != name:
                        wrong.append(f"{asker} to the VIP of {name} on {network}: {heard}")
        assert not wrong, "\n".join(wrong)

    def end(self) -> None:
        if self.services:
            self.cluster.view("service", "rm", *self.services)
            self.services.clear()
        world = settled(self.cluster, 60)
        assert world.tasks == []

    def _change(self, *words: str) -> None:
        """The client reads what it changes first: where that has become something else meanwhile, it asks again."""

        def done() -> bool:
            said = self.cluster.view.run(*words)
            assert b"update out of sequence" in said.stderr or not said.returncode, said
            return not said.returncode

        eventually(done)

    def _any(self, known: dict[str, tuple[list[str], int, bool]]) -> str:
        return self.chance.choice(sorted(known))

    def _next(self) -> int:
        self._serial += 1
        return self._serial


@pytest.mark.timeout(400)
def test_two_hundred_random_steps_leave_what_they_should(
    cluster: Cluster, overlay: Callable[..., str], all_active: None
) -> None:
    seed = int(os.environ.get("SWARMLET_SEED") or random.SystemRandom().randrange(1 << 32))
    walk, done = Walk(cluster, overlay, seed), []
    try:
        for number in range(1, STEPS + 1):
            done.append(walk.step())
            if number % LOOK_EVERY == 0:
                walk.check()
        walk.end()
    except BaseException as err:
        err.add_note(f"SWARMLET_SEED={seed}: {'; '.join(done)}")
        for number in (1, 2, 3):
            lines = cluster.host(number).log_file.read_text().splitlines()
            err.add_note("\n".join([f"node-{number}:", *[line for line in lines if "error" in line.lower()][-15:]]))
        raise
