"""Traffic through published ports and virtual addresses, UDP as well as TCP, also while tasks come and go."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_cluster import Cluster, eventually
from mesh_peer import OPTIONS, PEER

NODES = (1, 2, 3)
#: Running only once it accepts connections.
LISTENS = ("--health-cmd", "nc -w 1 127.0.0.1 80 </dev/null", "--health-interval", "1s",
           "--health-start-interval", "200ms", "--health-start-period", "10s")  # fmt: skip


def client_address(cluster: Cluster) -> str:
    """Where the test's own packets to a node come from."""
    return f"{cluster.host(1).address.rpartition('.')[0]}.254"


def client_address6(cluster: Cluster) -> str:
    return cluster.layout.gateway6


def ask(host: str, port: int, kind: int = socket.SOCK_STREAM) -> str:
    """What a new connection, or a datagram from a new port, is answered. OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as channel:
        channel.settimeout(3)
        channel.connect((host, port))
        channel.sendall(b"HTTP/1")
        return channel.recv(4096).decode().strip()


def refused(host: str, port: int, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether a port says at once that nobody is there (TCP reset; ICMP port unreachable)."""
    try:
        ask(host, port, kind)
    except ConnectionRefusedError:
        return True
    return False


def names(cluster: Cluster, service: str, *nodes: int) -> set[str]:
    """Host names of a service's containers that run, on these nodes or on all."""
    return {
        cluster.node(number)("inspect", "-f", "{{.Config.Hostname}}", ident)
        for number in nodes or NODES
        for ident in cluster.node(number)(
            "ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}"
        ).split()
    }


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_every_node_leads_to_every_task_which_sees_the_client(cluster: Cluster, kind: int) -> None:
    protocol = "udp" if kind == socket.SOCK_DGRAM else "tcp"
    cluster.view("service", "create", "-d", "--name", "peer", "--mode", "global", "-p", f"18090:80/{protocol}",
                 *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 3)
    wanted = {f"{name} {client_address(cluster)}" for name in names(cluster, "peer")}
    assert len(wanted) == 3
    wanted6 = {f"{name} {client_address6(cluster)}" for name in names(cluster, "peer")}
    for number in NODES:
        host, host6 = cluster.host(number).address, cluster.host(number).address6
        eventually(lambda host=host: {ask(host, 18090, kind) for _ in range(24)} == wanted)
        eventually(lambda host=host6: {ask(host, 18090, kind) for _ in range(24)} == wanted6)


def test_a_nodes_own_clients_reach_every_task_by_any_node_and_any_of_its_addresses(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "--mode", "global", "-p", "18096:80", *OPTIONS, *PEER)
    cluster.wait_running("peer", 3)
    everyone = names(cluster, "peer")
    places = [place for number in NODES for place in (cluster.host(number).address, cluster.host(number).address6)]
    for host in ("127.0.0.1", *places):
        loop = (
            "import socket,sys\nfor n in range(24):\n"
            " s = socket.create_connection((sys.argv[1], 18096), 3); s.sendall(b'HTTP/1'); print(s.recv(99).decode())\n"
        )

        def heard(host: str = host, loop: str = loop) -> set[str]:
            return {line.split()[0] for line in cluster.exec(1, PEER[1], "-S", "-c", loop, host).splitlines() if line}

        assert eventually(lambda heard=heard: heard() == everyone)


def test_udp_flows_of_a_task_that_is_gone_find_another_and_without_one_are_refused(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "peer", "--replicas", "1", "-p", "18091:80/udp", *OPTIONS, *PEER)
    cluster.wait_running("peer", 1)
    flows = []
    try:
        for number in NODES:
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            flow.settimeout(1)
            flow.connect((cluster.host(number).address, 18091))
            flows.append(flow)

        def talk(flow: socket.socket) -> str:
            flow.send(b"?")
            return flow.recv(4096).decode().split()[0]

        (first,) = names(cluster, "peer")
        for flow in flows:
            assert eventually(lambda flow=flow: talk(flow)) == first
        # Another takes its place: the same flows, from the same ports, go there.
        view("service", "update", "-d", "--force", "--update-order", "start-first", "peer")
        for flow in flows:
            assert eventually(lambda flow=flow: (heard := talk(flow)) != first and heard, 30) not in ("", first)
        view("service", "scale", "-d", "peer=0")
        for number in NODES:
            host = cluster.host(number).address
            assert eventually(lambda host=host: refused(host, 18091, socket.SOCK_DGRAM))
        for flow in flows:

            def dead(flow: socket.socket = flow) -> bool:
                try:
                    talk(flow)
                except ConnectionRefusedError:
                    return True
                except TimeoutError:
                    return False
                return False

            assert eventually(dead)
    finally:
        for flow in flows:
            flow.close()


