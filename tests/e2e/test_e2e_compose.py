"""docker-compose 1.29, as packaged, against a node's engine: a project from its first `up` to its last `down`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from compose_project import Project
from e2e_cluster import Cluster, eventually

PROJECT = """\
version: "3.8"
services:
  store:
    image: busybox
    command: sh -c "echo store up; mkdir -p /www; echo $$WORD > /data/index.html; httpd -f -p 80 -h /data"
    environment: {WORD: first}
    volumes: ["data:/data"]
    networks: {back: {aliases: [database], ipv4_address: 10.77.0.9}}
    healthcheck: {test: ["CMD", "true"], interval: 1s}
    ulimits: {nofile: 1000}
  web:
    build: {context: web, args: {WHO: you}}
    command: sh -c "until wget -qO- http://database/; do sleep 0.1; done; cat /who; exec sleep 600"
    depends_on: [store]
    ports: ["18990:80"]
    networks: [back, front]
    stop_grace_period: 1s
volumes: {data: {}}
networks:
  back: {ipam: {config: [{subnet: 10.77.0.0/24}]}}
  front: {}
"""


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path, cluster.node(2))
    (tmp_path / "web").mkdir()
    (tmp_path / "web/Dockerfile").write_text("FROM busybox\nARG WHO\nRUN echo built for $WHO > /who\n")
    project.write(PROJECT)
    yield project
    project("down", "-v", "--rmi", "local", "-t", "0", "--remove-orphans")
    left = [
        *project.view("ps", "-aq", "--filter", "label=com.docker.compose.project=comp").split(),
        *project.view("network", "ls", "-q", "--filter", "name=comp_").split(),
        *project.view("volume", "ls", "-q", "--filter", "name=comp_").split(),
        *project.view("images", "-q", "comp_web").split(),
    ]
    assert left == []


def test_a_project_comes_up_and_is_left_alone_the_second_time(project: Project, cluster: Cluster) -> None:
    first = project("up", "-d")
    assert "Successfully tagged comp_web:latest" in first
    eventually(lambda: "built for you" in project("logs", "web"))
    assert re.search(r"web_1\s+\| first", project("logs", "web")) and "store up" in project("logs", "store")
    before = {service: project.ids(service) for service in ("store", "web")}

    second = project("up", "-d")

    assert {service: project.ids(service) for service in ("store", "web")} == before
    assert second.count("is up-to-date") == 2
    shown = project("ps")
    assert re.search(r"comp_web_1 .* Up .*18990->80/tcp", shown) and re.search(r"comp_store_1 .* Up \(healthy\)", shown)
    assert project("port", "web", "80").strip().endswith(":18990")
    assert "sleep" in project("top", "web") and "busybox" in project("images")


def test_commands_reach_the_containers_of_a_service(project: Project) -> None:
    project("up", "-d", "store")

    assert "first" in project("exec", "-T", "store", "cat", "/data/index.html")
    assert project.run("exec", "-T", "store", "sh", "-c", "exit 7").returncode == 7
    assert "10.77.0.9" in project("run", "--rm", "-T", "--no-deps", "web", "nslookup", "database")
    project("pause", "store")
    assert "Paused" in project("ps", "store")
    project("unpause", "store")
    project("restart", "-t", "0", "store")
    project("stop", "-t", "0", "store")
    assert "Exit" in project("ps", "store")
    project("start", "store")
    assert "Up" in project("ps", "store")
    project("kill", "store")
    project("rm", "-f", "store")
    assert project.ids("store") == set()


def test_a_service_is_scaled_and_made_anew_when_it_changes(project: Project, cluster: Cluster) -> None:
    project.write(PROJECT.replace(', ipv4_address: 10.77.0.9', ""))
    project("up", "-d", "--scale", "store=3", "store")
    three = project.ids("store")
    project("up", "-d", "--scale", "store=1", "-t", "0", "store")
    one = project.ids("store")
    assert len(three) == 3 and len(one) == 1 and one < three

    project.write(PROJECT.replace(', ipv4_address: 10.77.0.9', "").replace("WORD: first", "WORD: second"))
    project("up", "-d", "-t", "0", "store")

    changed = project.ids("store")
    assert len(changed) == 1 and not changed & three
    eventually(lambda: "second" in project("exec", "-T", "store", "cat", "/data/index.html"))


def test_published_ports_of_a_project_answer(project: Project, cluster: Cluster) -> None:
    project.write(PROJECT.replace('    ulimits: {nofile: 1000}', '    ports: ["18991:80"]'))
    project("up", "-d", "store")

    def page() -> bytes:
        with urlopen(f"http://{cluster.host(2).address}:18991/", timeout=2) as answer:
            return bytes(answer.read())

    assert eventually(page) == b"first\n"
