"""What `docker swarm init` and `join` say of networks: address pools, and the way of packets between nodes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
from e2e_cluster import NAME, Cluster, View, eventually
from e2e_own import own_cluster

OWN = f"{NAME}-pl"
#: busybox as PID 1 ignores the stop signal.
EVERYWHERE = ("--mode", "global", "--stop-grace-period", "0s", "busybox", "sleep", "600")


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Cluster]:
    """Two hosts that are in no cluster."""
    with own_cluster(OWN, 2) as cluster:
        apart(cluster)
        yield cluster


@pytest.fixture
def hosts(two_hosts: Cluster) -> Iterator[Cluster]:
    yield two_hosts
    apart(two_hosts)


def apart(cluster: Cluster) -> None:
    for number in (2, 1):
        node = cluster.node(number)
        if node("info", "-f", "{{.Swarm.LocalNodeState}}") != "inactive":
            node("swarm", "leave", "--force")


def found(cluster: Cluster, *init: str, join: tuple[str, ...] = (), addresses: tuple[str, ...] = ()) -> None:
    """A cluster of the two hosts. addresses: where they reach each other, unless it is where they always do."""
    first, second = cluster.node(1), cluster.node(2)
    one, two = addresses or (cluster.host(1).address, cluster.host(2).address)
    first("swarm", "init", "--advertise-addr", one, *init)
    token = first("swarm", "join-token", "-q", "worker")
    manager = f"[{one}]:2377" if ":" in one else f"{one}:2377"
    second("swarm", "join", "--token", token, "--advertise-addr", two, *join, manager)
    eventually(lambda: cluster.ready() == {"node-1", "node-2"})


def place(cluster: Cluster, number: int, service: str, network: str) -> tuple[View, str, str]:
    """A host's engine, the service's container there and its address in a network."""
    node = cluster.node(number)
    ident = eventually(lambda: node("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}"))
    shown = node("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}', ident)
    return node, ident, shown


def reaches(node: View, ident: str, target: str, *, size: int) -> bool:
    return node.run("exec", ident, "ping", "-c", "1", "-W", "1", "-s", str(size), target).returncode == 0


def test_subnets_are_cut_from_the_pools_and_their_end_is_told_and_cured(hosts: Cluster) -> None:
    found(hosts, "--default-addr-pool", "10.44.0.0/28", "--default-addr-pool", "10.45.0.0/29",
          "--default-addr-pool-mask-length", "29")  # fmt: skip
    node, view = hosts.node(1), hosts.view
    said = node.json("info", "-f", "{{json .Swarm.Cluster}}")
    assert (said["DefaultAddrPool"], said["SubnetSize"]) == (["10.44.0.0/28", "10.45.0.0/29"], 29)
    assert "SubnetSize: 29" in node("info")

    for name in ("one", "two", "three"):
        view("network", "create", "-d", "overlay", name)
    shown = view.json("network", "inspect", "one", "two", "three")
    assert [one["IPAM"]["Config"][0]["Subnet"] for one in shown] == ["10.44.0.0/29", "10.44.0.8/29", "10.45.0.0/29"]
    none_left = view.run("network", "create", "-d", "overlay", "four")
    assert none_left.returncode and b"could not find an available, non-overlapping IPv4 address" in none_left.stderr

    # A published port needs the mesh's network, for which no subnet is left.
    refused = view.run("service", "create", "-d", "--name", "open", "-p", "8080:80", "busybox", "sleep", "600")
    assert refused.returncode and b"non-overlapping IPv4 address pool" in refused.stderr
    view("network", "rm", "three")
    view("service", "create", "-d", "--name", "open", "-p", "8080:80", *EVERYWHERE)
    hosts.wait_running("open", 2)
    assert view.json("network", "inspect", "ingress")[0]["IPAM"]["Config"][0]["Subnet"] == "10.45.0.0/29"
    view("service", "rm", "open")


def test_a_task_without_an_address_says_so_and_gets_one_that_comes_free(hosts: Cluster) -> None:
    found(hosts, "--default-addr-pool", "10.44.0.0/24", "--default-addr-pool-mask-length", "29")
    view = hosts.view
    view("network", "create", "-d", "overlay", "small")
    # A /29 has five addresses beside the gateway's; one is the first service's own.
    view("service", "create", "-d", "--name", "web", "--replicas", "3", "--network", "small", *EVERYWHERE[2:])
    hosts.wait_running("web", 3)
    view("service", "create", "-d", "--name", "late", "--endpoint-mode", "dnsrr", "--replicas", "2", "--network",
         "small", *EVERYWHERE[2:])  # fmt: skip
    waiting = eventually(lambda: [task for task in hosts.tasks("late") if task["Error"]])
    assert [task["Error"] for task in waiting] == ['"no address is free in network small (10.44.0.0/29, 5 in use)"']
    assert waiting[0]["CurrentState"].startswith("New")
    view("service", "scale", "-d", "web=2")
    hosts.wait_running("late", 2)
    assert not [task for task in hosts.tasks("late") if task["Error"]]


def test_packets_take_the_port_and_the_addresses_that_were_named(hosts: Cluster) -> None:
    for number in (1, 2):
        hosts.exec(number, "ip", "addr", "add", f"198.51.100.{number}/24", "dev", "eth0")
    try:
        found(hosts, "--data-path-port", "7789", "--data-path-addr", "198.51.100.1",
              join=("--data-path-addr", "198.51.100.2"))  # fmt: skip
        view = hosts.view
        assert hosts.node(1).json("info", "-f", "{{json .Swarm.Cluster.DataPathPort}}") == 7789
        view("network", "create", "-d", "overlay", "net")
        view("service", "create", "-d", "--name", "all", "--network", "net", "-p", "8080:80", *EVERYWHERE)
        hosts.wait_running("all", 2)
        node, ident, _ = place(hosts, 1, "all", "net")
        assert eventually(lambda: reaches(node, ident, place(hosts, 2, "all", "net")[2], size=1422))
        for number in (1, 2):
            devices = hosts.exec(number, "ip", "-d", "link", "show", "type", "vxlan")
            ways = re.findall(r"local (\S+) .*dstport (\d+)", devices)
            assert len(ways) == 3 and set(ways) == {(f"198.51.100.{number}", "7789")}  # net, ingress and the mesh
        view("service", "rm", "all")
    finally:
        apart(hosts)
        for number in (1, 2):
            hosts.exec(number, "ip", "addr", "del", f"198.51.100.{number}/24", "dev", "eth0")


def mtu(node: View, ident: str) -> int:
    return int(node("exec", ident, "cat", "/sys/class/net/eth0/mtu"))


def test_hosts_that_know_each_other_by_ipv6_carry_networks_over_it(hosts: Cluster) -> None:
    own = ("fd00:213::1", "fd00:213::2")
    for number, address in enumerate(own, 1):
        hosts.exec(number, "ip", "addr", "add", f"{address}/64", "dev", "eth0", "nodad")
    try:
        found(hosts, addresses=own)
        view = hosts.view
        shown = view.json("node", "inspect", *view("node", "ls", "-q").split())
        assert {node["Status"]["Addr"] for node in shown} == set(own)
        assert hosts.node(1)("info", "-f", "{{(index .Swarm.RemoteManagers 0).Addr}}") == "[fd00:213::1]:2377"
        view("network", "create", "-d", "overlay", "--ipv6", "--attachable", "net")
        view("service", "create", "-d", "--name", "all", "--network", "net", *EVERYWHERE)
        hosts.wait_running("all", 2)
        one, two = place(hosts, 1, "all", "net"), place(hosts, 2, "all", "net")
        # 1500 less 70: the outer header is IPv6's. To the byte, and no more than that in one piece.
        assert (mtu(*one[:2]), mtu(*two[:2])) == (1430, 1430)
        assert eventually(lambda: reaches(*one[:2], two[2], size=1402))
        assert eventually(lambda: reaches(*two[:2], "all", size=1402))
        for number, address in enumerate(own, 1):
            devices = hosts.exec(number, "ip", "-d", "link", "show", "type", "vxlan")
            assert set(re.findall(r"local (\S+) ", devices)) == {address}
        # A killed agent finds all of it again, and the whole cluster is seen through the manager.
        view("swarm", "update", "--dispatcher-heartbeat", "10s")  # one that comes back late does not lose its tasks
        hosts.exec(2, "kill", "-9", str(hosts.pid(2, "swarmlet-agent")))
        eventually(lambda: hosts.node(2).run("ps").returncode == 0)
        eventually(lambda: hosts.ready() == {"node-1", "node-2"})
        assert reaches(*one[:2], two[2], size=1402)
        assert view("run", "--rm", "--network", "net", "busybox", "cat", "/sys/class/net/eth0/mtu") == "1430"
    finally:
        apart(hosts)
        for number, address in enumerate(own, 1):
            hosts.exec(number, "ip", "addr", "del", f"{address}/64", "dev", "eth0")


def test_networks_carry_what_the_narrowest_way_between_hosts_does(hosts: Cluster) -> None:
    hosts.exec(2, "ip", "link", "set", "eth0", "mtu", "1400")
    try:
        found(hosts)
        view = hosts.view
        view("network", "create", "-d", "overlay", "net")
        view("network", "create", "-d", "overlay", "--opt", "com.docker.network.driver.mtu=1300", "own")
        view("service", "create", "-d", "--name", "all", "--network", "net", *EVERYWHERE)
        view("service", "create", "-d", "--name", "chosen", "--network", "own", *EVERYWHERE)
        hosts.wait_running("all", 2)
        hosts.wait_running("chosen", 2)
        one, two = place(hosts, 1, "all", "net"), place(hosts, 2, "all", "net")
        assert (mtu(*one[:2]), mtu(*two[:2])) == (1350, 1350)
        assert eventually(lambda: reaches(*one[:2], two[2], size=1322))
        assert mtu(*place(hosts, 1, "chosen", "own")[:2]) == 1300
        small = view.run("network", "create", "-d", "overlay", "--ipv6", "--opt", "com.docker.network.driver.mtu=1200",
                         "small")  # fmt: skip
        assert small.returncode and b"expected 1280 to 65485" in small.stderr
    finally:
        apart(hosts)
        hosts.exec(2, "ip", "link", "set", "eth0", "mtu", "1500")


def test_what_cannot_be_founded_is_refused_and_leaves_the_host_as_it_was(hosts: Cluster) -> None:
    node = hosts.node(1)
    for options, words in (
        (("--default-addr-pool", "10.44.0.0/16", "--default-addr-pool", "10.44.8.0/24"), b"Pool overlaps"),
        (("--default-addr-pool", "10.44.0.0/26"), b"Subnet size is too small for pool: 24"),
        (("--default-addr-pool", "10.44.0.0/16", "--default-addr-pool-mask-length", "30"), b"out of range: 30"),
        (("--data-path-port", "80"), b"not in valid range (1024-49151) : 80"),
        (("--data-path-addr", "0.0.0.0"), b"data path address must be a non-zero IP address"),
        (("--data-path-addr", "nope0"), b"no such interface nope0"),
        (("--advertise-addr", "nope0"), b"no such interface nope0"),
    ):
        done = node.run("swarm", "init", *options)
        assert done.returncode and words in done.stderr, done.stderr
        assert node("info", "-f", "{{.Swarm.LocalNodeState}}") == "inactive"
    node("swarm", "init", "--advertise-addr", "eth0")
    assert node("info", "-f", "{{.Swarm.NodeAddr}}") == hosts.host(1).address


def test_a_manager_may_listen_at_a_port_of_its_own_and_a_founded_node_is_ready_at_once(hosts: Cluster) -> None:
    first, second, address = hosts.node(1), hosts.node(2), hosts.host(1).address
    refused = first.run("swarm", "init", "--listen-addr", "0.0.0.0:2378")
    assert refused.returncode and b"node_port" in refused.stderr
    first("swarm", "init", "--force-new-cluster", "--advertise-addr", address, "--listen-addr", "0.0.0.0:18377")
    shown = first.json("node", "inspect", "self")[0]
    assert shown["Status"]["State"] == "ready" and shown["ManagerStatus"]["Addr"] == f"{address}:18377"
    # What the client has just seen it may change: nothing else about the node is still on its way.
    first("node", "update", "--label-add", "a=b", shown["ID"])
    again = first.run("swarm", "init", "--force-new-cluster")
    assert again.returncode and b"ForceNewCluster is not supported on a member" in again.stderr
    token = first("swarm", "join-token", "-q", "worker")
    second("swarm", "join", "--token", token, f"{address}:18377")
    eventually(lambda: hosts.ready() == {"node-1", "node-2"})


def get(cluster: Cluster, number: int, port: int) -> str:
    """What a host answers a client outside the cluster on a port; "" if it does not."""
    url = f"http://{cluster.host(number).address}:{port}/"
    done = subprocess.run(["curl", "-s", "-m", "3", url], capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""


def test_the_network_of_the_mesh_can_be_ones_own(hosts: Cluster) -> None:
    found(hosts)
    view, node = hosts.view, hosts.node(1)
    web = ("-p", "8080:80", "--mode", "global", "--stop-grace-period", "0s", "busybox", "sh", "-c",
           "mkdir -p /w; hostname >/w/index.html; exec httpd -f -p 80 -h /w")  # fmt: skip
    # As is often done first of all, before anything is published.
    view("network", "rm", "ingress", input=b"y\n")
    refused = view.run("service", "create", "-d", "--name", "web", *web)
    assert refused.returncode and b"no ingress network is present" in refused.stderr
    view("service", "create", "-d", "--name", "inner", *EVERYWHERE)
    published = view.run("service", "update", "-d", "--publish-add", "8081:80", "inner")
    assert published.returncode and b"no ingress network is present" in published.stderr
    view("service", "rm", "inner")

    attachable = view.run("network", "create", "-d", "overlay", "--ingress", "--attachable", "mine")
    assert attachable.returncode and b"cannot be attachable" in attachable.stderr
    view("network", "create", "-d", "overlay", "--ingress", "--subnet", "10.11.0.0/24", "--gateway", "10.11.0.254",
         "--opt", "com.docker.network.driver.mtu=1200", "mine")  # fmt: skip
    second = view.run("network", "create", "-d", "overlay", "--ingress", "other")
    assert second.returncode and b"is already present" in second.stderr
    shown = node.json("network", "inspect", "mine")[0]
    assert shown["Ingress"] is True
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.11.0.0/24", "Gateway": "10.11.0.254"}]

    view("service", "create", "-d", "--name", "web", *web)
    hosts.wait_running("web", 2)
    _, _, address = place(hosts, 1, "web", "mine")
    assert address.startswith("10.11.0.")
    for number in (1, 2):
        eventually(lambda number=number: len({get(hosts, number, 8080) for _ in range(12)} - {""}) == 2)
    in_use = view.run("network", "rm", "mine", input=b"y\n")
    assert in_use.returncode and b"ingress network cannot be removed because service" in in_use.stderr
    assert "mine" not in view("network", "prune", "-f")
    view("service", "rm", "web")
    eventually(lambda: view.run("network", "rm", "mine", input=b"y\n").returncode == 0)

    view("network", "create", "-d", "overlay", "--ingress", "ingress")
    view("service", "create", "-d", "--name", "web", *web)
    hosts.wait_running("web", 2)
    eventually(lambda: get(hosts, 2, 8080))
    view("service", "rm", "web")


def test_a_cluster_begins_with_the_settings_of_its_init(hosts: Cluster) -> None:
    found(hosts, "--task-history-limit", "2", "--cert-expiry", "48h", "--dispatcher-heartbeat", "2s",
          "--availability", "drain", join=("--availability", "pause"))  # fmt: skip
    spec = hosts.node(1).json("info", "-f", "{{json .Swarm.Cluster.Spec}}")
    assert spec["Orchestration"] == {"TaskHistoryRetentionLimit": 2}
    assert spec["CAConfig"]["NodeCertExpiry"] == 48 * 3600 * 10**9
    assert spec["Dispatcher"] == {"HeartbeatPeriod": 2 * 10**9}
    nodes = {node["Hostname"]: node["Availability"] for node in hosts.view.rows("node", "ls")}
    assert nodes == {"node-1": "Drain", "node-2": "Pause"}
    hosts.view("service", "create", "--detach", "--name", "nowhere", "busybox", "sleep", "600")
    why = eventually(lambda: next((task["Error"] for task in hosts.tasks("nowhere") if task["Error"]), ""))
    assert "no suitable node" in why
