"""Traffic does without the agent: it is killed under streams and new connections, and takes its networks over."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from e2e_cluster import Cluster, eventually
from e2e_inside import Servers, Stream, exchange, places, trying, vip
from e2e_netstate import settled

from swarmlet.local import cluster as clusters
from swarmlet.local import hosts

#: busybox as PID 1 ignores the stop signal.
EVERYWHERE = ("--mode", "global", "--stop-grace-period", "0s")
SLEEP = ("busybox", "sleep", "600")
PORT, PUBLISHED = 7000, 18_090


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[None]:
    """A node whose agent is away for a while does not lose its tasks."""
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "20s")
    yield
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "1s")


@contextmanager
def agent_away(cluster: Cluster, *numbers: int) -> Iterator[None]:
    """The agents of these nodes are killed at once, and start again after the block."""
    for number in numbers:
        supervisor = hosts.supervisor_pid(cluster.host(number))
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        os.kill(cluster.pid(number, "swarmlet-agent"), signal.SIGKILL)
    try:
        yield
    finally:
        for number in numbers:
            hosts.start_supervisor(cluster.host(number), clusters.agent_command())
        for number in numbers:
            eventually(lambda number=number: cluster.node(number).run("ps").returncode == 0, 60)


def outside(cluster: Cluster, number: int) -> Callable[[], socket.socket]:
    """A client on no node, at the published port of one."""
    return lambda: socket.create_connection((cluster.host(number).address, PUBLISHED), timeout=15)


def links_of(cluster: Cluster, number: int) -> dict[str, int]:
    """Interface -> its number, which one that was made anew would not have."""
    return {link["ifname"]: link["ifindex"] for link in json.loads(cluster.exec(number, "ip", "-j", "link"))}


def tracked(cluster: Cluster, number: int) -> set[str]:
    """Open connections as a node tracks them for the routing mesh: both directions' addresses and ports."""
    lines = cluster.exec(number, "cat", "/proc/net/nf_conntrack").splitlines()
    return {
        " ".join(word for word in line.split() if word.startswith(("src=", "dst=", "sport=", "dport=")))
        for line in lines if "ESTABLISHED" in line and f"dport={PUBLISHED}" in line
    }


def page(cluster: Cluster, number: int) -> Callable[[], str]:
    """One exchange of a client outside, on a connection of its own: who answered."""
    connect = outside(cluster, number)

    def ask() -> str:
        with connect() as line:
            return exchange(line, "?").partition(" ")[0]

    return ask


@pytest.fixture
def live(cluster: Cluster, overlay: Callable[..., str], patient: None) -> Iterator[Live]:
    network = overlay("live")
    joined = ("--network", network)
    cluster.view("service", "create", "-d", "--name", "back", *EVERYWHERE, *joined, "-p", f"{PUBLISHED}:{PORT}", *SLEEP)
    cluster.view("service", "create", "-d", "--name", "client", *EVERYWHERE, *joined, *SLEEP)
    cluster.wait_running("back", 3)
    cluster.wait_running("client", 3)
    settled(cluster)
    with ExitStack() as stack:
        yield Live(cluster, network, stack)


