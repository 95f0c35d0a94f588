"""What tests of plain containers on networks across hosts have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from e2e_cluster import Cluster, View, eventually

NETWORK = "wide"
#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
#: Answers with the host name of the container, on port 80.
WEB = ("busybox", "sh", "-c", "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www")


@contextmanager
def attachable(cluster: Cluster) -> Iterator[str]:
    """An attachable network; behind the block nothing of it is left on any host."""
    cluster.view("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.66.0.0/24", NETWORK)
    yield NETWORK
    clear(cluster)
    eventually(lambda: cluster.view.run("network", "rm", NETWORK).returncode == 0)
    for number in (1, 2, 3):
        eventually(lambda number=number: not re.search(r"^(ov|vx)-", cluster.exec(number, "ip", "-br", "link"), re.M))


def clear(cluster: Cluster) -> None:
    if services := cluster.view("service", "ls", "-q").split():
        cluster.view("service", "rm", *services)
    for number in (1, 2, 3):
        node = cluster.node(number)
        if left := node("ps", "-aq", "--filter", "label=test=attachable").split():
            node("rm", "-f", *left)


def sleeper(view: View, name: str, *args: str) -> str:
    return view("run", "-d", "--init", "--label", "test=attachable", "--name", name, *args, "busybox", "sleep", "600")


def shown(cluster: Cluster, network: str = NETWORK) -> dict[str, str]:
    """Container name -> address, as the manager knows them."""
    told = cluster.view.json("network", "inspect", network)[0]["Containers"]
    return {one["Name"]: one["IPv4Address"].partition("/")[0] for one in told.values()}


def names_of(node: View, ident: str, name: str) -> set[str]:
    said = node.run("exec", ident, "nslookup", "-type=a", name).stdout.decode()
    return set(re.findall(r"^Address: (\d+\.\d+\.\d+\.\d+)$", said, re.M))


def reaches(node: View, ident: str, target: str) -> bool:
    return node.run("exec", ident, "ping", "-c", "1", "-W", "1", target).returncode == 0
