"""What tests of networks have in common."""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
import sys
from collections.abc import Iterator

from e2e_cluster import Cluster, View

#: Answers every connection with its own host name, then the peer's address.
HTTPD = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p {port} -h /www"


def serve(view: View, name: str, *args: str, port: int = 80) -> str:
    """A web server that tells its host name; its container id."""
    return view(
        "run", "-d", "--name", name, "--hostname", name, *args, "busybox", "sh", "-c", HTTPD.format(port=port)
    )


def get(view: View, container: str, url: str) -> str:
    """A page, fetched inside a container."""
    return view("exec", container, "timeout", "5", "wget", "-qO-", url)


def address(view: View, container: str, network: str = "bridge") -> str:
    """The container's address in a network."""
    shown = view.json("inspect", container)[0]["NetworkSettings"]["Networks"][network]["IPAddress"]
    assert ipaddress.ip_address(shown)
    return str(shown)


def fetch(cluster: Cluster, number: int, url: str) -> str:
    """A page, fetched on a host."""
    return cluster.exec(number, "busybox", "timeout", "5", "busybox", "wget", "-qO-", url).strip()


_UDP_ECHO = """
import socket, sys
channel = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
channel.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, source = channel.recvfrom(2048)
    channel.sendto(sys.argv[2].encode() + b" " + data, source)
"""
_UDP_ASK = """
import socket, sys
channel = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
channel.settimeout(2)
channel.connect((sys.argv[1], int(sys.argv[2])))
channel.send(b"?")
print(channel.recv(2048).decode())
"""


def _inside(view: View, container: str, code: str, *args: str) -> list[str]:
    """Python in the network of a container: busybox speaks no UDP."""
    pid = view("inspect", "-f", "{{.State.Pid}}", container)
    return ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", code, *args]


@contextlib.contextmanager
def udp_echo(view: View, container: str, port: int, tag: str) -> Iterator[None]:
    """A datagram to a port of either family of a container is answered with "tag datagram"."""
    argv = _inside(view, container, _UDP_ECHO, str(port), tag)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def udp_ask(view: View, container: str, address: str, port: int) -> str:
    """What a datagram from inside a container is answered, "" for nothing."""
    done = subprocess.run(_inside(view, container, _UDP_ASK, address, str(port)), capture_output=True, text=True)
    return done.stdout.strip()