class Live:
    """A backend and a client on each node, and streams from all of them: to each backend's own address, to the VIP
    and to the published port of each node, one for each backend that they may lead to."""

    def __init__(self, cluster: Cluster, network: str, stack: ExitStack) -> None:
        self.cluster = cluster
        self._stack = stack
        self.backs, self.clients = places(cluster, "back"), places(cluster, "client")
        self.vip = vip(cluster, "back", network)
        servers = stack.enter_context(Servers())
        for place in self.backs:
            servers.add(place, f"back@{place.node}", PORT)
        self.streams: list[Stream] = []
        for client in self.clients:
            for back in self.backs:
                self._start(f"{client} to {back}", lambda c=client, b=back: c.connect(b.addresses[network], PORT))
            self._start_all(f"{client} to VIP", lambda c=client: c.connect(self.vip, PORT))
            self._start_all(f"outside by node-{client.node}", outside(cluster, client.node))

    def _start(self, name: str, connect: Callable[[], socket.socket]) -> str:
        stream = self._stack.enter_context(Stream(connect, name))
        self.streams.append(stream)
        return stream.tag

    def _start_all(self, name: str, connect: Callable[[], socket.socket]) -> None:
        """Each connection is led to any backend: 60 miss one of three once in 10^10 runs."""
        missing = {f"back@{place.node}" for place in self.backs}
        for _ in range(60):
            missing.discard(self._start(name, connect))
            if not missing:
                return
        raise AssertionError(f"{name} never reaches {missing}")

    def go_on(self, exchanges: int = 20) -> None:
        """Wait until every stream has had so many more."""
        before = {stream: stream.count for stream in self.streams}
        eventually(lambda: all(
            stream.broken or stream.count >= count + exchanges for stream, count in before.items()
        ), 60)  # fmt: skip
        broken = [stream.told() for stream in self.streams if stream.broken]
        assert not broken, broken

    def end(self) -> None:
        longest = max(stream.end()[1] for stream in self.streams)
        print(f"{len(self.streams)} streams, {sum(stream.count for stream in self.streams)} exchanges, "
              f"the longest took {longest:.3f} s")  # fmt: skip


def test_streams_and_new_connections_do_without_the_agent(cluster: Cluster, live: Live) -> None:
    for away in ((2,), (1, 2, 3)):
        live.go_on()
        links = {number: links_of(cluster, number) for number in (1, 2, 3)}
        flows = {number: tracked(cluster, number) for number in (1, 2, 3)}
        assert all(flows.values())
        with ExitStack() as tries:
            tried = [
                tries.enter_context(trying(lambda place=place: place.ask(live.vip, PORT), 0.02))
                for place in live.clients
            ]
            tried += [tries.enter_context(trying(page(cluster, number), 0.02)) for number in (1, 2, 3)]
            with agent_away(cluster, *away):
                live.go_on()
            eventually(lambda: len(cluster.ready()) == 3, 60)
            settled(cluster, 60)
            live.go_on()
        for one in tried:
            assert not one.failures and len(one.answers) > 20, one.told()
        for number in (1, 2, 3):
            assert links_of(cluster, number) == links[number]
            assert flows[number] <= tracked(cluster, number)
    live.end()


def test_a_rebooted_host_is_rebuilt(cluster: Cluster, overlay: Callable[..., str]) -> None:
    """Of a worker, then of the node with manager and etcd: nothing is left of before, and everything is there again."""
    network = overlay("live")
    cluster.view("service", "create", "-d", "--name", "back", *EVERYWHERE, "--network", network, "-p",
                 f"{PUBLISHED}:{PORT}", *SLEEP)  # fmt: skip
    for number in (3, 1):
        cluster.wait_running("back", 3)
        settled(cluster)
        cluster.command("kill", number)
        assert not cluster.host(number).netns.exists()
        cluster.command("start", number)
        eventually(lambda: cluster.view.run("node", "ls").returncode == 0 and len(cluster.ready()) == 3, 60)
        eventually(lambda number=number: any(place.node == number for place in places(cluster, "back")), 60)
        cluster.wait_running("back", 3)
        settled(cluster, 60)
        backs, address = places(cluster, "back"), vip(cluster, "back", network)
        with Servers() as servers:
            for place in backs:
                servers.add(place, f"back@{place.node}", PORT)
            wanted = {f"back@{place.node}" for place in backs}
            for place in backs:
                assert {place.ask(other.addresses[network], PORT) for other in backs} == wanted
                assert {place.ask(address, PORT) for _ in range(60)} == wanted
                ask = page(cluster, place.node)
                assert {ask() for _ in range(60)} == wanted
