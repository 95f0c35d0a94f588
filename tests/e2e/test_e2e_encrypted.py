"""Encrypted networks: refused by name where a host cannot encrypt; else nothing of them is on the wire in clear."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from e2e_cluster import NAME, Cluster, View, eventually
from e2e_own import own_cluster

from swarmlet.local import hosts as host_tools

OWN = f"{NAME}-enc"
PROGRAM = "wireguard-go"
#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
SECRET = "a-word-that-nobody-else-reads"
ANSWER = f"while :; do echo {SECRET} | nc -l -p 8080 -w 1; done"

pytestmark = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"there is no program {PROGRAM}")

#: Counts what passes eth0 until its input ends: UDP ports, and frames with the word in clear.
_SNIFF = f"""
import select, socket, struct, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("eth0", 3))
print("ready", flush=True)
ports, clear = set(), 0
while True:
    ready, _, _ = select.select([wire, sys.stdin], [], [])
    if sys.stdin in ready:
        break
    frame = wire.recv(65536)
    clear += {SECRET.encode()!r} in frame
    if frame[12:14] == b"\\x08\\x00" and frame[23] == 17:
        ports.add(struct.unpack_from("!H", frame, 14 + 4 * (frame[14] & 15) + 2)[0])
print(clear, *sorted(ports))
"""


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Cluster]:
    with own_cluster(OWN, 2) as made:
        yield made


def with_program(cluster: Cluster, *numbers: int) -> None:
    """Hosts whose agents have a program that encrypts."""
    cluster.view("swarm", "update", "--dispatcher-heartbeat", "10s")
    for number in (1, 2):
        file = cluster.host(number).config_file
        lines = [line for line in file.read_text().splitlines() if "wireguard_program" not in line]
        chosen = [f'wireguard_program = "{PROGRAM}"'] if number in numbers else []
        file.write_text("\n".join([lines[0], *chosen, *lines[1:]]) + "\n")
        before = cluster.pid(number, "swarmlet-agent")
        cluster.exec(number, "kill", "-9", str(before))
        eventually(lambda number=number, before=before: cluster.pid(number, "swarmlet-agent") != before)
        eventually(lambda number=number: cluster.node(number).run("ps").returncode == 0)
    eventually(lambda: len(cluster.ready()) == 2)


def inside(cluster: Cluster, number: int, service: str) -> tuple[View, str, str]:
    node = cluster.node(number)
    ident = eventually(lambda: node("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}"))
    shown = node.json("inspect", ident)[0]["NetworkSettings"]["Networks"]["sealed"]["IPAddress"]
    return node, ident, shown


#: A datagram to port 9 of a container, in VXLAN, to a host: host port vni mac address.
_INJECT = """
import socket, struct, sys
host, port, vni, mac, address = sys.argv[1:]
data = struct.pack("!HHHH", 9, 9, 8 + 4, 0) + b"fake"
head = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(data), 0, 0, 64, 17, 0,
                   socket.inet_aton(address[: address.rindex(".")] + ".99"), socket.inet_aton(address))
