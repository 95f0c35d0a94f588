"""Services' virtual addresses: every replica is reached from every node, only those that serve, and without gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from e2e_cluster import Cluster, View, eventually

NETWORK = "front"
#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
#: An HTTP server that answers with its container's host name.
WEB = "mkdir -p /w; hostname >/w/index.html; exec httpd -f -p 8080 -h /w"
ASK = r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 {} 8080 | tail -n 1"


@pytest.fixture
def asker(cluster: Cluster) -> Iterator[dict[int, tuple[View, str]]]:
    """A container on each node, in the network: node number -> its engine and the container."""
    cluster.view("network", "create", "-d", "overlay", NETWORK)
    cluster.view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", NETWORK, *AT_ONCE,
                 "busybox", "sleep", "600")  # fmt: skip
    cluster.wait_running("asker", 3)
    yield {
        number: (node, node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=asker"))
        for number in (1, 2, 3)
        for node in [cluster.node(number)]
    }
    cluster.view("service", "rm", *cluster.view("service", "ls", "-q").split())
    eventually(lambda: cluster.view.run("network", "rm", NETWORK).returncode == 0)


def ask(node: View, ident: str, target: str, times: int = 1) -> list[str]:
    """What connections one after the other were answered; "" for one that failed."""
    loop = f"for i in $(seq {times}); do echo \"$({ASK.format(target)})\"; done"
    return node.run("exec", ident, "sh", "-c", loop, timeout=120).stdout.decode().split("\n")[:times]


def vip(cluster: Cluster, service: str) -> str:
    endpoint = eventually(lambda: cluster.view.json("service", "inspect", service)[0]["Endpoint"].get("VirtualIPs"))
    return endpoint[0]["Addr"].partition("/")[0]


def test_a_virtual_address_reaches_every_replica_from_every_node(
    cluster: Cluster, asker: dict[int, tuple[View, str]]
) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", NETWORK, *AT_ONCE,
                 "busybox", "sh", "-c", WEB)  # fmt: skip
    cluster.wait_running("web", 3)
    address = vip(cluster, "web")
    names = {
        cluster.node(number)("inspect", "-f", "{{.Config.Hostname}}", ident)
        for number in (1, 2, 3)
        for ident in cluster.node(number)("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web").split()
    }
    for node, ident in asker.values():
        said = node("exec", ident, "nslookup", "-type=a", "web")
        assert re.findall(r"^Address: (\S+)$", said, re.M) == [address]
        eventually(lambda node=node, ident=ident: set(ask(node, ident, "web", 24)) == names)


def test_a_service_without_tasks_refuses_at_once_and_one_with_serves_again(
    cluster: Cluster, asker: dict[int, tuple[View, str]]
) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--network", NETWORK, *AT_ONCE, "busybox", "sh", "-c",
                 WEB)  # fmt: skip
    cluster.wait_running("web", 1)
    node, ident = asker[2]
    eventually(lambda: ask(node, ident, "web") != [""])
    cluster.view("service", "scale", "-d", "web=0")
    refused = eventually(
        lambda: b"refused" in node.run("exec", ident, "sh", "-c", "nc -w 5 web 8080 </dev/null").stderr
    )
    assert refused
    cluster.view("service", "scale", "-d", "web=2")
    cluster.wait_running("web", 2)
    eventually(lambda: len(set(ask(node, ident, "web", 12))) == 2)


def test_no_connection_fails_while_a_service_is_updated(cluster: Cluster, asker: dict[int, tuple[View, str]]) -> None:
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", NETWORK, *AT_ONCE,
                 "--update-order", "start-first", "--update-monitor", "1s", "--health-cmd",
                 "wget -q -O - http://127.0.0.1:8080/ || nc -z 127.0.0.1 8080", "--health-interval", "1s",
                 "--health-start-interval", "200ms", "--health-start-period", "5s",
                 "busybox", "sh", "-c", WEB)  # fmt: skip
    cluster.wait_running("web", 3)
    node, ident = asker[3]
    eventually(lambda: len(set(ask(node, ident, "web", 24))) == 3)
    before = set(ask(node, ident, "web", 24))
    cluster.view("service", "update", "-d", "--env-add", "V=2", "web")
    heard: list[str] = []
    eventually(lambda: heard.extend(ask(node, ident, "web", 50)) or cluster.view.json(
        "service", "inspect", "web")[0].get("UpdateStatus", {}).get("State") == "completed", 60)  # fmt: skip
    after = set(ask(node, ident, "web", 24))
    assert "" not in heard and len(heard) >= 100, heard.count("")
    assert len(after) == 3 and not after & before


def test_a_stack_of_services_finds_itself_by_name(cluster: Cluster) -> None:
    compose = f"""
services:
  web:
    image: busybox
    command: ["sh", "-c", "{WEB}"]
    stop_grace_period: 0s
    deploy: {{replicas: 2}}
  asker:
    image: busybox
    command: ["sleep", "600"]
    stop_grace_period: 0s
    deploy: {{mode: global}}
"""
    done = cluster.view.run("stack", "deploy", "--detach=true", "-c", "-", "shop", input=compose.encode())
    assert done.returncode == 0, done.stderr
    try:
        cluster.wait_running("shop_web", 2)
        cluster.wait_running("shop_asker", 3)
        shown = cluster.view.json("network", "inspect", "-v", "shop_default")[0]
        assert shown["Driver"] == "overlay" and set(shown["Services"]) == {"shop_web", "shop_asker"}
        assert len(shown["Services"]["shop_web"]["Tasks"]) == 2 and len(shown["Peers"]) == 3
        node = cluster.node(1)
        ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=shop_asker")
        eventually(lambda: len(set(ask(node, ident, "web", 12))) == 2)
    finally:
        cluster.view("stack", "rm", "shop")
        eventually(lambda: not cluster.view("network", "ls", "-q", "--filter", "name=shop_default"))
