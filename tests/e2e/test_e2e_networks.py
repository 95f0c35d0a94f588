"""Local bridge networks: who reaches whom, by address, by name, through published ports."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from e2e_cluster import Cluster, View, eventually
from network_tools import address, fetch, get, serve

pytestmark = pytest.mark.usefixtures("no_networks_left")


# --- the default bridge


def test_containers_reach_each_other_by_address_on_the_default_bridge(cluster: Cluster) -> None:
    node = cluster.node(1)
    serve(node, "one")
    serve(node, "two")
    assert address(node, "one") != address(node, "two")
    assert eventually(lambda: get(node, "two", f"http://{address(node, 'one')}/")) == "one"
    assert eventually(lambda: get(node, "one", f"http://{address(node, 'two')}/")) == "two"
    # No names on the default bridge: so it is on Docker.
    assert node.run("exec", "one", "timeout", "5", "wget", "-qO-", "http://two/").returncode != 0
    assert node("exec", "one", "ping", "-c", "1", "-W", "2", address(node, "two"))
    inspected = node.json("network", "inspect", "bridge")[0]
    assert {entry["Name"] for entry in inspected["Containers"].values()} == {"one", "two"}
    gateway = inspected["IPAM"]["Config"][0]["Gateway"]
    assert f"default via {gateway}" in node("exec", "one", "ip", "route")


def test_containers_reach_the_outside_as_their_host(cluster: Cluster) -> None:
    """A server on the clusters' bridge sees the node's address, not the container's."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.client_address[0])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"outside")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((cluster.layout.gateway, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        url = f"http://{cluster.layout.gateway}:{server.server_port}/"
        node = cluster.node(3)
        node("network", "create", "own")
        assert node("run", "--rm", "busybox", "timeout", "5", "wget", "-qO-", url) == "outside"
        assert node("run", "--rm", "--network", "own", "busybox", "timeout", "5", "wget", "-qO-", url) == "outside"
        assert cluster.view("run", "--rm", "busybox", "timeout", "5", "wget", "-qO-", url) == "outside"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen[:2] == [cluster.host(3).address] * 2


def test_dns_settings_and_extra_hosts_are_in_the_containers_files(view: View) -> None:
    shown = view(
        "run", "--rm", "--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-opt", "ndots:2",
        "--add-host", "db:192.0.2.7", "--add-host", "gw:host-gateway", "--hostname", "me", "busybox",
        "cat", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname",
    )  # fmt: skip
    assert "nameserver 192.0.2.53" in shown and "search example.org" in shown and "ndots:2" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["192.0.2.7", "db"] in lines and any(line[1:] == ["gw"] for line in lines)
    assert ["127.0.0.1", "localhost"] in lines and lines[-1] == ["me"] and any("me" in line[1:] for line in lines)


# --- networks of one's own


def test_names_are_found_on_a_network_of_ones_own(cluster: Cluster) -> None:
    node = cluster.node(1)
    node("network", "create", "own")
    ident = serve(node, "one", "--network", "own", "--network-alias", "web")
    serve(node, "two", "--network", "own", "--network-alias", "web")
    for name in ("one", "one.own", ident[:12]):
        assert eventually(lambda name=name: get(node, "two", f"http://{name}/")) == "one"
    assert eventually(lambda: {get(node, "one", "http://web/") for _ in range(10)} <= {"one", "two"})
    found = node("exec", "one", "nslookup", "web")
    assert address(node, "one", "own") in found and address(node, "two", "own") in found
    reverse = node("exec", "one", "nslookup", address(node, "two", "own"))
    assert "two.own" in reverse
    assert node.run("exec", "one", "nslookup", "nobody-here").returncode != 0
    # A name follows its container, and goes with it.
    node("rename", "one", "uno")
    assert eventually(lambda: get(node, "two", "http://uno/")) == "one"
    node("rm", "-f", "uno")
    eventually(lambda: node.run("exec", "two", "nslookup", "uno").returncode != 0)


