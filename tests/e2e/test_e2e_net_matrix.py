"""Who reaches whom: every pair of nodes by every name and address, packets to the byte, and networks kept apart."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from e2e_cluster import Cluster
from e2e_inside import TCP, UDP, Place, Servers, exchange, places, vip
from e2e_netstate import settled

#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
EVERYWHERE = ("--mode", "global", *AT_ONCE)
SLEEP = ("busybox", "sleep", "600")
PORT = 7000
KINDS = {TCP: "TCP", UDP: "UDP"}
#: Linux's numbers (linux/in.h), which Python does not name.
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
HEADERS = 28  # of IPv4 and UDP


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Servers() as running:
        yield running


def everywhere(cluster: Cluster, servers: Servers, name: str, *networks: str) -> list[Place]:
    """A service with a container on each node, which answers as "name@node" on PORT."""
    joined = [word for network in networks for word in ("--network", network)]
    cluster.view("service", "create", "-d", "--name", name, *EVERYWHERE, *joined, *SLEEP)
    cluster.wait_running(name, 3)
    found = places(cluster, name)
    assert [place.node for place in found] == [1, 2, 3]
    for place in found:
        servers.add(place, f"{name}@{place.node}", PORT)
    return found


def heard(asker: Place, target: str, kind: int, times: int = 1, timeout_s: float = 2) -> set[str]:
    """Who answered; the error's name where nobody did."""
    found = set()
    for _ in range(times):
        try:
            found.add(asker.ask(target, PORT, kind, timeout_s))
        except OSError as err:
            found.add(type(err).__name__)
    return found


def connected(askers: list[Place], targets: list[str], within_s: float = 0.5) -> list[str]:
    """Pairs of those that come to a connection, all tried at once."""
    tries = {}
    try:
        for asker in askers:
            for target in targets:
                tries[f"{asker} to {target}"] = line = asker.open(TCP, 0)
                line.connect_ex((target, PORT))
        ends = time.monotonic() + within_s  # a connection that is to fail tells nothing while it is not there
        while not all(map(is_connected, tries.values())) and time.monotonic() < ends:
            time.sleep(0.05)
        return [pair for pair, line in tries.items() if is_connected(line)]
    finally:
        for line in tries.values():
            line.close()


def is_connected(line: socket.socket) -> bool:
    try:
        line.getpeername()
    except OSError:
        return False
    return True


def test_every_pair_of_nodes_by_every_name_and_address(
    cluster: Cluster, overlay: Callable[..., str], servers: Servers
) -> None:
    here = everywhere(cluster, servers, "all", overlay("pairs"))
    settled(cluster)
    own = {place.node: place.addresses["pairs"] for place in here}
    tags = {f"all@{number}" for number in own}
    virtual = vip(cluster, "all", "pairs")
    wrong: list[str] = []

    def check(asker: Place, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            wrong.append(f"from node-{asker.node}: {what}: {found} instead of {wanted}")

    for asker in here:
        check(asker, "name all", asker.resolve("all"), {virtual})
        check(asker, "name tasks.all", asker.resolve("tasks.all"), set(own.values()))
        for kind, called in KINDS.items():
            for number, address in own.items():
                check(asker, f"{called} to node-{number} ({address})", heard(asker, address, kind), {f"all@{number}"})
            # Each of 60 tries misses one of three backends with a chance of 2/3: all do once in 10^10 runs.
            check(asker, f"{called} to VIP {virtual}", heard(asker, virtual, kind, 60), tags)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mtu", [1450, 1300])
def test_a_packet_of_exactly_the_mtu_passes_and_not_a_byte_more(
    cluster: Cluster, overlay: Callable[..., str], servers: Servers, mtu: int
) -> None:
    options = () if mtu == 1450 else ("--opt", f"com.docker.network.driver.mtu={mtu}")
    here = everywhere(cluster, servers, "all", overlay("sized", *options))
    for asker in here:
        for target in here:
            if target == asker:
                continue  # that stays within the loopback, whose packets are larger
            with asker.connect(target.addresses["sized"], PORT, UDP) as line:
                line.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
                # The answer has the tag more than the question: it may come in two pieces, the question may not.
                text = "x" * (mtu - HEADERS - 1)
                assert exchange(line, text) == f"all@{target.node} {text}"
                with pytest.raises(OSError) as refused:
                    line.send(b"x" * (mtu - HEADERS + 1))
                assert refused.value.errno == errno.EMSGSIZE, (asker, target)


def test_networks_are_kept_apart_and_a_container_on_two_reaches_both(
    cluster: Cluster, overlay: Callable[..., str], servers: Servers
) -> None:
    names = [overlay("red"), overlay("green", "--internal"), overlay("blue", "--internal")]
    here = {name: everywhere(cluster, servers, f"in-{name}", name) for name in names}
    both = everywhere(cluster, servers, "both", "red", "blue")
    settled(cluster)
    wrong = []
    for name, askers in here.items():
        for other in here.keys() - {name}:
            targets = [*(place.addresses[other] for place in here[other]), vip(cluster, f"in-{other}", other)]
            wrong += [f"{pair} between {name} and {other}" for pair in connected(askers, targets)]
            # From the open one, names that are not known are asked for outside, which takes its time.
            if name != "red" and askers[0].resolve(f"in-{other}"):
                wrong.append(f"in {name} it is told where in-{other} is")
    assert len(connected(both, [place.addresses["red"] for place in here["red"]], 30)) == 9
    for asker in both:
        for name in ("red", "blue"):
            for place in here[name]:
                found = heard(asker, place.addresses[name], TCP)
                if found != {f"in-{name}@{place.node}"}:
                    wrong.append(f"both@{asker.node} to {place}: {found}")
    assert not wrong, "\n".join(wrong)


def test_an_internal_network_has_no_way_out(
    cluster: Cluster, overlay: Callable[..., str], servers: Servers
) -> None:
    inner = everywhere(cluster, servers, "inner", overlay("inside", "--internal"))
    outer = everywhere(cluster, servers, "outer", overlay("open"))
    with socket.create_server(("0.0.0.0", 0)) as outside:
        port = outside.getsockname()[1]
        gateway = f"{cluster.host(1).address.rpartition('.')[0]}.254"
        for place in outer:
            place.connect(gateway, port).close()
        for place in inner:
            for target in (gateway, cluster.host(1).address):
                with pytest.raises(OSError):
                    place.connect(target, port if target == gateway else 2377, timeout_s=0.2)
            node = cluster.node(place.node)
            assert "default" not in node("exec", place.container, "ip", "route")
        for asker in inner:
            assert [heard(asker, place.addresses["inside"], TCP) for place in inner] == [
                {f"inner@{place.node}"} for place in inner
            ]
