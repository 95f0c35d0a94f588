"""What `docker network create` can be told, lists and prunes of networks, and networks over a reboot."""

from __future__ import annotations

import json

import pytest
from e2e_cluster import Cluster, View, eventually
from network_tools import address, fetch, get, serve

pytestmark = pytest.mark.usefixtures("no_networks_left")
BRIDGE = "com.docker.network.bridge."


def refused(node: View, *args: str) -> str:
    """What the command says that fails."""
    done = node.run("network", *args)
    assert done.returncode == 1, done
    return done.stderr.decode()


def test_options_of_a_bridge_are_done(cluster: Cluster) -> None:
    node, host = cluster.node(1), cluster.host(1).address
    options = {
        BRIDGE + "name": "mybridge", BRIDGE + "enable_icc": "false", BRIDGE + "host_binding_ipv4": "127.0.0.1",
        BRIDGE + "enable_ip_masquerade": "true", "com.docker.network.driver.mtu": "1400",
        "com.docker.network.container_iface_prefix": "net", "org.example.note": "kept",
    }  # fmt: skip
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    node("network", "create", *given, "own")
    assert node.json("network", "inspect", "own")[0]["Options"] == options
    assert "mtu 1400" in cluster.exec(1, "ip", "link", "show", "mybridge")
    serve(node, "one", "--network", "own", "-p", "18390:80")
    serve(node, "two", "--network", "own")
    assert "mtu 1400" in node("exec", "one", "ip", "link", "show", "net0")
    assert node("port", "one") == "80/tcp -> 127.0.0.1:18390"
    assert eventually(lambda: fetch(cluster, 1, "http://127.0.0.1:18390/")) == "one"
    # Containers of this network are apart from each other, yet not from the outside.
    apart = node.run("exec", "two", "timeout", "2", "wget", "-qO-", f"http://{address(node, 'one', 'own')}/")
    assert apart.returncode != 0
    assert node.run("exec", "two", "ping", "-c", "1", "-W", "2", host).returncode == 0
    assert "already" in refused(node, "create", "-o", BRIDGE + "name=mybridge", "other")
    assert "trusted_host_interfaces is not supported" in refused(
        node, "create", "-o", BRIDGE + "trusted_host_interfaces=eth0", "other"
    )
    assert "unknown gateway mode wild" in refused(node, "create", "-o", BRIDGE + "gateway_mode_ipv4=wild", "other")


def test_a_routed_network_is_reached_without_translation(cluster: Cluster) -> None:
    node, host = cluster.node(1), cluster.host(1).address
    node("network", "create", "--subnet", "10.96.0.0/24", "-o", BRIDGE + "gateway_mode_ipv4=routed", "open")
    serve(node, "web", "--network", "open", "-p", "80", "--ip", "10.96.0.9")
    cluster.exec(2, "ip", "route", "add", "10.96.0.0/24", "via", host)
    try:
        assert eventually(lambda: fetch(cluster, 2, "http://10.96.0.9/")) == "web"
    finally:
        cluster.exec(2, "ip", "route", "del", "10.96.0.0/24", "via", host)