def test_networks_are_apart_and_a_container_may_be_in_several(cluster: Cluster) -> None:
    node = cluster.node(1)
    node("network", "create", "left")
    node("network", "create", "right")
    serve(node, "one", "--network", "left")
    serve(node, "two", "--network", "right")
    target = address(node, "two", "right")
    blocked = node.run("exec", "one", "timeout", "2", "wget", "-qO-", f"http://{target}/")
    assert blocked.returncode != 0

    node("network", "connect", "--alias", "friend", "right", "one")
    assert eventually(lambda: get(node, "one", "http://two/")) == "two"
    assert eventually(lambda: get(node, "two", "http://friend/")) == "one"
    assert set(node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]) == {"left", "right"}
    assert len(node("exec", "one", "ip", "-o", "-4", "addr", "show", "scope", "global").splitlines()) == 2
    node("network", "disconnect", "right", "one")
    assert node.run("exec", "one", "timeout", "2", "wget", "-qO-", f"http://{target}/").returncode != 0
    again = node.run("network", "disconnect", "right", "one")
    assert again.returncode == 1 and b"is not connected to" in again.stderr, again.stderr
    # What was connected while it was stopped is there when it starts.
    node("stop", "-t", "0", "one")
    node("network", "connect", "right", "one")
    node("start", "one")
    assert eventually(lambda: get(node, "one", "http://two/")) == "two"


def test_addresses_are_chosen_or_given(cluster: Cluster) -> None:
    node = cluster.node(2)
    node(
        "network", "create", "--subnet", "10.99.0.0/24", "--ip-range", "10.99.0.128/25", "--gateway", "10.99.0.254",
        "--label", "a=b", "--opt", "com.docker.network.driver.mtu=1400", "planned",
    )  # fmt: skip
    shown = node.json("network", "inspect", "planned")[0]
    assert shown["IPAM"]["Config"] == [
        {"Subnet": "10.99.0.0/24", "IPRange": "10.99.0.128/25", "Gateway": "10.99.0.254"}
    ]
    assert shown["Labels"] == {"a": "b"} and shown["Driver"] == "bridge" and shown["Scope"] == "local"
    serve(node, "fixed", "--network", "planned", "--ip", "10.99.0.7")
    serve(node, "free", "--network", "planned")
    assert address(node, "fixed", "planned") == "10.99.0.7"
    assert ipaddress.ip_address(address(node, "free", "planned")) in ipaddress.ip_network("10.99.0.128/25")
    assert "mtu 1400" in node("exec", "free", "ip", "link", "show", "eth0")
    taken = node.run("run", "--rm", "--network", "planned", "--ip", "10.99.0.7", "busybox", "true")
    assert taken.returncode == 125 and b"ddress already in use" in taken.stderr, taken.stderr
    wrong = node.run("run", "--rm", "--network", "planned", "--ip", "10.98.0.7", "busybox", "true")
    assert wrong.returncode == 125 and b"10.98.0.7" in wrong.stderr, wrong.stderr
    overlap = node.run("network", "create", "--subnet", "10.99.0.0/16", "other")
    assert overlap.returncode == 1 and b"overlaps" in overlap.stderr, overlap.stderr
    node("restart", "-t", "0", "fixed")
    assert address(node, "fixed", "planned") == "10.99.0.7"


