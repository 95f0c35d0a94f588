"""A node that is lost, by its power or its cable: the others go on, nothing is sent there for long, nothing stays."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from e2e_cluster import Cluster, eventually
from e2e_inside import TCP, UDP, Place, Servers, Stream, Tries, http, places, trying, vip
from e2e_netstate import World, settled

#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
SLEEP = ("busybox", "sleep", "600")
#: A page that tells the container's host name.
WEB = ("busybox", "sh", "-c", "mkdir -p /w; hostname >/w/index.html; exec httpd -f -p 80 -h /w")
PUBLISHED, PORT = 18_091, 7000
#: A client's, of one page.
GIVE_UP_S = 2.0
#: From the moment a node is known to be down until nobody is sent there any more.
TOLD_WITHIN_S = 3.0


@pytest.fixture
def back_again(cluster: Cluster) -> Iterator[None]:
    """Whatever happens to node 3 in a test, it is there afterwards."""
    yield
    cluster.command("start", 3)
    cluster.command("heal", 3)
    eventually(lambda: len(cluster.ready()) == 3, 60)


def on(cluster: Cluster, service: str, *numbers: int) -> list[Place]:
    return [place for place in places(cluster, service) if place.node in numbers]


def no_address_twice(cluster: Cluster) -> None:
    """Neither of tasks that are not over, nor of containers that run anywhere, whoever knows of them."""
    told = [address for task in World.read(cluster).tasks for at in task.addresses.values() for address in at]
    assert len(told) == len(set(told)), told
    run = [
        address for service in cluster.view("service", "ls", "--format", "{{.Name}}").split()
        for place in places(cluster, service) for address in place.addresses.values()
    ]
    assert len(run) == len(set(run)), run


def test_clients_get_over_a_node_that_dies(
    cluster: Cluster, overlay: Callable[..., str], back_again: None
) -> None:
    network = overlay("loss")
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "6", "--network", network, "-p",
                 f"{PUBLISHED}:80", *AT_ONCE, *WEB)  # fmt: skip
    cluster.view("service", "create", "-d", "--name", "client", "--mode", "global", "--network", network, *AT_ONCE,
                 *SLEEP)  # fmt: skip
    cluster.wait_running("web", 6)
    cluster.wait_running("client", 3)
    settled(cluster)
    assert on(cluster, "web", 3) and on(cluster, "web", 1, 2)
    client, address = on(cluster, "client", 1)[0], vip(cluster, "web", network)
    entry = cluster.host(2).address
    with ExitStack() as stack:
        servers = stack.enter_context(Servers())
        streams = []
        for place in on(cluster, "client", 1, 2):
            servers.add(place, f"client@{place.node}", PORT)
            stream = Stream(lambda place=place: client.connect(place.addresses[network], PORT), f"{client} to {place}")
            streams.append(stack.enter_context(stream))
        inside = stack.enter_context(trying(lambda: http(lambda: client.connect(address, 80, timeout_s=GIVE_UP_S))))
        outside = stack.enter_context(
            trying(lambda: http(lambda: socket.create_connection((entry, PUBLISHED), timeout=GIVE_UP_S)))
        )
        eventually(lambda: all(len(one.answers) > 50 for one in (inside, outside)))
        killed = time.monotonic()
        cluster.command("kill", 3)
        eventually(lambda: cluster.ready() == {"node-1", "node-2"}, 60, 0.05)
        known = time.monotonic()
        cluster.wait_running("web", 6)
        eventually(lambda: all(one.answers[-1][0] + one.began > known + TOLD_WITHIN_S + 1 for one in (inside, outside)))
        counts = [stream.end()[0] for stream in streams]
    print(f"down {known - killed:.1f} s after the kill; streams {counts}")
    for name, one in (("VIP", inside), ("mesh", outside)):
        print(f"{name}: {one.told()}")
        check_gap(name, one, killed, known + TOLD_WITHIN_S)


def check_gap(name: str, tries: Tries, first: float, last: float) -> None:
    """Failures only between these two moments; and not of those led to a backend that lives."""
    outside = [(at, why) for at, why in tries.failures if not first <= at + tries.began <= last]
    assert not outside, f"{name}: {outside}, known from {first - tries.began} to {last - tries.began}: {tries.told()}"
    meanwhile = [at for at, _ in tries.answers if first <= at + tries.began <= last]
    assert len(meanwhile) > len(tries.failures), f"{name}: {len(meanwhile)} answered meanwhile: {tries.told()}"


def test_a_partition_leaves_the_rest_alone_and_nothing_behind(
    cluster: Cluster, overlay: Callable[..., str], back_again: None
) -> None:
    network = overlay("split", "--internal")  # so that a name that is not known is not asked for outside
    cluster.view("service", "create", "-d", "--name", "all", "--mode", "global", "--network", network, *AT_ONCE, *SLEEP)
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", network, *AT_ONCE, *SLEEP)
    cluster.wait_running("all", 3)
    cluster.wait_running("web", 3)
    settled(cluster)
    one, two, three = places(cluster, "all")
    lost = [place.addresses[network] for place in (*on(cluster, "web", 3), three)]
    names = [task["Name"] + "." + task["ID"] for task in cluster.tasks("web") if task["Node"] == "node-3"]
    assert names and all(one.resolve(name) for name in names)
    with ExitStack() as stack:
        servers = stack.enter_context(Servers())
        for place in (one, two, three):
            servers.add(place, f"all@{place.node}", PORT)
        near = stack.enter_context(Stream(lambda: one.connect(two.addresses[network], PORT), "one to two"))
        far = stack.enter_context(Stream(lambda: three.connect(three.addresses[network], PORT), "three to itself"))
        cluster.command("cut", 3)
        eventually(lambda: cluster.ready() == {"node-1", "node-2"}, 60)
        eventually(lambda: len({task["Node"] for task in cluster.running("web")} - {"node-3"}) == 2, 60)
        for asker in (one, two):
            for name in ("tasks.web", "tasks.all", *names):
                eventually(lambda a=asker, n=name: not a.resolve(n) & set(lost))
            for kind in (TCP, UDP):
                heard = {asker.ask(vip(cluster, "all", network), PORT, kind) for _ in range(40)}
                assert heard == {"all@1", "all@2"}
        no_address_twice(cluster)
        # The lost node's agent answers for what it knew last.
        assert three.addresses[network] in three.resolve("tasks.all")
        cluster.view("service", "scale", "-d", "web=5")
        eventually(lambda: len([task for task in cluster.running("web") if task["Node"] != "node-3"]) == 5, 60)
        no_address_twice(cluster)
        assert far.end()[0] > 100
        cluster.command("heal", 3)
        eventually(lambda: len(cluster.ready()) == 3, 60)
        no_address_twice(cluster)
        assert near.end()[0] > 100
    cluster.wait_running("web", 5)
    eventually(lambda: len(on(cluster, "web", 1, 2, 3)) == 5)
    settled(cluster, 60)
    no_address_twice(cluster)
    here = places(cluster, "all")
    with Servers() as servers:
        for place in here:
            servers.add(place, f"all@{place.node}", PORT)
        for asker in here:
            assert {asker.ask(place.addresses[network], PORT) for place in here} == {"all@1", "all@2", "all@3"}
