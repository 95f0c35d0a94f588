"""`docker context` with an agent behind ssh: the stock command does all of it, by `docker system dial-stdio` there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View
from e2e_sshd import Sshd

Docker = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def remote(cluster: Cluster, tmp_path: Path) -> Iterator[Docker]:
    """The docker command in a context named far, which is the second host's agent over ssh."""
    ssh = shutil.which("ssh")
    assert ssh, "ssh is missing: install the package openssh-client"
    with Sshd(tmp_path / "ssh", "127.0.0.1") as server:
        programs = tmp_path / "bin"
        programs.mkdir()
        (tmp_path / "ssh_config").write_text(server.client_config)
        # ssh reads the configuration of the account's home folder, whatever HOME says.
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {tmp_path}/ssh_config "$@"\n')
        (programs / "ssh").chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "DOCKER_CONFIG": str(tmp_path / "docker")}

        def run(*args: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(["docker", *args], env=environment, input=input, capture_output=True, timeout=90)

        where = f"host=ssh://root@{server.alias}{cluster.node(2).socket}"
        made = run("context", "create", "far", "--description", "by ssh", "--docker", where)
        assert made.returncode == 0, made.stderr
        assert run("context", "use", "far").returncode == 0
        yield run


def test_a_context_over_ssh_reaches_the_agent(cluster: Cluster, remote: Docker) -> None:
    node = cluster.node(2)

    assert remote("info", "--format", "{{.ID}}").stdout.decode().strip() == node("info", "--format", "{{.ID}}")
    contexts = [json.loads(line) for line in remote("context", "ls", "--format", "json").stdout.splitlines()]
    assert [context["Name"] for context in contexts if context["Current"]] == ["far"]
    remote("run", "-d", "--name", "over-ssh", "busybox", "sleep", "60")
    assert node("ps", "--format", "{{.Names}}") == "over-ssh"
    assert b"no-such" in remote("inspect", "no-such").stderr


def test_streams_and_exit_codes_come_through_ssh_and_input_ends(remote: Docker) -> None:
    sent = os.urandom(300_000)
    assert remote("run", "-i", "--rm", "busybox", "cat", input=sent).stdout == sent
    done = remote("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_a_build_and_a_copy_go_through_ssh(cluster: Cluster, remote: Docker, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nCOPY data /data\n")
    (context / "data").write_bytes(b"by ssh" * 50_000)
    packed = subprocess.run(["tar", "-C", str(context), "-c", "."], check=True, capture_output=True).stdout
    assert remote("build", "-t", "by-ssh", "-", input=packed).returncode == 0
    try:
        remote("create", "--name", "copied-from", "by-ssh")
        assert remote("cp", "copied-from:/data", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / "back").read_bytes() == (context / "data").read_bytes()
    finally:
        remote("rm", "-f", "copied-from")
        cluster.node(2).run("rmi", "by-ssh")


def test_the_cluster_is_reached_the_same_way(cluster: Cluster, remote: Docker) -> None:
    where = remote("context", "inspect", "--format", "{{.Endpoints.docker.Host}}").stdout.decode().strip()
    view = View(cluster.view.socket)
    whole = where.replace(str(cluster.node(2).socket), str(view.socket))
    assert remote("context", "create", "whole", "--docker", f"host={whole}").returncode == 0

    shown = remote("--context", "whole", "node", "ls", "--format", "{{.Hostname}}").stdout.decode().split()
    assert sorted(shown) == sorted(view("node", "ls", "--format", "{{.Hostname}}").split()) and len(shown) == 3
