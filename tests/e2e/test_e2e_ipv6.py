"""Local networks with IPv6, as the stock docker command makes and shows them."""

from __future__ import annotations

import ipaddress
import subprocess
import sys

import pytest
from e2e_cluster import Cluster, eventually
from network_tools import fetch, get, serve

from swarmlet.local import hosts

pytestmark = pytest.mark.usefixtures("no_networks_left")


def test_a_network_with_ipv6_and_its_containers(cluster: Cluster) -> None:
    node = cluster.node(1)
    node("network", "create", "--ipv6", "--subnet", "fd00:e2e::/64", "--subnet", "10.98.0.0/24", "six")
    shown = node.json("network", "inspect", "six")[0]
    assert shown["EnableIPv6"] is True and shown["EnableIPv4"] is True
    assert shown["IPAM"]["Config"] == [
        {"Subnet": "10.98.0.0/24", "Gateway": "10.98.0.1"},
        {"Subnet": "fd00:e2e::/64", "Gateway": "fd00:e2e::1"},
    ]
    serve(node, "one", "--network", "six", "--ip6", "fd00:e2e::77", "--ip", "10.98.0.77")
    serve(node, "two", "--network", "six")
    place = node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]["six"]
    assert (place["GlobalIPv6Address"], place["GlobalIPv6PrefixLen"]) == ("fd00:e2e::77", 64)
    assert place["IPv6Gateway"] == "fd00:e2e::1"
    assert place["IPAMConfig"] == {"IPv4Address": "10.98.0.77", "IPv6Address": "fd00:e2e::77"}
    attached = node.json("network", "inspect", "six")[0]["Containers"].values()
    assert {(entry["Name"], entry["IPv6Address"]) for entry in attached} == {
        ("one", "fd00:e2e::77/64"),
        ("two", "fd00:e2e::2/64"),
    }
    assert eventually(lambda: get(node, "two", "http://[fd00:e2e::77]/")) == "one"
    assert eventually(lambda: get(node, "two", "http://one/")) == "one"
    found = node("exec", "two", "nslookup", "one")
    assert "10.98.0.77" in found and "fd00:e2e::77" in found
    assert "default via fd00:e2e::1 dev eth0" in node("exec", "one", "ip", "-6", "route")
    assert "fd00:e2e::77\tone" in node("exec", "one", "cat", "/etc/hosts")
    taken = node.run("run", "--rm", "--network", "six", "--ip6", "fd00:e2e::77", "busybox", "true")
    assert taken.returncode == 125 and b"Address already in use" in taken.stderr, taken.stderr
    wrong = node.run("run", "--rm", "--network", "six", "--ip6", "fd00:bad::7", "busybox", "true")
    assert wrong.returncode == 125 and b"fd00:bad::7" in wrong.stderr, wrong.stderr
    node("restart", "-t", "0", "one")
    assert node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"] == "fd00:e2e::77"


