"""Ansible's community.docker: the playbooks in playbooks/, which say themselves what must change and what not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View
from e2e_dependencies import remove_all
from installed_clients import ansible

#: Every task is a process of Python: on a machine with much else to do that adds up.
pytestmark = pytest.mark.timeout(330)
PLAYBOOKS = Path(__file__).parent / "playbooks"
COLLECTIONS = Path(__file__).parents[2] / "ansible/collections"


@pytest.fixture
def tidy_node(cluster: Cluster) -> Iterator[View]:
    """A node without what a playbook that failed has left."""
    node = cluster.node(1)
    yield node
    left = node("ps", "-aq", "--filter", "name=play").split()
    if left:
        node.run("rm", "-f", "-v", *left)
    for name in ("play-net", "play-other"):
        node.run("network", "rm", name)
    for number in (1, 2, 3):
        cluster.node(number).run("volume", "rm", "play-data", "play-service-data")
    images = node("images", "-q", "--filter", "label=made=by-play").split()
    if images:
        node.run("rmi", "-f", *set(images))


def _environment(home: Path) -> dict[str, str]:
    config = home / "ansible.cfg"  # none of the machine's
    config.touch()
    return os.environ | {
        "ANSIBLE_HOME": str(home), "ANSIBLE_CONFIG": str(config), "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_REMOTE_TEMP": str(home / "remote"),
        "ANSIBLE_PYTHON_INTERPRETER": str(ansible("python")),
        "ANSIBLE_PIPELINING": "true", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
    }  # fmt: skip


def play(playbook: str, home: Path, *options: str, inventory: str = "localhost,", **values: str) -> str:
    """What ansible-playbook says of a play that succeeds."""
    extra = [word for key, value in values.items() for word in ("-e", f"{key}={value}")]
    done = subprocess.run(
        [str(ansible("ansible-playbook")), "-i", inventory, *extra, *options, str(PLAYBOOKS / playbook)],
        capture_output=True, text=True, timeout=300, env=_environment(home), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    return done.stdout


def test_containers_and_what_they_need(tidy_node: View, tmp_path: Path) -> None:
    assert "failed=0" in play("containers.yml", tmp_path, engine=tidy_node.url)


def test_images(tidy_node: View, tmp_path: Path, registry: str) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "FROM busybox AS first\nARG WHO\nRUN echo built for $WHO | tee /file\nCMD cat /file\nFROM first\nRUN false\n"
    )
    said = play("images.yml", tmp_path, engine=tidy_node.url, registry=registry, context=str(context))
    assert "failed=0" in said


def test_the_swarm(cluster: Cluster, tidy_node: View, tmp_path: Path) -> None:
    program = shutil.which("docker")
    assert program
    assert "failed=0" in play("swarm.yml", tmp_path, engine=cluster.view.url, docker_cli=program)


def test_secrets_and_configs(cluster: Cluster, tidy_node: View, tmp_path: Path) -> None:
    program = shutil.which("docker")
    assert program
    try:
        assert "failed=0" in play("dependencies.yml", tmp_path, engine=cluster.view.url, docker_cli=program)
    finally:
        remove_all(cluster)


def test_a_stack_of_the_collection(cluster: Cluster, tidy_node: View, tmp_path: Path) -> None:
    program = shutil.which("docker")
    assert program
    folder = tmp_path / "stack"
    folder.mkdir()
    try:
        said = play("stack.yml", tmp_path, engine=cluster.view.url, docker_cli=program, folder=str(folder))
    finally:
        cluster.view.run("stack", "rm", "play-stack")
        remove_all(cluster)
    assert "failed=0" in said


def _python_of_the_host() -> list[str]:
    """Options of `docker run` that bring this test's interpreter into a container of busybox."""
    places = {os.path.realpath(sys.base_prefix), "/usr", "/lib", "/lib64"}
    return [word for place in sorted(places) if os.path.exists(place) for word in ("-v", f"{place}:{place}:ro")]


def test_modules_run_inside_containers_of_an_inventory(cluster: Cluster, tidy_node: View, tmp_path: Path) -> None:
    tidy_node("run", "-d", "--name", "play-inside", *_python_of_the_host(), "busybox", "sleep", "600")
    (tmp_path / "docker.yml").write_text(json.dumps({
        "plugin": "community.docker.docker_containers", "docker_host": tidy_node.url, "connection_type": "docker-api"
    }))  # fmt: skip
    (tmp_path / "docker_swarm.yml").write_text(json.dumps({
        "plugin": "community.docker.docker_swarm", "docker_host": cluster.view.url
    }))  # fmt: skip

    def inventory(name: str) -> dict[str, dict[str, dict[str, object]]]:
        done = subprocess.run(
            [str(ansible("ansible-inventory")), "-i", str(tmp_path / name), "--list"],
            capture_output=True, text=True, timeout=60, env=_environment(tmp_path), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    assert set(inventory("docker.yml")["_meta"]["hostvars"]) == {"play-inside"}
    nodes = inventory("docker_swarm.yml")
    ids = {row["ID"] for row in cluster.view.rows("node", "ls")}
    assert set(nodes["_meta"]["hostvars"]) == ids and {"manager", "worker", "leader"} <= set(nodes)
    python = os.path.realpath(sys.executable)
    said = play("inside.yml", tmp_path, inventory=str(tmp_path / "docker.yml"), python=python)
    assert "failed=0" in said and "unreachable=0" in said
    assert tidy_node("exec", "play-inside", "cat", "/etc/brought") == "by ansible"
    assert (tmp_path / "fetched").read_text() == "by ansible\n"