def test_udp_reaches_a_virtual_address_and_is_refused_when_nobody_serves(cluster: Cluster) -> None:
    view = cluster.view
    view("network", "create", "-d", "overlay", "inner")
    view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", "inner", *OPTIONS, *PEER)
    view("service", "create", "-d", "--name", "peer", "--mode", "global", "--network", "inner", *OPTIONS, *PEER)
    try:
        cluster.wait_running("asker", 3)
        cluster.wait_running("peer", 3)
        everyone = names(cluster, "peer")
        flow = (
            "import socket,sys\nfor n in range(int(sys.argv[1])):\n"
            " s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect(('peer', 80))\n"
            " try: s.send(b'?')\n"
            " except PermissionError: pass  # the kernel's word where the refusing rule is the sender's own\n"
            " try: print(s.recv(99).decode().strip())\n"
            " except ConnectionRefusedError: print('refused')\n"
        )

        def heard(number: int, times: int) -> list[list[str]]:
            node = cluster.node(number)
            ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=asker")
            return [line.split() for line in node("exec", ident, PEER[1], "-S", "-c", flow, str(times)).splitlines()]

        for number in NODES:
            node = cluster.node(number)
            ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=asker")
            own = node("inspect", "-f", "{{.NetworkSettings.Networks.inner.IPAddress}}", ident)
            said = eventually(
                lambda number=number: (lines := heard(number, 24)) and len({line[0] for line in lines}) == 3 and lines
            )
            assert said and {line[0] for line in said} == everyone and {line[1] for line in said} == {own}
        view("service", "rm", "peer")
        view("service", "create", "-d", "--name", "peer", "--replicas", "0", "--network", "inner", *OPTIONS, *PEER)
        for number in NODES:
            assert eventually(lambda number=number: heard(number, 1) == [["refused"]])
    finally:
        view("service", "rm", "asker", "peer")
        eventually(lambda: view.run("network", "rm", "inner").returncode == 0)


class Hammer:
    """Connections one after the other to each of some hosts, until it is told to end."""

    def __init__(self, hosts: list[str], port: int) -> None:
        self.heard: list[str] = []
        self.failed: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(host, port)) for host in hosts]

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)

    def _run(self, host: str, port: int) -> None:
        while not self._ended.wait(0.005):
            try:
                self.heard.append(ask(host, port))
            except OSError as err:
                self.failed.append(f"{host}: {err!r}")


def _during(cluster: Cluster, service: str, *update: str) -> Callable[[], bool]:
    cluster.view("service", "update", "-d", *update, service)

    def done() -> bool:
        status = cluster.view.json("service", "inspect", service)[0].get("UpdateStatus", {})
        return bool(status.get("State") == "completed")

    return done


def logs(cluster: Cluster, service: str) -> list[str]:
    return cluster.view("service", "logs", "--raw", service).splitlines()


def deaths(cluster: Cluster, number: int, since: int) -> list[str]:
    """When tasks of a node were told to stop, and how they ended."""
    attributes = (f"{{{{.Actor.Attributes.{name}}}}}" for name in ("name", "signal", "exitCode"))
    form = " ".join(("{{.TimeNano}} {{.Action}}", *attributes))
    chosen = ("--filter", "event=kill", "--filter", "event=die")
    span = ("--since", str(since), "--until", str(int(time.time()) + 1))
    return cluster.node(number)("events", *span, *chosen, "--format", form).splitlines()


def test_nobody_is_sent_to_a_task_once_it_has_got_its_stop_signal(cluster: Cluster, tmp_path: Path) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "--replicas", "3", "-p", "18092:80",
                 "--constraint", "node.hostname!=node-3", *LISTENS, *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 3)
    hosts = [cluster.host(number).address for number in NODES]
    for host in hosts:
        eventually(lambda host=host: len({ask(host, 18092) for _ in range(12)}) == 3)
    slow, said, began = cluster.pid(3, "swarmlet-agent"), tmp_path / "logs", int(time.time())
    with said.open("wb") as file:
        follower = cluster.view.popen("service", "logs", "-f", "--raw", "peer", stdout=file)
    try:
        eventually(lambda: said.read_text().count("ready") == 3)
        with Hammer(hosts, 18092) as hammer:
            # The third node goes on sending clients to the old tasks until its agent wakes up: they wait for it.
            os.kill(slow, signal.SIGSTOP)
            try:
                cluster.view("service", "scale", "-d", "peer=1")
                eventually(lambda: len(cluster.tasks("peer")) == 1, 30, 0.02)
            finally:
                os.kill(slow, signal.SIGCONT)

            def ended() -> bool:
                lines = said.read_text().splitlines()
                assert lines.count("end") == 2, (lines, [deaths(cluster, number, began) for number in (1, 2)])
                return True

            eventually(ended, period_s=0.5)
        assert hammer.failed == []
        assert sorted(said.read_text().split("\n"))[1:] == ["end"] * 2 + ["ready"] * 3 + ["signal"] * 2
    finally:
        follower.terminate()
        follower.wait(30)