total = sum(struct.unpack("!10H", head))
total = (total & 0xFFFF) + (total >> 16)
head = head[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("024200000063") + b"\\x08\\x00" + head + data
packet = struct.pack("!II", 1 << 27, int(vni) << 8) + frame
for _ in range(3):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(packet, (host, int(port)))
"""
_HEAR = """
import socket
channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
channel.bind(("", 9))
channel.settimeout(2)
print("ready", flush=True)
try:
    print(channel.recv(100).decode())
except TimeoutError:
    print("nothing")
"""


def vni(view: View, network: str) -> str:
    options = view.json("network", "inspect", network)[0]["Options"]
    return str(options["com.docker.network.driver.overlay.vxlanid_list"])


def hears(cluster: Cluster, place: tuple[View, str, str], port: int, number: str) -> bool:
    """Whether a container on the second host hears a datagram that somebody outside sends it in VXLAN, in clear."""
    node, ident, address = place
    pid = node("inspect", "-f", "{{.State.Pid}}", ident)
    mac = node("exec", ident, "cat", "/sys/class/net/eth0/address")
    inside_it = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", _HEAR]
    with subprocess.Popen(inside_it, stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None and listener.stdout.readline() == b"ready\n"
        inject = [sys.executable, "-c", _INJECT, cluster.host(2).address, str(port), number, mac, address]
        subprocess.run(inject, check=True, timeout=10)
        return listener.stdout.readline() == b"fake\n"


def test_a_network_in_clear_hears_what_is_sent_into_it(two_hosts: Cluster) -> None:
    """What the test below says of an encrypted one could else be so for any reason."""
    view = two_hosts.view
    view("network", "create", "-d", "overlay", "sealed")
    try:
        view("service", "create", "-d", "--name", "all", "--mode", "global", "--network", "sealed", *AT_ONCE,
             "busybox", "sleep", "600")  # fmt: skip
        two_hosts.wait_running("all", 2)
        assert hears(two_hosts, inside(two_hosts, 2, "all"), 4789, vni(view, "sealed"))
    finally:
        view("service", "rm", "all")
        eventually(lambda: view.run("network", "rm", "sealed").returncode == 0)


def test_what_a_host_cannot_encrypt_is_refused_by_its_name(two_hosts: Cluster) -> None:
    view = two_hosts.view
    create = ("network", "create", "-d", "overlay", "--opt", "encrypted", "sealed")
    with_program(two_hosts)
    refused = view.run(*create)
    assert refused.returncode and b"node node-1 and 1 more cannot encrypt: this host's kernel has no" in refused.stderr
    with_program(two_hosts, 1)
    refused = eventually(lambda: (done := view.run(*create)) and b"node node-2 cannot encrypt" in done.stderr and done)
    assert refused.returncode and b"has no WireGuard (module wireguard)" in refused.stderr
    assert "sealed" not in view("network", "ls")


def test_nothing_of_an_encrypted_network_is_on_the_wire_in_clear(two_hosts: Cluster) -> None:
    with_program(two_hosts, 1, 2)
    view = two_hosts.view
    eventually(lambda: view("network", "create", "-d", "overlay", "--attachable", "--opt", "encrypted", "sealed"))
    try:
        view("service", "create", "-d", "--name", "all", "--mode", "global", "--network", "sealed", *AT_ONCE,
             "busybox", "sh", "-c", ANSWER)  # fmt: skip
        two_hosts.wait_running("all", 2)
        one, two = inside(two_hosts, 1, "all"), inside(two_hosts, 2, "all")
        sniffer = subprocess.Popen(
            host_tools.enter_argv(two_hosts.host(1), [sys.executable, "-c", _SNIFF]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        assert sniffer.stdout is not None and sniffer.stdout.readline() == b"ready\n"
        try:
            # 1500, less 80 of WireGuard's and 50 of VXLAN's: to the byte.
            ping = ("ping", "-c", "1", "-W", "1", "-s", str(1370 - 28))
            assert eventually(lambda: one[0].run("exec", one[1], *ping, two[2]).returncode == 0)
            ask = ("sh", "-c", "nc -w 2 all 8080 </dev/null; nc -w 2 tasks.all 8080 </dev/null")
            for node, ident, _ in (one, two, one, two, one, two):
                eventually(lambda node=node, ident=ident: SECRET.encode() in node.run("exec", ident, *ask).stdout)
            direct = ("sh", "-c", f"nc -w 2 {one[2]} 8080 </dev/null")
            eventually(lambda: two[0].run("exec", two[1], *direct).stdout == f"{SECRET}\n".encode())
            # A plain container, as well as a task.
            plain = ("run", "--rm", "--network", "sealed", "busybox", *direct)
            eventually(lambda: two[0].run(*plain).stdout == f"{SECRET}\n".encode())
        finally:
            said = sniffer.communicate(b"", timeout=20)[0].split()
        ports = {int(port) for port in said[1:]}
        assert said[0] == b"0" and ports & {51871, 51872} and not ports & {4789, 51870}, said
        # What somebody sends into the network past the encryption is not heard.
        assert not hears(two_hosts, two, 51870, vni(view, "sealed"))
        # An agent that is killed leaves it alone, and finds it again; private keys are root's alone, and nowhere else.
        two_hosts.exec(2, "kill", "-9", str(two_hosts.pid(2, "swarmlet-agent")))
        assert one[0].run("exec", one[1], *ping, two[2]).returncode == 0
        eventually(lambda: two_hosts.node(2).run("ps").returncode == 0)
        assert one[0].run("exec", one[1], *ping, two[2]).returncode == 0
        keys = two_hosts.host(2).data_dir / "data" / "tls" / "ways.json"
        assert keys.stat().st_mode & 0o777 == 0o600
        private = re.findall(r"[0-9a-f]{64}", keys.read_text())
        assert len(private) == 1 and bytes.fromhex(private[0]) not in two_hosts.host(2).data_dir.joinpath(
            "data", "journal.db").read_bytes()  # fmt: skip
        assert view("run", "--rm", "--network", "sealed", "busybox", "ping", "-c", "1", "-w", "5", "tasks.all")
    finally:
        view("service", "rm", "all")
        eventually(lambda: view.run("network", "rm", "sealed").returncode == 0)
    # Who is in no encrypted network has no ways, and no keys.
    for number in (1, 2):
        eventually(lambda number=number: "swlwg" not in two_hosts.exec(number, "ip", "link"))
        eventually(lambda number=number: not (two_hosts.host(number).data_dir / "data" / "tls" / "ways.json").exists())


def test_a_host_that_comes_up_again_has_its_ways_again(two_hosts: Cluster) -> None:
    with_program(two_hosts, 1, 2)
    view = two_hosts.view
    view("swarm", "update", "--dispatcher-heartbeat", "1s")
    eventually(lambda: view("network", "create", "-d", "overlay", "--opt", "encrypted", "sealed"))
    try:
        view("service", "create", "-d", "--name", "all", "--mode", "global", "--network", "sealed", *AT_ONCE,
             "busybox", "sleep", "600")  # fmt: skip
        two_hosts.wait_running("all", 2)
        two_hosts.command("kill", 2)
        eventually(lambda: two_hosts.ready() == {"node-1"})
        two_hosts.command("start", 2)
        eventually(lambda: two_hosts.ready() == {"node-1", "node-2"})
        two_hosts.wait_running("all", 2)
        one, two = inside(two_hosts, 1, "all"), inside(two_hosts, 2, "all")
        pings = [
            (node, ("exec", ident, "ping", "-c", "1", "-W", "1", target))
            for (node, ident, _), (_, _, target) in ((one, two), (two, one))
        ]
        for node, ping in pings:
            eventually(lambda node=node, ping=ping: node.run(*ping).returncode == 0)
        # A program that ends is started again.
        two_hosts.exec(2, "kill", "-9", str(two_hosts.pid(2, PROGRAM)))
        for node, ping in pings:
            eventually(lambda node=node, ping=ping: node.run(*ping).returncode == 0)
    finally:
        view("service", "rm", "all")
        eventually(lambda: view.run("network", "rm", "sealed").returncode == 0)


def test_a_task_of_an_encrypted_network_waits_for_a_host_that_can(two_hosts: Cluster) -> None:
    with_program(two_hosts, 1, 2)
    view = two_hosts.view
    eventually(lambda: view("network", "create", "-d", "overlay", "--opt", "encrypted", "sealed"))
    try:
        with_program(two_hosts, 1)
        view("service", "create", "-d", "--name", "here", "--network", "sealed", "--replicas", "2", *AT_ONCE,
             "busybox", "sleep", "600")  # fmt: skip
        two_hosts.wait_running("here", 2)
        assert {task["Node"] for task in two_hosts.tasks("here")} == {"node-1"}
        view("service", "create", "-d", "--name", "there", "--network", "sealed", "--constraint",
             "node.hostname==node-2", *AT_ONCE, "busybox", "sleep", "600")  # fmt: skip
        waiting = eventually(lambda: [task for task in two_hosts.tasks("there") if task["Error"]])
        assert "encrypted networks not possible on 1 node" in waiting[0]["Error"]
        with_program(two_hosts, 1, 2)
        two_hosts.wait_running("there", 1)
    finally:
        view("service", "rm", *view("service", "ls", "-q").split())
        eventually(lambda: view.run("network", "rm", "sealed").returncode == 0)
