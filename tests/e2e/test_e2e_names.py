"""Every kind of name that a container may ask its resolver for, on every node, and that answers follow the state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import docker
import pytest
from dns_tools import NXDOMAIN, OK, SERVFAIL, Reply, ask, outside, reverse
from e2e_cluster import Cluster, View, eventually

NETWORK = "named"
AT_ONCE = ("--stop-grace-period", "0s")
SLEEP = ("busybox", "sleep", "600")
#: Seconds from a change to the right answers on every node, on a machine that is busy with other things.
FOLLOW_S = 15.0
Askers = dict[int, tuple[View, str]]


def containers(cluster: Cluster, service: str) -> dict[str, tuple[View, str]]:
    """Task name -> its engine and container, of those that run."""
    label = f"label=com.docker.swarm.service.name={service}"
    found = {}
    for number in (1, 2, 3):
        node = cluster.node(number)
        for row in node.rows("ps", "--filter", label, "--no-trunc"):
            found[row["Names"]] = (node, row["ID"])
    return found


def address(node: View, ident: str) -> str:
    return node("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}', ident)


def addresses(cluster: Cluster, service: str) -> dict[str, str]:
    """Task name -> its address."""
    return {name: address(*place) for name, place in containers(cluster, service).items()}


@pytest.fixture
def askers(cluster: Cluster) -> Iterator[Askers]:
    """A container on each node, in the network: node number -> its engine and the container."""
    view = cluster.view
    view("network", "create", "-d", "overlay", NETWORK)
    view("service", "create", "-d", "--name", "asker", "--mode", "global", "--network", NETWORK, *AT_ONCE, *SLEEP)
    cluster.wait_running("asker", 3)
    yield by_node(cluster)
    view("service", "rm", *view("service", "ls", "-q").split())
    eventually(lambda: view.run("network", "rm", NETWORK).returncode == 0)


def by_node(cluster: Cluster) -> Askers:
    found = {}
    for number in (1, 2, 3):
        node = cluster.node(number)
        found[number] = (node, node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=asker"))
    return found


def everywhere(askers: Askers, check: Callable[[View, str], object], timeout_s: float = FOLLOW_S) -> None:
    """The check becomes true in every asker."""
    for node, ident in askers.values():
        eventually(lambda node=node, ident=ident: check(node, ident), timeout_s, period_s=0.02)


def web(cluster: Cluster, *, replicas: int, mode: str = "vip") -> str:
    """A service with a named and an unnamed port and an alias; its virtual address, "" for none."""
    with contextlib.closing(docker.DockerClient(base_url=cluster.view.url)) as client:
        template = docker.types.TaskTemplate(
            docker.types.ContainerSpec("busybox", ["sleep", "600"], stop_grace_period=0),
            networks=[{"Target": NETWORK, "Aliases": ["www"]}],
        )
        publish = "host" if mode == "dnsrr" else "ingress"
        ports = [
            {"Name": "http", "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 0, "PublishMode": publish},
            {"Protocol": "udp", "TargetPort": 5353, "PublishedPort": 0, "PublishMode": publish},
        ]
        client.api.create_service(
            template, name="web", endpoint_spec={"Mode": mode, "Ports": ports},
            mode=docker.types.ServiceMode("replicated", replicas=replicas),
        )  # fmt: skip
    cluster.wait_running("web", replicas)
    shown = cluster.view.json("service", "inspect", "web")[0]["Endpoint"].get("VirtualIPs") or []
    ident = cluster.view("network", "inspect", "-f", "{{.ID}}", NETWORK)
    return next((vip["Addr"].partition("/")[0] for vip in shown if vip["NetworkID"] == ident), "")


def is_answered(reply: Reply, *records: str) -> bool:
    return reply.code == OK and reply.records == set(records)


def test_every_kind_of_name_is_answered_on_every_node(cluster: Cluster, askers: Askers) -> None:
    vip = web(cluster, replicas=3)
    tasks = addresses(cluster, "web")
    by_slot = {name.split(".")[1]: found for name, found in tasks.items()}
    for name in ("web", "WWW", "web.named", "www.named"):
        everywhere(askers, lambda node, ident, name=name: is_answered(ask(node, ident, name), vip))
    for name in ("tasks.web", "tasks.www", "tasks.web.named"):
        everywhere(askers, lambda node, ident, name=name: is_answered(ask(node, ident, name), *tasks.values()))
    for node, ident in askers.values():
        for slot, found in by_slot.items():
            assert is_answered(ask(node, ident, f"{slot}.web"), found)
            assert is_answered(ask(node, ident, f"{slot}.www.named"), found)
        for name, (_, container) in containers(cluster, "web").items():
            # By its name, its short id (also its host name), and back.
            for own in (name, container[:12], f"{name}.named"):
                assert is_answered(ask(node, ident, own), tasks[name]), own
            assert is_answered(ask(node, ident, reverse(tasks[name]), "PTR"), f"{name}.named")
        assert is_answered(ask(node, ident, reverse(vip), "PTR"), "web.named")


def test_ports_of_services_are_found_by_srv_records(cluster: Cluster, askers: Askers) -> None:
    vip = web(cluster, replicas=2)
    by_slot = {name.split(".")[1]: found for name, found in addresses(cluster, "web").items()}
    each = {f"{slot}.web.named": found for slot, found in by_slot.items()}

    def has_all(node: View, ident: str) -> bool:
        return ask(node, ident, "_80._tcp.tasks.web", "SRV").records == {f"80 {target}" for target in each}

    everywhere(askers, has_all)
    for node, ident in askers.values():
        for name in ("_80._tcp.web", "_http._tcp.web", "_http._tcp.web.named"):
            reply = ask(node, ident, name, "SRV")
            assert is_answered(reply, "80 web.named") and reply.extra == {("web.named", vip)}
        assert is_answered(ask(node, ident, "_5353._udp.www", "SRV"), "5353 www.named")
        reply = ask(node, ident, "_http._tcp.tasks.web", "SRV")
        assert reply.extra == set(each.items())
        # A target is a name that can be asked for.
        assert is_answered(ask(node, ident, "1.web.named"), by_slot["1"])
        assert ask(node, ident, "_81._tcp.web", "SRV").code == NXDOMAIN
        assert ask(node, ident, "_80._udp.web", "SRV").code == NXDOMAIN
        assert ask(node, ident, "web", "SRV").empty and ask(node, ident, "_80._tcp.web").empty


def test_no_such_record_is_told_from_no_such_name(cluster: Cluster, askers: Askers) -> None:
    web(cluster, replicas=1)
    everywhere(askers, lambda node, ident: ask(node, ident, "1.web").records)
    for node, ident in askers.values():
        for name, kind in (("web", "AAAA"), ("tasks.web", "AAAA"), ("1.web", "AAAA"), ("web", "MX"), ("web", "TXT")):
            assert ask(node, ident, name, kind).empty, (name, kind)
        for name in ("2.web", "2.web.named", "0.www"):
            assert ask(node, ident, name).code == NXDOMAIN, name
        for options in ({"tcp": True}, {"edns": 1232}, {"tcp": True, "edns": 4096}):
            reply = ask(node, ident, "tasks.web", **options)
            assert reply.code == OK and len(reply.records) == 1 and reply.edns == ("edns" in options)
    cluster.view("service", "scale", "-d", "web=0")
    # The service is still known, and has nobody.
    everywhere(askers, lambda node, ident: ask(node, ident, "tasks.web").empty)
    assert all(ask(node, ident, "1.web").code == NXDOMAIN for node, ident in askers.values())


def test_a_service_without_virtual_address_stands_for_its_tasks(cluster: Cluster, askers: Askers) -> None:
    assert web(cluster, replicas=2, mode="dnsrr") == ""
    tasks = addresses(cluster, "web")
    for name in ("web", "www", "tasks.web"):
        everywhere(askers, lambda node, ident, name=name: is_answered(ask(node, ident, name), *tasks.values()))
    node, ident = askers[1]
    targets = {f"80 {name.split('.')[1]}.web.named" for name in tasks}
    eventually(lambda: ask(node, ident, "_http._tcp.web", "SRV").records == targets)


def test_answers_follow_scaling_and_the_death_of_tasks(cluster: Cluster, askers: Askers) -> None:
    web(cluster, replicas=3)
    before = addresses(cluster, "web")
    first = next(name for name in before if name.startswith("web.1."))
    second = next(name for name in before if name.startswith("web.2."))
    everywhere(askers, lambda node, ident: ask(node, ident, "tasks.web").records == set(before.values()))
    # Killed, and for a long time not replaced: its address is nowhere any more; the other slots stay as they are.
    cluster.view("service", "update", "-d", "--restart-delay", "60s", "web")
    eventually(lambda: len(set(addresses(cluster, "web")) - set(before)) == 3 and len(cluster.running("web")) == 3, 60)
    before = addresses(cluster, "web")
    assert first not in before and second not in before
    everywhere(askers, lambda node, ident: ask(node, ident, "tasks.web").records == set(before.values()))
    second = next(name for name in before if name.startswith("web.2."))
    node, ident = containers(cluster, "web")[second]
    node("kill", ident)
    left = {found for name, found in before.items() if name != second}
    everywhere(askers, lambda node, ident: ask(node, ident, "tasks.web").records == left)
    for node, ident in askers.values():
        assert before[second] not in ask(node, ident, "2.web").records
        for name in (name for name in before if name != second):
            assert is_answered(ask(node, ident, f"{name.split('.')[1]}.web"), before[name])
    cluster.view("service", "scale", "-d", "web=1")
    everywhere(
        askers, lambda node, ident: ask(node, ident, "tasks.web").records <= {before[n] for n in before if ".1." in n}
    )
    everywhere(askers, lambda node, ident: ask(node, ident, "3.web").code == NXDOMAIN)


def test_a_task_is_named_once_it_is_healthy(cluster: Cluster, askers: Askers) -> None:
    cluster.view("service", "create", "-d", "--name", "slow", "--network", NETWORK, *AT_ONCE, "--health-cmd",
                 "test -e /tmp/fine", "--health-interval", "200ms", "--health-start-period", "60s", *SLEEP)  # fmt: skip
    place = eventually(lambda: list(containers(cluster, "slow").values()))[0]
    node, ident = askers[3]
    eventually(lambda: ask(node, ident, "tasks.slow").code == OK)
    assert ask(node, ident, "tasks.slow").empty and ask(node, ident, "1.slow").empty
    place[0]("exec", place[1], "touch", "/tmp/fine")
    everywhere(askers, lambda node, ident: is_answered(ask(node, ident, "tasks.slow"), address(*place)), 20)


def test_after_a_healed_partition_no_answer_is_stale(cluster: Cluster, askers: Askers) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--replicas", "2", "--network", NETWORK, *AT_ONCE,
         "--constraint", "node.hostname!=node-1", "--replicas-max-per-node", "2", *SLEEP)  # fmt: skip
    cluster.wait_running("web", 2)
    old = {name: address(*place) for name, place in containers(cluster, "web").items() if place[0] is not None}
    lost = {address(node, ident) for node, ident in containers(cluster, "web").values() if node == cluster.node(3)}
    assert lost and len(old) == 2
    cluster.command("cut", 3)
    try:
        eventually(lambda: len([task for task in cluster.running("web") if task["Node"] == "node-2"]) == 2)
        view("service", "scale", "-d", "web=1")
        eventually(lambda: len(cluster.tasks("web")) == 1)
    finally:
        cluster.command("heal", 3)
    eventually(lambda: len(cluster.ready()) == 3)
    cluster.wait_running("asker", 3)
    askers = by_node(cluster)
    cluster.wait_running("web", 1)
    eventually(lambda: len(addresses(cluster, "web")) == 1)
    right = set(addresses(cluster, "web").values())
    everywhere(askers, lambda node, ident: ask(node, ident, "tasks.web").records == right)
    for node, ident in askers.values():
        for stale in set(old.values()) - right:
            assert not any(".named" in found for found in ask(node, ident, reverse(stale), "PTR").records)
        for slot in ("2", "3"):
            assert not ask(node, ident, f"{slot}.web").records


def test_other_names_are_asked_outside_with_tcp_and_edns_as_the_asker_does(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("network", "create", "own")
    node("network", "create", "--internal", "closed")
    many = [f"198.51.100.{last}" for last in range(1, 41)]
    zone = {"db.example.test": ["127.0.0.9"], "many.example.test": many}
    gateway = cluster.layout.gateway
    try:
        with outside(gateway, zone) as server:
            node("run", "-d", "--name", "asker", "--network", "own", "--dns", gateway, "--dns-search", "example.test",
                 "--dns-opt", "timeout:3", *SLEEP)  # fmt: skip
            assert is_answered(ask(node, "asker", "db.example.test"), "127.0.0.9")
            assert ask(node, "asker", "db.example.test", "AAAA").empty
            assert ask(node, "asker", "no.example.test").code == NXDOMAIN
            cut = ask(node, "asker", "many.example.test", edns=1232)
            assert cut.truncated and not cut.records
            assert is_answered(ask(node, "asker", "many.example.test", tcp=True), *many)
            assert ("udp", "many.example.test", True) in server.heard
            assert ("tcp", "many.example.test", False) in server.heard
            # By the container's own search domain; a name of the network is asked of nobody.
            assert "PING db (127.0.0.9)" in node("exec", "asker", "ping", "-c", "1", "db")
            assert is_answered(ask(node, "asker", "asker"), node(
                "inspect", "-f", "{{.NetworkSettings.Networks.own.IPAddress}}", "asker"))  # fmt: skip
            assert "asker" not in {name for _, name, _ in server.heard}
            files = node("exec", "asker", "cat", "/etc/resolv.conf").splitlines()
            assert files[:2] == ["nameserver 127.0.0.11", "search example.test"] and "timeout:3" in files[2]
            # What cannot leave its network cannot ask outside it either.
            node("run", "-d", "--name", "inmate", "--network", "closed", "--dns", gateway, *SLEEP)
            assert ask(node, "inmate", "db.example.test").code == SERVFAIL
        assert ask(node, "asker", "db.example.test").code == SERVFAIL  # nobody answers there any more
    finally:
        node("rm", "-f", "asker", "inmate")
        node("network", "rm", "own", "closed")
