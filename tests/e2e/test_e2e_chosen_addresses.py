"""Addresses of services and tasks that their user has chosen, and host names from templates."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from e2e_cluster import Cluster, View, eventually

SUBNET = "10.91.0.0/24"
AT_ONCE = ("--stop-grace-period", "0s")
SLEEP = ("busybox", "sleep", "600")


@pytest.fixture
def network(cluster: Cluster) -> Iterator[str]:
    cluster.view("network", "create", "-d", "overlay", "--subnet", SUBNET, "fixed")
    yield "fixed"
    services = cluster.view("service", "ls", "-q").split()
    if services:
        cluster.view("service", "rm", *services)
    eventually(lambda: cluster.view.run("network", "rm", "fixed").returncode == 0)


def attach(**options: str) -> tuple[str, str]:
    """--network with driver options swarmlet.NAME."""
    words = "".join(f",driver-opt=swarmlet.{name}={value}" for name, value in options.items())
    return "--network", f"name=fixed{words}"


def places(cluster: Cluster, service: str) -> dict[str, tuple[View, str]]:
    """Task name up to its slot -> its engine and container, of what runs."""
    found = {}
    for number in (1, 2, 3):
        node = cluster.node(number)
        label = f"label=com.docker.swarm.service.name={service}"
        for row in node.rows("ps", "--filter", label, "--no-trunc"):
            found[row["Names"].rpartition(".")[0]] = (node, row["ID"])
    return found


def inside(node: View, ident: str, *command: str) -> str:
    return node("exec", ident, *command)


def resolved(node: View, ident: str, name: str) -> list[str]:
    said = node.run("exec", ident, "nslookup", "-type=a", name).stdout.decode()
    return re.findall(r"^Address: (\d\S+)$", said, re.M)


def test_a_service_and_its_tasks_have_the_addresses_that_were_chosen(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--replicas", "2", *AT_ONCE,
         *attach(vip="10.91.0.50", ip="10.91.0.61 10.91.0.62", mac="06:00:00:00:00:61 06:00:00:00:00:62"),
         *SLEEP)  # fmt: skip
    view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", network, *AT_ONCE, *SLEEP)
    cluster.wait_running("web", 2)
    cluster.wait_running("asker", 3)
    shown = view.json("service", "inspect", "web")[0]
    assert [vip["Addr"] for vip in shown["Endpoint"]["VirtualIPs"]] == ["10.91.0.50/24"]
    for slot, (node, ident) in sorted(places(cluster, "web").items()):
        number = slot[-1]
        settings = node.json("inspect", ident)[0]["NetworkSettings"]["Networks"]["fixed"]
        chosen = (f"10.91.0.6{number}", f"06:00:00:00:00:6{number}")
        assert (settings["IPAddress"], settings["MacAddress"]) == chosen
        assert f"link/ether {chosen[1]}" in inside(node, ident, "ip", "link", "show", "eth0")
    for node, ident in places(cluster, "asker").values():
        eventually(lambda node=node, ident=ident: resolved(node, ident, "web") == ["10.91.0.50"])
        for slot in "12":
            assert resolved(node, ident, f"{slot}.web") == [f"10.91.0.6{slot}"]
            # Across nodes too: the others' bridges know the MAC address that was chosen.
            inside(node, ident, "ping", "-c", "1", "-W", "2", f"10.91.0.6{slot}")
    containers = view.json("network", "inspect", network)[0]["Containers"]
    told = {one["MacAddress"] for one in containers.values() if one["Name"].startswith("web.")}
    assert told == {"06:00:00:00:00:61", "06:00:00:00:00:62"}


def test_chosen_ipv6_addresses_are_theirs_beside_any_ipv4_ones(cluster: Cluster) -> None:
    view = cluster.view
    view("network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd91:5::/64", "fixed")
    try:
        view("service", "create", "-d", "--name", "web", *AT_ONCE,
             *attach(vip6="fd91:5::50", ip6="fd91:5::0061"), *SLEEP)  # fmt: skip
        view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", "fixed", *AT_ONCE, *SLEEP)
        cluster.wait_running("web", 1)
        cluster.wait_running("asker", 3)
        shown = view.json("service", "inspect", "web")[0]["Endpoint"]["VirtualIPs"]
        assert "fd91:5::50/64" in [vip["Addr"] for vip in shown]
        ((node, ident),) = places(cluster, "web").values()
        settings = node.json("inspect", ident)[0]["NetworkSettings"]["Networks"]["fixed"]
        assert settings["GlobalIPv6Address"] == "fd91:5::61"
        for asking, asker in places(cluster, "asker").values():
            said = eventually(lambda asking=asking, asker=asker: asking("exec", asker, "nslookup", "-type=aaaa", "web"))
            assert "fd91:5::50" in said
            for address in ("fd91:5::61", "fd91:5::50"):
                inside(asking, asker, "ping", "-6", "-c", "1", "-W", "2", address)
        done = view.run("service", "create", "-d", "--name", "two", *attach(ip6="fd91:5::61"), *SLEEP)
        assert done.returncode and b"fd91:5::61 of network fixed is already in use by service web" in done.stderr
    finally:
        view("service", "rm", *view("service", "ls", "-q").split())
        eventually(lambda: view.run("network", "rm", "fixed").returncode == 0)


def test_a_replaced_task_has_the_address_again(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "db", *AT_ONCE, *attach(ip="10.91.0.70"), "--constraint",
         "node.hostname!=node-1", "--restart-delay", "0s", *SLEEP)  # fmt: skip
    before = cluster.wait_running("db", 1)[0]["ID"]
    view("service", "update", "--force", "-d", "db")
    eventually(lambda: [task["ID"] for task in cluster.running("db")] not in ([], [before]))
    again = cluster.wait_running("db", 1)[0]
    inspect = view.json("inspect", again["ID"])[0]
    assert inspect["NetworksAttachments"][0]["Addresses"] == ["10.91.0.70/24"]
    # The same after its node is lost, and when that comes back.
    number = int(again["Node"][-1])
    cluster.command("cut", number)
    try:
        moved = eventually(
            lambda: [task for task in cluster.running("db") if task["Node"] != again["Node"]], 40
        )[0]  # fmt: skip
    finally:
        cluster.command("heal", number)
    assert view.json("inspect", moved["ID"])[0]["NetworksAttachments"][0]["Addresses"] == ["10.91.0.70/24"]
    eventually(lambda: len(cluster.ready()) == 3)
    view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", network, *AT_ONCE, *SLEEP)
    cluster.wait_running("asker", 3)
    for node, ident in places(cluster, "asker").values():
        eventually(
            lambda node=node, ident=ident: node.run("exec", ident, "ping", "-c", "1", "-W", "1", "db").returncode == 0
        )


def test_what_is_taken_or_cannot_be_is_refused(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "one", *AT_ONCE, *attach(vip="10.91.0.5", ip="10.91.0.6"), *SLEEP)
    cluster.wait_running("one", 1)
    for options, more, said in (
        ({"vip": "10.91.0.5"}, (), b"address 10.91.0.5 of network fixed is already in use by service one"),
        ({"ip": "10.91.0.6"}, (), b"address 10.91.0.6 of network fixed is already in use by service one"),
        ({"ip": "10.91.0.1"}, (), b"is already in use by the network's gateway"),
        ({"ip": "10.92.0.7"}, (), b"address 10.92.0.7 is not in subnet 10.91.0.0/24"),
        ({"ip": "10.91.0.7"}, ("--replicas", "2"), b"names 1 for 2 replicas"),
        ({"ip": "10.91.0.7"}, ("--mode", "global"), b"needs a replicated service"),
        ({"ip": "10.91.0.7"}, ("--update-order", "start-first"), b"use stop-first"),
        ({"ip": "10.91.0"}, (), b"is not an IPv4 address"),
        ({"mac": "zz"}, (), b"is not a MAC address"),
        ({"vip": "10.91.0.8"}, ("--endpoint-mode", "dnsrr"), b"has no swarmlet.vip"),
        ({"colour": "red"}, (), b"option swarmlet.colour is not supported"),
    ):
        done = view.run("service", "create", "-d", "--name", "two", *more, *attach(**options), *SLEEP)
        assert done.returncode and said in done.stderr, (options, done.stderr)
    assert [row["Name"] for row in view.rows("service", "ls")] == ["one"]
    scaled = view.run("service", "scale", "-d", "one=2")
    assert scaled.returncode and b"names 1 for 2 replicas" in scaled.stderr


def test_host_names_come_from_templates_and_are_names_on_every_node(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", network, *AT_ONCE,
         "--hostname", "{{.Node.Hostname}}-{{.Task.Slot}}", *SLEEP)  # fmt: skip
    cluster.wait_running("web", 3)
    found = places(cluster, "web")
    names = {}
    for slot, (node, ident) in found.items():
        name = inside(node, ident, "hostname")
        assert re.fullmatch(rf"node-[123]-{slot[-1]}", name)
        names[name] = inside(node, ident, "hostname", "-i").split()[0]
        names[ident[:12]] = names[name]
    assert len(names) == 6
    for node, ident in found.values():
        for name, address in names.items():
            eventually(lambda n=node, i=ident, name=name, address=address: resolved(n, i, name) == [address])


def test_several_networks_have_each_their_own_aliases(cluster: Cluster, network: str) -> None:
    view = cluster.view
    view("network", "create", "-d", "overlay", "second")
    try:
        view("service", "create", "-d", "--name", "web", *AT_ONCE, "--network", f"name={network},alias=front",
             "--network", "name=second,alias=back", *SLEEP)  # fmt: skip
        for name, where in (("one", network), ("two", "second")):
            view("service", "create", "-d", "--name", name, *AT_ONCE, "--network", where, *SLEEP)
            cluster.wait_running(name, 1)
        cluster.wait_running("web", 1)
        node, ident = places(cluster, "web")["web.1"]
        assert set(node.json("inspect", ident)[0]["NetworkSettings"]["Networks"]) == {network, "second"}
        # CLI clients name networks by id.
        vips = {vip["NetworkID"]: vip["Addr"].partition("/")[0]
                for vip in view.json("service", "inspect", "web")[0]["Endpoint"]["VirtualIPs"]}  # fmt: skip
        by_name = {name: vips[view("network", "inspect", "-f", "{{.ID}}", name)] for name in (network, "second")}
        one, two = places(cluster, "one")["one.1"], places(cluster, "two")["two.1"]
        eventually(lambda: resolved(*one, "front") == resolved(*one, "web") == [by_name[network]])
        eventually(lambda: resolved(*two, "back") == resolved(*two, "web") == [by_name["second"]])
        assert resolved(*one, "back") == resolved(*two, "front") == []
        assert resolved(*one, "two") == resolved(*two, "one") == []
        # A container on both has both.
        for name in ("front", "back", "one", "two"):
            assert resolved(node, ident, name), name
    finally:
        view("service", "rm", *view("service", "ls", "-q").split())
        eventually(lambda: view.run("network", "rm", "second").returncode == 0)