def test_networks_are_made_from_a_configuration_network(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("network", "create", "--config-only", "--subnet", "10.95.0.0/24", "--label", "a=b", "source")
    shown = node.json("network", "inspect", "source")[0]
    assert shown["ConfigOnly"] is True and shown["Driver"] == "null"
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.95.0.0/24"}]
    node("network", "create", "--config-from", "source", "made")
    shown = node.json("network", "inspect", "made")[0]
    assert shown["ConfigFrom"] == {"Network": "source"} and shown["Labels"] == {"a": "b"}
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.95.0.0/24", "Gateway": "10.95.0.1"}]
    serve(node, "one", "--network", "made")
    assert address(node, "one", "made").startswith("10.95.0.")
    assert 'configuration network "source" is in use' in refused(node, "rm", "source")
    assert 'configuration network "no" does not exist' in refused(node, "create", "--config-from", "no", "other")
    assert "user supplied configurations are not supported" in refused(
        node, "create", "--config-from", "source", "--label", "c=d", "other"
    )
    on_it = node.run("run", "--rm", "--network", "source", "busybox", "true")
    assert on_it.returncode == 125 and b"configuration-only network" in on_it.stderr
    node("rm", "-f", "one")
    assert "source" not in node("network", "prune", "-f") and "source" in node("network", "ls")


def test_lists_and_prunes_are_filtered(cluster: Cluster) -> None:
    node = cluster.node(3)
    first = node("network", "create", "--label", "tier=a", "first")
    node("network", "create", "--label", "tier=b", "--internal", "second")
    serve(node, "one", "--network", "first")

    def listed(*filters: str) -> set[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return {row["Name"] for row in node.rows("network", "ls", *words)}

    assert listed("driver=bridge") == {"bridge", "first", "second"} and listed("driver=null") == {"none"}
    assert listed("type=custom") == {"first", "second"} and listed("type=builtin") == {"bridge", "host", "none"}
    assert listed("label=tier") == {"first", "second"} and listed("label=tier=b") == {"second"}
    assert listed("name=irs") == {"first"} and listed(f"id={first[:10]}") == {"first"}
    assert listed("dangling=true") == {"second"} and "first" in listed("dangling=false")
    assert listed("scope=local", "name=second") == {"second"} and listed("scope=swarm", "name=second") == set()
    assert "invalid filter 'colour'" in refused(node, "ls", "--filter", "colour=red")
    assert node("network", "prune", "-f", "--filter", "label=tier=a") == ""  # in use
    assert node("network", "prune", "-f", "--filter", "until=1h") == ""  # too young
    assert node("network", "prune", "-f", "--filter", "label!=tier=b") == ""
    assert "second" in node("network", "prune", "-f", "--filter", "label=tier=b")
    told = refused(node, "rm", "first")
    assert "has active endpoints" in told and 'name:"one"' in told


def test_ports_in_ranges_and_what_lists_and_filters_say_of_them(cluster: Cluster) -> None:
    node = cluster.node(3)
    for name in ("one", "two"):
        serve(node, name, "-p", "18490-18491:80")
    ident = serve(node, "three", "-p", "18500-18501:90-91/udp", "--expose", "99")
    shown = {name: node("port", name).splitlines() for name in ("one", "two", "three")}
    assert shown["one"] == ["80/tcp -> 0.0.0.0:18490", "80/tcp -> [::]:18490"]
    assert shown["two"] == ["80/tcp -> 0.0.0.0:18491", "80/tcp -> [::]:18491"]
    assert {"90/udp -> 0.0.0.0:18500", "91/udp -> [::]:18501"} <= set(shown["three"])
    full = node.run("run", "-d", "--name", "four", "-p", "18490-18491:80", "busybox", "sleep", "600")
    assert full.returncode == 125 and b"Bind for 0.0.0.0:18491 failed: port is already allocated" in full.stderr
    assert b"driver failed programming external connectivity on endpoint four" in full.stderr

    def found(*filters: str) -> set[str]:
        return {row["Names"] for row in node.rows("ps", *(word for each in filters for word in ("--filter", each)))}

    assert found("publish=18500/udp") == {"three"} and found("publish=18490-18491") == {"one", "two"}
    assert found("expose=80") == {"one", "two"} and found("expose=99") == {"three"} and found("publish=80") == set()
    assert "99/tcp" in node.rows("ps", "--filter", f"id={ident}")[0]["Ports"]


def test_links_of_the_default_network(cluster: Cluster) -> None:
    node = cluster.node(2)
    serve(node, "data", "--expose", "80", "-e", "SECRET=x")
    serve(node, "web", "--link", "data:store")
    assert eventually(lambda: get(node, "web", "http://store/")) == "data"
    assert f"{address(node, 'data')}\tstore data" in node("exec", "web", "cat", "/etc/hosts")
    environment = node("exec", "web", "env").splitlines()
    assert f"STORE_PORT_80_TCP=tcp://{address(node, 'data')}:80" in environment and "STORE_ENV_SECRET=x" in environment
    assert json.loads(node("inspect", "web"))[0]["HostConfig"]["Links"] == ["/data:/web/store"]
    node("network", "create", "own")
    serve(node, "elsewhere", "--network", "own")
    for target, said in (
        ("elsewhere", b"Cannot link to /elsewhere, as it does not belong to the default network"),
        ("nobody", b"could not get container for nobody"),
    ):
        done = node.run("run", "--rm", "--link", target, "busybox", "true")
        assert done.returncode != 0 and said in done.stderr, done.stderr


def test_networks_are_made_again_after_a_reboot(cluster: Cluster) -> None:
    node = cluster.node(3)
    node("network", "create", "--ipv6", "--subnet", "fd00:5ef::/64", "own")
    node("network", "create", "-d", "macvlan", "closed")
    serve(node, "web", "--network", "own", "--restart", "always", "-p", "18590:80", "--ip6", "fd00:5ef::9")
    serve(node, "peer", "--network", "own", "--restart", "always")
    before = node.json("network", "inspect", "own", "closed")
    cluster.command("kill", 3)
    cluster.command("start", 3)
    assert eventually(lambda: fetch(cluster, 3, "http://127.0.0.1:18590/"), 30) == "web"
    assert eventually(lambda: fetch(cluster, 3, "http://[::1]:18590/")) == "web"
    assert eventually(lambda: get(node, "peer", "http://[fd00:5ef::9]/")) == "web"
    assert eventually(lambda: get(node, "peer", "http://web/")) == "web"
    after = node.json("network", "inspect", "own", "closed")
    for then, now in zip(before, after, strict=True):
        assert {**then, "Containers": {}} == {**now, "Containers": {}}
    serve(node, "late", "--network", "closed")
    assert address(node, "late", "closed")
