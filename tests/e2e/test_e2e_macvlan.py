"""Networks of the driver macvlan: containers with addresses of the hosts' own network."""

from __future__ import annotations

import ipaddress

import pytest
from e2e_cluster import Cluster, View, eventually
from network_tools import address, get, serve

pytestmark = pytest.mark.usefixtures("no_networks_left")


def site(cluster: Cluster) -> tuple[str, str]:
    """The clusters' subnet (each node sits in it with eth0), and two addresses of it that no node has, far apart."""
    shown = cluster.exec(1, "ip", "-o", "-4", "addr", "show", "eth0").split()
    subnet = ipaddress.ip_interface(shown[shown.index("inet") + 1]).network
    return str(subnet), str(subnet.broadcast_address - 9)


def create(node: View, subnet: str, gateway: str, *args: str) -> str:
    return node(
        "network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", subnet, "--gateway", gateway, *args
    )  # fmt: skip


def test_containers_of_two_hosts_are_on_one_wire(cluster: Cluster) -> None:
    subnet, free = site(cluster)
    other = str(ipaddress.ip_address(free) + 1)
    for number in (1, 2):
        create(cluster.node(number), subnet, cluster.layout.gateway, "site")
    serve(cluster.node(1), "one", "--network", "site", "--ip", free, "-p", "18290:80")
    serve(cluster.node(2), "two", "--network", "site", "--ip", other)
    assert eventually(lambda: get(cluster.node(2), "two", f"http://{free}/")) == "one"
    assert eventually(lambda: get(cluster.node(1), "one", f"http://{other}/")) == "two"
    node = cluster.node(1)
    shown = node.json("network", "inspect", "site")[0]
    assert shown["Driver"] == "macvlan" and shown["Options"] == {"parent": "eth0"}
    assert shown["IPAM"]["Config"] == [{"Subnet": subnet, "Gateway": cluster.layout.gateway}]
    # Nothing of it on the host: no interface, and no published port, for the container's own are open to the site.
    assert node("port", "one") == ""
    links = cluster.exec(1, "ip", "-o", "link")
    assert "macvlan" not in links and "veth" not in links
    assert f"default via {cluster.layout.gateway}" in node("exec", "one", "ip", "route")
    # It outlives the agent and comes back with a restart.
    cluster.exec(1, "kill", "-9", str(cluster.pid(1, "swarmlet-agent")))
    assert get(cluster.node(2), "two", f"http://{free}/") == "one"
    eventually(lambda: node("restart", "-t", "0", "one"))
    assert eventually(lambda: get(cluster.node(2), "two", f"http://{free}/")) == "one"


def test_several_subnets_each_with_its_gateway(cluster: Cluster) -> None:
    node = cluster.node(3)
    node("network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", "10.70.1.0/30", "--gateway",
         "10.70.1.1", "--subnet", "10.70.2.0/24", "--gateway", "10.70.2.254", "--ip-range", "10.70.2.128/25", "two")
    # The docker command sends them in any order.
    shown = sorted(node.json("network", "inspect", "two")[0]["IPAM"]["Config"], key=lambda pool: pool["Subnet"])
    assert shown == [
        {"Subnet": "10.70.1.0/30", "Gateway": "10.70.1.1"},
        {"Subnet": "10.70.2.0/24", "Gateway": "10.70.2.254", "IPRange": "10.70.2.128/25"},
    ]

    def place(name: str, *args: str) -> tuple[str, str]:
        node("run", "-d", "--name", name, "--network", "two", *args, "busybox", "sleep", "600")
        settings = node.json("inspect", name)[0]["NetworkSettings"]["Networks"]["two"]
        assert f"default via {settings['Gateway']} " in node("exec", name, "ip", "route")
        assert f"{settings['IPAddress']}/{settings['IPPrefixLen']}" in node("exec", name, "ip", "addr")
        return settings["IPAddress"], settings["Gateway"]

    assert place("one") == ("10.70.1.2", "10.70.1.1")
    assert place("full") == ("10.70.2.128", "10.70.2.254")  # the first subnet has no other
    assert place("wish", "--ip", "10.70.2.9") == ("10.70.2.9", "10.70.2.254")
    done = node.run("run", "--rm", "--network", "two", "--ip", "10.70.3.9", "busybox", "true")
    outside = b"no configured subnet or ip-range contain the IP address 10.70.3.9"
    assert done.returncode == 125 and outside in done.stderr
    # The next agent knows what is leased.
    cluster.exec(3, "kill", "-9", str(cluster.pid(3, "swarmlet-agent")))
    eventually(lambda: node.run("ps").returncode == 0)
    taken = node.run("run", "--rm", "--network", "two", "--ip", "10.70.2.9", "busybox", "true")
    assert taken.returncode == 125 and b"Address already in use" in taken.stderr
    node("rm", "-f", "one")
    assert place("again") == ("10.70.1.2", "10.70.1.1")
    overlapping = node.run("network", "create", "-d", "macvlan", "--subnet", "10.70.2.0/28", "more")
    assert overlapping.returncode == 1 and b"Pool overlaps" in overlapping.stderr
    plain = node.run("network", "create", "--subnet", "10.71.1.0/24", "--subnet", "10.71.2.0/24", "plain")
    assert plain.returncode == 1 and b"bridge driver doesn't support multiple subnets" in plain.stderr


def test_a_closed_one_needs_no_parent_and_names_work(cluster: Cluster) -> None:
    node = cluster.node(3)
    before = cluster.exec(3, "ip", "-o", "link").count("\n")
    node("network", "create", "-d", "macvlan", "closed")
    serve(node, "one", "--network", "closed")
    serve(node, "two")
    node("network", "connect", "--alias", "friend", "closed", "two")
    assert eventually(lambda: get(node, "two", "http://one/")) == "one"
    assert eventually(lambda: get(node, "one", "http://friend/")) == "two"
    assert "default" not in node("exec", "one", "ip", "route")
    assert node.run("exec", "one", "ping", "-c", "1", "-W", "1", cluster.layout.gateway).returncode != 0
    node("network", "disconnect", "closed", "two")
    assert "eth1" not in node("exec", "two", "ip", "link")
    assert address(node, "two")
    node("rm", "-f", "one", "two")
    assert node("network", "rm", "closed") == "closed"
    eventually(lambda: cluster.exec(3, "ip", "-o", "link").count("\n") == before)


def test_what_cannot_be_is_refused_in_dockers_words(cluster: Cluster) -> None:
    node = cluster.node(3)
    for option, said in (
        ("parent=lo", b"loopback interface is not a valid macvlan parent link"),
        ("parent=nothing", b"required interface name format is: name.vlan_id"),
        ("parent=nothing.5", b"parent interface was not found on the host: nothing"),
        ("macvlan_mode=wild", b"requested macvlan mode 'wild' is not valid"),
        ("colour=red", b"network option colour is not supported"),
    ):
        done = node.run("network", "create", "-d", "macvlan", "-o", option, "refused")
        assert done.returncode == 1 and said in done.stderr, done.stderr
    assert "refused" not in node("network", "ls")
