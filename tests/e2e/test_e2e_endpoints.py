"""A container's places in its networks: what is asked of each, what is shown, what changes while it runs."""

from __future__ import annotations

import json
import time

import pytest
from e2e_cluster import Cluster, eventually
from network_tools import address, get, serve

pytestmark = pytest.mark.usefixtures("no_networks_left")


def test_every_wish_of_a_network_option_is_done(cluster: Cluster) -> None:
    node = cluster.node(1)
    node("network", "create", "--subnet", "10.97.0.0/24", "--ipv6", "--subnet", "fd00:97::/64", "front")
    node("network", "create", "back")
    front = (
        "name=front,alias=web,alias=www,ip=10.97.0.44,ip6=fd00:97::44,mac-address=02:42:00:00:00:44,"
        "driver-opt=com.docker.network.endpoint.ifname=wan0,driver-opt=colour=red,"
        "driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    )
    serve(node, "one", "--network", front, "--network", "name=back,gw-priority=5")
    serve(node, "two", "--network", "front")
    shown = node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]
    assert (shown["front"]["IPAddress"], shown["front"]["GlobalIPv6Address"]) == ("10.97.0.44", "fd00:97::44")
    assert shown["front"]["MacAddress"] == "02:42:00:00:00:44" and shown["front"]["DriverOpts"]["colour"] == "red"
    assert shown["front"]["Aliases"] == ["web", "www"] and shown["back"]["GwPriority"] == 5
    links = node("exec", "one", "ip", "-o", "addr")
    assert "wan0    inet 10.97.0.44/24" in links and "eth0" in links
    assert "link/ether 02:42:00:00:00:44" in node("exec", "one", "ip", "link", "show", "wan0")
    assert node("exec", "one", "cat", "/proc/sys/net/ipv4/conf/wan0/log_martians") == "1"
    # The network with the highest priority has the default route, until the container is taken off it.
    assert "dev eth0" in _default(node("exec", "one", "ip", "route"))
    assert eventually(lambda: get(node, "two", "http://www/")) == "one"
    node("network", "disconnect", "back", "one")
    assert "via 10.97.0.1 dev wan0" in _default(node("exec", "one", "ip", "route"))


def _default(routes: str) -> str:
    return next(line for line in routes.splitlines() if line.startswith("default"))


def test_a_container_that_restarts_keeps_its_address_and_its_network(cluster: Cluster) -> None:
    node = cluster.node(2)
    ident = node("network", "create", "own")
    serve(node, "one", "--network", "own")
    before = address(node, "one", "own")
    node("restart", "-t", "0", "one")
    assert address(node, "one", "own") == before
    node("stop", "-t", "0", "one")
    rest = node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]["own"]
    assert (rest["NetworkID"], rest["IPAddress"], rest["EndpointID"]) == (ident, "", "")
    serve(node, "two", "--network", "own")
    node("start", "one")
    assert address(node, "one", "own") == before != address(node, "two", "own")


def test_older_clients_find_the_containers_own_names_among_its_aliases(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("network", "create", "own")
    ident = serve(node, "one", "--network", "own", "--network-alias", "web")

    def seen(version: str) -> dict[str, list[str] | None]:
        done = node.run("inspect", "one", env={"DOCKER_API_VERSION": version})
        place = json.loads(done.stdout)[0]["NetworkSettings"]["Networks"]["own"]
        return {name: place.get(name) for name in ("Aliases", "DNSNames")}

    assert seen("1.44")["Aliases"] == ["web", ident[:12], "one"]
    assert seen("1.45") == {"Aliases": ["web"], "DNSNames": ["one", "web", ident[:12]]}


def test_connect_and_disconnect_tell_of_each_and_refuse_in_dockers_words(cluster: Cluster) -> None:
    node = cluster.node(3)
    own = node("network", "create", "own")
    ident = serve(node, "one")
    node("run", "-d", "--name", "shared", "--network", "container:one", "busybox", "sleep", "600")
    node("run", "-d", "--name", "hosted", "--network", "host", "busybox", "sleep", "600")
    node("run", "-d", "--name", "alone", "--network", "none", "busybox", "sleep", "600")
    for args, said in (
        (("connect", "nothing", "one"), b"network nothing not found"),
        (("connect", "own", "nobody"), b"No such container: nobody"),
        (("connect", "bridge", "one"), b"endpoint with name one already exists in network bridge"),
        (("connect", "--ip", "172.31.255.9", "own", "one"), b"only when connecting to networks with user configured"),
        (("connect", "host", "one"), b"container must be created in host network mode"),
        (("connect", "none", "one"), b"with one of the networks in private (none) mode"),
        (("connect", "own", "alone"), b"with one of the networks in private (none) mode"),
        (("connect", "own", "hosted"), b"cannot be connected to any other network"),
        (("connect", "own", "shared"), b"container sharing network namespace with another container"),
        (("disconnect", "own", "one"), f"container {ident} is not connected to network own".encode()),
        (("disconnect", "host", "hosted"), b"cannot disconnect container from host network"),
    ):
        done = node.run("network", *args)
        assert done.returncode == 1 and said in done.stderr, (args, done.stderr)
    node("network", "connect", "own", "one")
    node("network", "disconnect", "own", "one")
    until = f"{time.time():.9f}"  # "0s" would be the beginning of this second
    told = node(
        "events", "--since", "60s", "--until", until, "--filter", "type=network", "--filter", f"network={own}",
        "--format", "{{json .}}",
    )  # fmt: skip
    events = [json.loads(line) for line in told.splitlines()]
    assert [event["Action"] for event in events] == ["create", "connect", "disconnect"]
    assert events[0]["Actor"] == {"ID": own, "Attributes": {"name": "own", "type": "bridge"}}
    assert events[1]["Actor"] == {"ID": own, "Attributes": {"name": "own", "type": "bridge", "container": ident}}
    assert {event["scope"] for event in events} == {"local"}
