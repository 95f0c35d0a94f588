"""Three managers on a real etcd: each answers for the cluster, and nothing told as done is lost with a leader."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from e2e_cluster import NAME, eventually
from e2e_managers import Managed, three_managers

VALUE = b"told-to-the-first-leader"
#: A lease of three seconds, an election and the first steps of a leader, on a machine that does other things too.
FAILOVER_S = 25.0


@pytest.fixture(scope="module")
def managers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    with three_managers(tmp_path_factory.mktemp("etcd"), f"{NAME}-mm") as cluster:
        yield cluster


def test_every_manager_shows_the_same_nodes_and_itself_as_one(managers: Managed) -> None:
    leader = managers.leader()
    for number in (1, 2, 3):
        rows = managers.manager(number).rows("node", "ls")
        shown = {row["Hostname"]: row["ManagerStatus"] for row in rows}
        assert shown == {f"node-{each}": "Leader" if each == leader else "Reachable" for each in (1, 2, 3)}
        assert [row["Hostname"] for row in rows if row["Self"]] == [f"node-{number}"]
        swarm = managers.node(number).json("info", "--format", "{{json .Swarm}}")
        assert swarm["ControlAvailable"] and (swarm["Managers"], swarm["Nodes"]) == (3, 3)
        addresses = {manager["Addr"] for manager in swarm["RemoteManagers"]}
        assert addresses == {f"{host.address}:2377" for host in managers.layout.managers}


def test_what_is_made_through_a_follower_is_found_at_once_and_everywhere(managers: Managed) -> None:
    follower = managers.follower()
    view = managers.manager(follower)
    with contextlib.closing(docker.DockerClient(base_url=managers.node(follower).url)) as client:
        service = client.services.create("busybox", ["sleep", "600"], name="by-api")
        assert client.services.get(service.id).name == "by-api"
        assert service.update(labels={"a": "b"})
    for number in (1, 2, 3):
        assert managers.manager(number).json("service", "inspect", "by-api")[0]["Spec"]["Labels"] == {"a": "b"}
    said = view(
        "service", "create", "--name", "waited", "--replicas", "2", "busybox", "sh", "-c", "echo here; sleep 600"
    )  # fmt: skip
    assert "converged" in said
    eventually(lambda: view("service", "logs", "waited").count("here") == 2)
    taken = view.run("service", "create", "-d", "--name", "waited", "busybox")
    assert taken.returncode == 1 and b"service waited already exists" in taken.stderr
    assert view("run", "--rm", "busybox", "echo", "hello") == "hello"
    view("service", "rm", "by-api", "waited")


STACK = """\
version: "3.8"
services:
  web:
    image: busybox
    command: ["sleep", "600"]
    deploy: {replicas: 2}
    configs: [words]
configs:
  words: {file: ./words}
"""


def test_a_follower_takes_stacks_and_tells_what_happens_to_them(managers: Managed, tmp_path: Path) -> None:
    follower = managers.follower()
    other = ({1, 2, 3} - {follower, managers.leader()}).pop()
    view = managers.manager(follower)
    (tmp_path / "words").write_text("some\n")
    (tmp_path / "stack.yml").write_text(STACK)
    since = str(int(time.time()))
    deploy = ("stack", "deploy", "--detach=true", "-c", str(tmp_path / "stack.yml"), "shop")
    with managers.manager(other).popen(
        "events", "--since", since, "--filter", "type=service", "--format", "{{.Action}} {{.Actor.Attributes.name}}",
        stdout=subprocess.PIPE,
    ) as events:
        try:
            assert events.stdout is not None
            told = (line for line in events.stdout if line.endswith(b" shop_web\n"))  # not of what went before
            view(*deploy)
            assert next(told) == b"create shop_web\n"
            (tmp_path / "stack.yml").write_text(STACK.replace("replicas: 2", "replicas: 3"))
            view(*deploy)
            assert next(told) == b"update shop_web\n"
        finally:
            events.kill()
    for number in (1, 2, 3):
        eventually(lambda number=number: [
            (row["Name"], row["Replicas"]) for row in managers.manager(number).rows("stack", "services", "shop")
        ] == [("shop_web", "3/3")])
    view("stack", "rm", "shop")
    eventually(lambda: view("config", "ls", "-q") == "")


def test_tokens_are_rotated_and_nodes_are_changed_through_a_follower(managers: Managed) -> None:
    view = managers.manager(managers.follower())
    before = view("swarm", "join-token", "-q", "worker")
    after = view("swarm", "join-token", "-q", "--rotate", "worker")
    assert after != before
    view("node", "update", "--label-add", "disk=ssd", "node-3")
    for number in (1, 2, 3):
        assert managers.manager(number)("swarm", "join-token", "-q", "worker") == after
        assert managers.manager(number).json("node", "inspect", "node-3")[0]["Spec"]["Labels"] == {"disk": "ssd"}
    view("node", "update", "--label-rm", "disk", "node-3")


def test_a_leader_killed_among_writes_loses_nothing_that_was_told_as_done(managers: Managed) -> None:
    leader, follower = managers.leader(), managers.follower()
    view = managers.manager(follower)
    managers.manager(leader)("secret", "create", "handed-over", "-", input=VALUE)
    done: list[str] = []
    failed: list[str] = []
    slowest = 0.0
    killed = threading.Timer(1.5, os.kill, (managers.pid(leader, "swarmlet-manager"), signal.SIGKILL))
    killed.start()
    ends = time.monotonic() + 8
    number = 0
    while time.monotonic() < ends or len(done) < 5:
        number += 1
        began = time.monotonic()
        made = view.run("config", "create", f"c{number}", "-", input=b"x", timeout=FAILOVER_S)
        slowest = max(slowest, time.monotonic() - began)
        if made.returncode == 0:
            done.append(f"c{number}")
        else:
            failed.append(made.stderr.decode())
    killed.join()

    assert slowest < FAILOVER_S
    assert len(failed) <= 1 and all("may" in text or "no leader" in text for text in failed), failed
    managers.leader()  # one that all agree on
    for each in (1, 2, 3):
        eventually(lambda each=each: managers.manager(each).run("config", "ls").returncode == 0)
        assert set(done) <= set(managers.manager(each)("config", "ls", "--format", "{{.Name}}").split())
    view(
        "service", "create", "--name", "reads", "--secret", "handed-over", "busybox", "sh", "-c",
        "cat /run/secrets/handed-over; sleep 600",
    )  # fmt: skip
    assert VALUE.decode() in eventually(lambda: view("service", "logs", "--raw", "reads"))
    eventually(lambda: len([row for row in view.rows("node", "ls") if row["Status"] == "Ready"]) == 3)
    view("service", "rm", "reads")