def test_an_internal_network_has_no_way_out(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("network", "create", "--internal", "closed")
    serve(node, "one", "--network", "closed")
    serve(node, "two", "--network", "closed")
    assert eventually(lambda: get(node, "one", "http://two/")) == "two"
    assert "default" not in node("exec", "one", "ip", "route")
    out = node.run("exec", "one", "ping", "-c", "1", "-W", "1", cluster.layout.gateway)
    assert out.returncode != 0


def test_none_host_and_another_containers_network(cluster: Cluster) -> None:
    node = cluster.node(2)
    assert node("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net") == "lo"
    links = node("run", "--rm", "--network", "host", "busybox", "ip", "-o", "-4", "addr")
    assert cluster.host(2).address in links
    assert node("run", "--rm", "--network", "host", "busybox", "hostname") == "node-2"
    serve(node, "one")
    inside = node("run", "--rm", "--network", "container:one", "busybox", "timeout", "5", "wget", "-qO-", "http://127.0.0.1/")
    assert inside == "one"
    done = node.run("run", "--rm", "--pull", "never", "--network", "container:nobody", "busybox", "true")
    assert done.returncode == 125 and b"nobody" in done.stderr
    done = node.run("run", "--rm", "--network", "nowhere", "busybox", "true")
    assert done.returncode == 125 and b"network nowhere not found" in done.stderr
    assert "nowhere" not in node("ps", "-a")


# --- published ports


def test_a_published_port_answers_on_the_node_from_the_others_and_from_containers(cluster: Cluster) -> None:
    node, host = cluster.node(1), cluster.host(1).address
    ident = serve(node, "web", "-p", "18090:80", "-p", "18091:80/tcp")
    for number in (1, 2, 3):
        assert eventually(lambda number=number: fetch(cluster, number, f"http://{host}:18090/")) == "web"
    assert fetch(cluster, 1, "http://127.0.0.1:18091/") == "web"
    assert node("run", "--rm", "busybox", "timeout", "5", "wget", "-qO-", f"http://{host}:18090/") == "web"
    assert set(node("port", "web").splitlines()) >= {"80/tcp -> 0.0.0.0:18090", "80/tcp -> 0.0.0.0:18091"}
    assert "0.0.0.0:18090->80/tcp" in node.rows("ps", "--filter", f"id={ident}")[0]["Ports"]
    node("rm", "-f", "web")
    eventually(lambda: _refused(cluster, f"http://{host}:18090/"))


def _refused(cluster: Cluster, url: str) -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", cluster.host(2).netns.name, "timeout", "2", "busybox", "wget", "-qO-", url],
        capture_output=True, timeout=20,
    )  # fmt: skip
    return done.returncode != 0


def test_a_port_of_one_address_is_not_open_on_others(cluster: Cluster) -> None:
    node, host = cluster.node(1), cluster.host(1).address
    serve(node, "web", "-p", "127.0.0.1:18092:80")
    assert eventually(lambda: fetch(cluster, 1, "http://127.0.0.1:18092/")) == "web"
    assert _refused(cluster, f"http://{host}:18092/")


def test_random_ports_are_chosen_from_the_host(cluster: Cluster) -> None:
    node, host = cluster.node(1), cluster.host(1).address
    serve(node, "one", "-p", "80")
    serve(node, "two", "-P", "--expose", "80", "--expose", "9000-9001/udp")
    ports = [int(node("port", name, "80/tcp").splitlines()[0].rpartition(":")[2]) for name in ("one", "two")]
    assert len(set(ports)) == 2 and all(port >= 1024 for port in ports)
    assert eventually(lambda: fetch(cluster, 2, f"http://{host}:{ports[1]}/")) == "two"
    assert "9000/udp -> " in node("port", "two") and "9001/udp -> " in node("port", "two")


