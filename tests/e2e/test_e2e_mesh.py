"""The routing mesh: a published port answers on every node, and the backend sees the client's own address."""

from __future__ import annotations

import re
import subprocess

from e2e_cluster import Cluster, eventually

#: busybox as PID 1 ignores the stop signal.
AT_ONCE = ("--stop-grace-period", "0s")
#: Answers with its container's host name, and logs who asks.
WEB = ("busybox", "sh", "-c", "mkdir -p /w; hostname >/w/index.html; exec httpd -v -f -p 80 -h /w")


def get(cluster: Cluster, number: int, port: int) -> str:
    """What a node answers a client outside the cluster on a port; "" if it does not."""
    url = f"http://{cluster.host(number).address}:{port}/"
    done = subprocess.run(["curl", "-s", "-m", "3", url], capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""


def published(cluster: Cluster, service: str) -> int:
    return int(cluster.view.json("service", "inspect", service)[0]["Endpoint"]["Ports"][0]["PublishedPort"])


def test_every_node_answers_for_every_replica_and_the_clients_address_is_kept(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "-p", "18080:80", "--replicas", "2", *AT_ONCE, *WEB)
    cluster.wait_running("web", 2)
    for number in (1, 2, 3):
        heard = eventually(
            lambda number=number: len(names := {get(cluster, number, 18080) for _ in range(8)} - {""}) == 2 and names
        )
        assert heard
    pattern = re.compile(r"\[(?:::ffff:)?([\d.]+)\]:\d+: response:200")
    clients = eventually(lambda: set(pattern.findall(view.run("service", "logs", "web").stderr.decode())))
    assert clients == {f"{cluster.host(1).address.rpartition('.')[0]}.254"}
    assert "ingress" in view("network", "ls", "--format", "{{.Name}}").split()


def test_a_port_is_chosen_and_a_taken_one_refused(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "one", "-p", "80", *AT_ONCE, *WEB)
    port = published(cluster, "one")
    assert 30_000 <= port <= 32_767
    refused = view.run("service", "create", "-d", "-p", f"{port}:81", *WEB)
    assert refused.returncode and f"port '{port}' is already in use by service".encode() in refused.stderr
    cluster.wait_running("one", 1)
    eventually(lambda: all(get(cluster, number, port) for number in (1, 2, 3)))
    view("service", "update", "-d", "--publish-rm", "80", "one")
    eventually(lambda: not any(get(cluster, number, port) for number in (1, 2, 3)))


def test_a_service_on_a_network_of_its_own_is_published_too(cluster: Cluster) -> None:
    view = cluster.view
    view("network", "create", "-d", "overlay", "own")
    view("service", "create", "-d", "--name", "web", "--network", "own", "-p", "18081:80", "--mode", "global",
         *AT_ONCE, *WEB)  # fmt: skip
    cluster.wait_running("web", 3)
    try:
        for number in (1, 2, 3):
            eventually(lambda number=number: len({get(cluster, number, 18081) for _ in range(12)} - {""}) == 3)
        node = cluster.node(1)
        ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web")
        assert set(node.json("inspect", ident)[0]["NetworkSettings"]["Networks"]) == {"ingress", "own"}
    finally:
        view("service", "rm", "web")
        eventually(lambda: view.run("network", "rm", "own").returncode == 0)


def test_clients_do_not_notice_an_update(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "-p", "18082:80", "--replicas", "2",
         "--update-order", "start-first", "--update-monitor", "1s",
         "--health-cmd", "wget -q -O - http://127.0.0.1:80/", "--health-interval", "1s",
         "--health-start-interval", "200ms", "--health-start-period", "5s", *AT_ONCE, *WEB)  # fmt: skip
    cluster.wait_running("web", 2)
    eventually(lambda: all(get(cluster, number, 18082) for number in (1, 2, 3)))
    view("service", "update", "-d", "--env-add", "V=2", "web")
    heard: list[str] = []

    def updated() -> bool:
        heard.extend(get(cluster, number, 18082) for number in (1, 2, 3))
        status = view.json("service", "inspect", "web")[0].get("UpdateStatus", {})
        return bool(status.get("State") == "completed")

    eventually(updated, 60, 0)
    assert heard.count("") == 0 and len(set(heard)) == 4


def test_a_killed_agent_publishes_on(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "-p", "18083:80", "--constraint", "node.hostname==node-1",
         *AT_ONCE, *WEB)  # fmt: skip
    cluster.wait_running("web", 1)
    eventually(lambda: get(cluster, 3, 18083))
    cluster.exec(3, "kill", "-9", str(cluster.pid(3, "swarmlet-agent")))
    assert all(get(cluster, 3, 18083) for _ in range(20))
    eventually(lambda: cluster.node(3).run("ps").returncode == 0)
    eventually(lambda: len(cluster.ready()) == 3)
    assert get(cluster, 3, 18083)
    view("service", "rm", "web")
    eventually(lambda: not get(cluster, 3, 18083))