def test_without_a_subnet_a_unique_local_one_is_chosen(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("network", "create", "--ipv6", "auto")
    (v4, v6) = node.json("network", "inspect", "auto")[0]["IPAM"]["Config"]
    assert "." in v4["Subnet"]
    subnet = ipaddress.IPv6Network(v6["Subnet"])
    assert subnet.prefixlen == 64 and subnet.subnet_of(ipaddress.IPv6Network("fd00::/8"))
    node("run", "--rm", "--network", "auto", "busybox", "ping", "-6", "-c", "1", "-W", "2", v6["Gateway"])
    # IPv6 alone works as well; neither does not.
    node("network", "create", "--ipv4=false", "--ipv6", "alone")
    shown = node.json("network", "inspect", "alone")[0]
    assert (shown["EnableIPv4"], shown["EnableIPv6"], len(shown["IPAM"]["Config"])) == (False, True, 1)
    links = node("run", "--rm", "--network", "alone", "busybox", "ip", "-o", "addr", "show", "eth0")
    assert "inet6 fd" in links and "inet " not in links
    neither = node.run("network", "create", "--ipv4=false", "neither")
    assert neither.returncode == 1 and b"IPv4 or IPv6 must be enabled" in neither.stderr, neither.stderr


def test_ports_are_published_on_both_families(cluster: Cluster) -> None:
    node = cluster.node(1)
    node("network", "create", "--ipv6", "six")
    ident = serve(node, "web", "--network", "six", "-p", "18190:80", "-p", "[::1]:18191:80")
    assert set(node("port", "web", "80/tcp").splitlines()) == {"0.0.0.0:18190", "[::]:18190", "[::1]:18191"}
    row = node.rows("ps", "--filter", f"id={ident}")[0]["Ports"]
    assert "0.0.0.0:18190->80/tcp, [::]:18190->80/tcp" in row, row
    for url in ("http://[::1]:18190/", "http://127.0.0.1:18190/", "http://[::1]:18191/"):
        assert eventually(lambda url=url: fetch(cluster, 1, url)) == "web"
    # A container without IPv6 is published there all the same.
    serve(node, "four", "-p", "18192:80")
    assert node("port", "four").splitlines() == ["80/tcp -> 0.0.0.0:18192", "80/tcp -> [::]:18192"]
    assert eventually(lambda: fetch(cluster, 1, "http://[::1]:18192/")) == "four"
    taken = node.run("run", "--rm", "-p", "[::1]:18192:80", "busybox", "true")
    assert taken.returncode == 125 and b"Bind for [::1]:18192 failed: port is already allocated" in taken.stderr
    assert b"driver failed programming external connectivity on endpoint" in taken.stderr


def test_published_ports_of_ipv6_outlive_the_agent(cluster: Cluster) -> None:
    node = cluster.node(3)
    node("network", "create", "--ipv6", "six")
    serve(node, "web", "--network", "six", "-p", "18193:80")
    serve(node, "peer", "--network", "six")
    assert eventually(lambda: fetch(cluster, 3, "http://[::1]:18193/")) == "web"
    cluster.exec(3, "kill", "-9", str(cluster.pid(3, "swarmlet-agent")))
    assert eventually(lambda: fetch(cluster, 3, "http://[::1]:18193/")) == "web"
    assert eventually(lambda: "fd" in node("exec", "peer", "nslookup", "web"))
    assert get(node, "peer", "http://web/") == "web"


TALK = """
import socket, sys
with socket.create_connection(("::1", int(sys.argv[1])), 20) as line:
    for word in sys.stdin:
        try:
            line.sendall(word.encode())
            got = line.recv(100).decode()
        except ConnectionError:
            got = ""
        print(got or "over\\n", end="", flush=True)
"""


def test_a_relayed_connection_outlives_the_agent_and_ends_with_its_container(cluster: Cluster) -> None:
    """A container without IPv6 on [::1]: the kernel cannot lead there, a process of its own does."""
    node = cluster.node(3)
    node("run", "-d", "--name", "echo", "-p", "18194:7", "busybox", "nc", "-ll", "-p", "7", "-e", "cat")
    argv = hosts.enter_argv(cluster.host(3), [sys.executable, "-c", TALK, "18194"])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None

        def say(word: str) -> str:
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(f"{word}\n")
            client.stdin.flush()
            return client.stdout.readline()

        try:
            assert say("one") == "one\n"
            killed = cluster.pid(3, "swarmlet-agent")
            cluster.exec(3, "kill", "-9", str(killed))
            assert say("two") == "two\n"
            eventually(lambda: node.run("ps").returncode == 0)
            assert cluster.pid(3, "swarmlet-agent") != killed and say("three") == "three\n"
            node("rm", "-f", "echo")
            assert say("four") == "over\n"  # as the relay has closed its end
        finally:
            client.stdin.close()
            client.wait(30)
