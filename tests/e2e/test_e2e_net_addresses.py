"""Networks that run out of addresses, updates under traffic, and what `down` leaves of them all."""

from __future__ import annotations

import socket
from collections.abc import Callable

from e2e_cluster import NAME, Cluster, eventually, swarmlet
from e2e_inside import http, places, trying, vip
from e2e_netstate import settled
from e2e_traces import traces

from swarmlet.local import cluster as clusters

#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
SLEEP = ("busybox", "sleep", "600")
WEB = ("busybox", "sh", "-c", "mkdir -p /w; hostname >/w/index.html; exec httpd -f -p 80 -h /w")
#: Serves when its page is there, and is asked often.
HEALTHY = ("--health-cmd", "wget -q -O - http://127.0.0.1:80/", "--health-interval", "1s",
           "--health-start-interval", "200ms", "--health-start-period", "10s")  # fmt: skip
REQUESTS = 1000


def test_a_full_network_is_named_by_the_task_that_waits_and_cured_by_another_that_goes(
    cluster: Cluster, overlay: Callable[..., str]
) -> None:
    view, network = cluster.view, overlay("tight", "--subnet", "10.78.1.0/29")
    options = ("-d", "--network", network, "--endpoint-mode", "dnsrr", *AT_ONCE)
    view("service", "create", "--name", "first", "--replicas", "3", *options, *SLEEP)
    cluster.wait_running("first", 3)
    view("service", "create", "--name", "late", "--replicas", "4", *options, *SLEEP)
    full = "no address is free in network tight (10.78.1.0/29, 5 in use)"
    waiting = eventually(lambda: len(late := [task["Error"] for task in cluster.tasks("late") if task["Error"]]) == 2
                         and late)  # fmt: skip
    assert all(full in text for text in waiting)
    eventually(lambda: len(cluster.running("late")) == 2)
    # A service that wants a virtual address there waits as its tasks do, and says the same.
    view("service", "create", "-d", "--name", "virtual", "--network", network, *AT_ONCE, *SLEEP)
    eventually(lambda: any(full in task["Error"] for task in cluster.tasks("virtual")))
    view("service", "rm", "virtual")
    view("service", "scale", "-d", "first=1")
    cluster.wait_running("late", 4)
    assert not any(task["Error"] for task in cluster.tasks("late"))
    settled(cluster)
    held = [place.addresses[network] for name in ("first", "late") for place in places(cluster, name)]
    assert len(held) == len(set(held)) == 5


def test_no_connection_to_the_virtual_address_fails_in_a_thousand_while_all_tasks_are_replaced(
    cluster: Cluster, overlay: Callable[..., str]
) -> None:
    network = overlay("rolling")
    cluster.view("service", "create", "-d", "--name", "client", "--mode", "global", "--network", network, *AT_ONCE,
                 *SLEEP)  # fmt: skip
    cluster.view("service", "create", "-d", "--name", "web", "--replicas", "4", "--network", network, *AT_ONCE,
                 "--update-order", "start-first", "--update-monitor", "1s", *HEALTHY, *WEB)  # fmt: skip
    cluster.wait_running("web", 4)
    cluster.wait_running("client", 3)
    settled(cluster)
    before, address = {place.container[:12] for place in places(cluster, "web")}, vip(cluster, "web", network)
    client = places(cluster, "client")[1]
    with trying(lambda: http(lambda: client.connect(address, 80)), 0) as tries:
        eventually(lambda: {answer for _, answer in tries.answers} == before)
        cluster.view("service", "update", "-d", "--env-add", "V=2", "web")
        eventually(lambda: cluster.view.json("service", "inspect", "web")[0].get("UpdateStatus", {}).get("State")
                   == "completed", 110)  # fmt: skip
        eventually(lambda: not {answer for _, answer in tries.answers[-20:]} & before)
        eventually(lambda: len(tries.answers) >= REQUESTS, 60)
    print(tries.told())
    after = {answer for _, answer in tries.answers} - before
    assert not tries.failures, tries.told()
    assert len(after) == 4 == len(before)


def test_down_leaves_nothing_of_networks_in_use() -> None:
    """Links, tables, namespaces, files; and what the machine itself tracked of the cluster's connections."""
    name = f"{NAME}-net"
    if name in clusters.all_names():
        swarmlet("down", "--name", name)
    try:
        swarmlet("up", "--name", name, "--nodes", "2")
        cluster = Cluster(clusters.find(name))
        cluster.view("network", "create", "-d", "overlay", "net")
        cluster.view("service", "create", "-d", "--name", "web", "--replicas", "2", "--network", "net", "-p",
                     "18092:80", *AT_ONCE, *WEB)  # fmt: skip
        eventually(lambda: len(cluster.running("web")) == 2)
        entry = cluster.host(2).address
        eventually(lambda: http(lambda: socket.create_connection((entry, 18_092), timeout=5)))
        with socket.create_connection((entry, 18_092), timeout=5):  # open when its other end goes
            assert traces(name)
            swarmlet("down", "--name", name)
    finally:
        if name in clusters.all_names():
            swarmlet("down", "--name", name)
    assert traces(name) == []
    subnet = cluster.layout.nodes[0].address.rpartition(".")[0]
    with open("/proc/net/nf_conntrack") as tracked:
        assert [line for line in tracked if f"={subnet}." in line] == []