def test_a_node_that_does_not_answer_keeps_no_task_from_its_stop_for_long(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "-p", "18098:80", "--constraint",
                 "node.hostname==node-1", *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 1)
    assert eventually(lambda: ask(cluster.host(3).address, 18098))
    silent = cluster.pid(3, "swarmlet-agent")
    os.kill(silent, signal.SIGSTOP)
    try:
        cluster.view("service", "scale", "-d", "peer=0")
        assert eventually(lambda: not names(cluster, "peer", 1, 2))
    finally:
        os.kill(silent, signal.SIGCONT)
    assert eventually(lambda: len(cluster.ready()) == 3 and refused(cluster.host(3).address, 18098))


def test_open_connections_of_a_task_that_leaves_go_on_until_it_ends(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "-p", "18093:80", *OPTIONS, *PEER)
    cluster.wait_running("peer", 1)
    lines = []
    try:
        for number in NODES:
            host = cluster.host(number).address
            eventually(lambda host=host: ask(host, 18093))
            lines.append(socket.create_connection((host, 18093), timeout=3))
        cluster.view("service", "rm", "peer")
        for number in NODES:
            host = cluster.host(number).address
            eventually(lambda host=host: refused(host, 18093), period_s=0.01)
        for line in lines:
            line.sendall(b"?")
            assert line.recv(4096)
    finally:
        for line in lines:
            line.close()


def test_a_thousand_connections_during_an_update_and_not_one_fails(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "--replicas", "3", "-p", "18094:80",
                 "--update-order", "start-first", "--update-monitor", "1s", "--update-delay", "0s",
                 *LISTENS, *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 3)
    hosts = [cluster.host(number).address for number in NODES]
    for host in hosts:
        eventually(lambda host=host: len({ask(host, 18094) for _ in range(12)}) == 3)
    with Hammer(hosts, 18094) as hammer:
        eventually(_during(cluster, "peer", "--env-add", "V=2"), 90)
        eventually(lambda: len(hammer.heard) >= 1000, 60)
    assert hammer.failed == []
    assert len({line.split()[0] for line in hammer.heard}) == 6


def test_an_unhealthy_task_gets_no_clients_long_before_it_has_ended(cluster: Cluster) -> None:
    cluster.view("service", "create", "-d", "--name", "peer", "--replicas", "2", "-p", "18095:80",
                 "--restart-condition", "none", "--stop-grace-period", "60s", "--stop-signal", "SIGWINCH",
                 "--health-cmd", "test ! -e /tmp/ill", "--health-interval", "500ms", "--health-retries", "1",
                 *OPTIONS, *PEER)  # fmt: skip
    cluster.wait_running("peer", 2)
    host = cluster.host(3).address
    everyone = names(cluster, "peer")
    eventually(lambda: {ask(host, 18095).split()[0] for _ in range(12)} == everyone)
    number, ident = next(
        (number, ident) for number in NODES
        for ident in cluster.node(number)("ps", "-q", "--filter", "label=com.docker.swarm.service.name=peer").split()
    )
    ill = cluster.node(number)("inspect", "-f", "{{.Config.Hostname}}", ident)
    cluster.node(number)("exec", ident, "mkdir", "-p", "/tmp/ill")
    for entry in NODES:
        address = cluster.host(entry).address
        eventually(lambda address=address: ill not in {ask(address, 18095).split()[0] for _ in range(12)})
    # Its end is far away: it ignores its stop signal.
    assert cluster.node(number)("inspect", "-f", "{{.State.Running}}", ident) == "true"
    cluster.node(number)("kill", ident)


def test_udp_flows_to_a_node_that_is_lost_begin_anew_elsewhere(cluster: Cluster) -> None:
    """Those from one port, that never end by themselves: a resolver's, a logger's."""
    cluster.view("service", "create", "-d", "--name", "peer", "--mode", "global", "-p", "18097:80/udp", *OPTIONS, *PEER)
    cluster.wait_running("peer", 3)
    node = cluster.node(2)
    ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=peer")
    there = node("inspect", "-f", "{{.Config.Hostname}}", ident)
    host = cluster.host(3).address

    def flow_there() -> socket.socket | None:
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flow.settimeout(0.5)
        flow.connect((host, 18097))
        flow.send(b"?")
        if flow.recv(4096).decode().split()[0] == there:
            return flow
        flow.close()
        return None

    flow = eventually(flow_there)
    assert flow is not None
    with flow:
        cluster.command("cut", 2)
        try:

            def elsewhere() -> str:
                flow.send(b"?")
                return flow.recv(4096).decode().split()[0]

            assert eventually(elsewhere, 30) != there
        finally:
            cluster.command("heal", 2)
    eventually(lambda: len(cluster.ready()) == 3)