def test_a_taken_port_is_refused_and_the_container_can_start_once_it_is_free(cluster: Cluster) -> None:
    node = cluster.node(1)
    serve(node, "one", "-p", "18093:80")
    done = node.run("run", "-d", "--name", "two", "-p", "18093:80", "busybox", "sleep", "600")
    assert done.returncode == 125 and b"18093" in done.stderr and b"already allocated" in done.stderr, done.stderr
    assert node("inspect", "--format", "{{.State.Status}}", "two") == "created"
    node("rm", "-f", "one")
    node("start", "two")
    assert "18093" in node("port", "two")
    # A process of the host has the port: the same refusal, and nothing is left of the attempt.
    busy = subprocess.Popen(
        ["ip", "netns", "exec", cluster.host(1).netns.name, "busybox", "nc", "-l", "-p", "18094"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: ":18094" in cluster.exec(1, "ss", "-ltn"))
        done = node.run("run", "--rm", "-p", "18094:80", "busybox", "true")
        assert done.returncode == 125 and b"18094" in done.stderr and b"in use" in done.stderr, done.stderr
    finally:
        busy.kill()
        busy.communicate()
    assert node.run("run", "--rm", "-p", "18094:80", "busybox", "true").returncode == 0


# --- the calls


def test_create_ls_inspect_rm_and_prune(view: View) -> None:
    ident = view("network", "create", "--label", "tier=x", "alpha")
    view("network", "create", "beta")
    assert len(ident) == 64
    assert [row["Name"] for row in view.rows("network", "ls", "--filter", "label=tier=x")] == ["alpha"]
    listed = {row["Name"]: (row["Driver"], row["Scope"]) for row in view.rows("network", "ls")}
    assert listed["bridge"] == ("bridge", "local") and listed["host"] == ("host", "local")
    assert listed["none"] == ("null", "local") and listed["alpha"] == ("bridge", "local")
    assert view.json("network", "inspect", ident)[0]["Name"] == "alpha"
    taken = view.run("network", "create", "alpha")
    assert taken.returncode == 1 and b"network with name alpha already exists" in taken.stderr
    view("run", "-d", "--name", "user", "--network", "beta", "busybox", "sleep", "600")
    for name, said in (("beta", b"has active endpoints"), ("bridge", b"pre-defined"), ("nothing", b"not found")):
        done = view.run("network", "rm", name)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    pruned = view("network", "prune", "-f")
    assert "alpha" in pruned and "beta" not in pruned
    # The routing mesh's is there from the first published port of a service on.
    assert {row["Name"] for row in view.rows("network", "ls")} - {"ingress"} == {"bridge", "host", "none", "beta"}
    view("rm", "-f", "user")
    assert view("network", "rm", "beta") == "beta"
    for args, said in (
        (("--driver", "nonsense", "x"), b"nonsense"),
        (("--subnet", "10.1.2.3.4/24", "x"), b"10.1.2.3.4/24"),
        (("--subnet", "10.97.0.0/24", "--gateway", "10.96.0.1", "x"), b"10.96.0.1"),
    ):
        done = view.run("network", "create", *args)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    assert {row["Name"] for row in view.rows("network", "ls")} - {"ingress"} == {"bridge", "host", "none"}


def test_a_network_of_the_cluster_view_is_on_every_node_and_goes_from_every_node(cluster: Cluster) -> None:
    ident = cluster.view("network", "create", "everywhere")
    for number in (1, 2, 3):
        assert cluster.node(number).json("network", "inspect", "everywhere")[0]["Driver"] == "bridge"
    node = cluster.node(3)
    serve(node, "one", "--network", "everywhere")
    # In use on one node: it stays on all of them.
    done = cluster.view.run("network", "rm", "everywhere")
    assert done.returncode == 1 and b"node-3" in done.stderr and b"has active endpoints" in done.stderr
    assert all(cluster.node(number).run("network", "inspect", "everywhere").returncode == 0 for number in (1, 2, 3))
    # By id too, though ids differ from node to node.
    cluster.view("network", "disconnect", ident, "one")
    assert "everywhere" not in node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]
    cluster.view("network", "connect", ident, "one")
    assert "everywhere" in node.json("inspect", "one")[0]["NetworkSettings"]["Networks"]
    node("rm", "-f", "one")
    cluster.view("network", "rm", ident)
    assert all(cluster.node(number).run("network", "inspect", "everywhere").returncode == 1 for number in (1, 2, 3))


def test_a_refused_network_is_left_on_no_node(cluster: Cluster) -> None:
    cluster.node(2)("network", "create", "half")
    done = cluster.view.run("network", "create", "half")
    assert done.returncode == 1 and b"node-2" in done.stderr and b"already exists" in done.stderr
    for number in (1, 3):
        assert cluster.node(number).run("network", "inspect", "half").returncode == 1
    listed = json.loads(cluster.node(2)("network", "inspect", "half"))
    assert len(listed) == 1
