"""`swarmlet backup`, `restore` and `uninstall` on an agent of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_node import RealNode, busybox_archive

from swarmlet.local import hosts

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]
SWARMLET = str(Path(sys.executable).with_name("swarmlet"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    """An agent that has never been a member; whatever a failed test leaves is ended."""
    made = RealNode(f"swlupkeep{os.getpid()}", tmp_path)
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    subprocess.run(["ip", "-n", made.name, "link", "set", "lo", "up"], check=True)
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGTERM)
        command(made, "uninstall", "--yes")
        hosts.remove_mounts_below(Path(f"/run/{made.name}"), made.base)
        subprocess.run(["ip", "netns", "delete", made.name], check=True)
        shutil.rmtree(f"/run/{made.name}", ignore_errors=True)
        hosts.remove_cgroups(f"/{made.name}")


def command(node: RealNode, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    argv = ["nsenter", f"--net=/run/netns/{node.name}", SWARMLET, name, f"--config={node.base}/agent.toml", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90)


def traces(node: RealNode) -> list[str]:
    """What of the node the kernel still has."""
    inside = ["ip", "netns", "exec", node.name]
    links = json.loads(subprocess.run([*inside, "ip", "-j", "link"], capture_output=True, check=True).stdout)
    tables = subprocess.run([*inside, "nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if node.name in line]
    cgroups = [f"{hierarchy}/{node.name}" for hierarchy in hosts.cgroup_hierarchies()]
    return [
        *(link["ifname"] for link in links if link["ifname"] != "lo"), *tables.splitlines(),
        *(mount for mount in mounts if "/run/netns/" not in mount), *(path for path in cgroups if os.path.isdir(path)),
        *(str(path) for path in (node.base / "data", Path(f"/run/{node.name}")) if path.exists()),
    ]


def busy(node: RealNode) -> None:
    """Containers with a network, a volume and a port, one that has ended, and one that removes itself."""
    with node.client() as client:
        client.images.load(busybox_archive())
        client.networks.create("upkeep")
        client.volumes.create("kept", driver_opts={"type": "tmpfs", "device": "tmpfs"})
        client.containers.run(
            "busybox", "sleep 600", name="runs", network="upkeep", ports={"80/tcp": 8080}, volumes=["kept:/kept"],
            detach=True,
        )
        client.containers.run("busybox", "sleep 600", name="goes", remove=True, detach=True)
        client.containers.run("busybox", "true", name="ended")


def test_uninstall_leaves_nothing_and_may_be_repeated(node: RealNode) -> None:
    busy(node)
    refused = command(node, "uninstall", "--yes")
    assert refused.returncode == 1 and "stop it before uninstalling" in refused.stderr
    node.end(signal.SIGKILL)
    asked = command(node, "uninstall")
    assert asked.returncode == 1 and "Aborted" in asked.stderr
    done = command(node, "uninstall", "--yes")
    assert (done.returncode, done.stdout, traces(node)) == (0, "Everything is removed.\n", []), done.stderr
    again = command(node, "uninstall", "--yes")
    assert (again.returncode, again.stdout) == (0, "There is nothing to remove.\n")


def cluster(node: RealNode, *args: str) -> subprocess.CompletedProcess[str]:
    argv = ["docker", "-H", f"unix:///run/{node.name}/manager.sock", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def create_service(node: RealNode, name: str, replicas: int) -> None:
    made = cluster(node, "service", "create", "-d", "--name", name, f"--replicas={replicas}", "busybox", "sleep", "600")
    assert made.returncode == 0, made.stderr


def services(node: RealNode) -> dict[str, str]:
    """Names and how many of their tasks run; empty while the manager does not answer."""
    listed = cluster(node, "service", "ls", "--format", "{{.Name}} {{.Replicas}}").stdout
    return dict(line.split(" ", 1) for line in listed.splitlines())


def wait_for(node: RealNode, wanted: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while (found := services(node)) != wanted:
        assert time.monotonic() < deadline, (found, (node.base / "agent.log").read_text()[-3000:])
        time.sleep(0.1)


@pytest.fixture
def manager(node: RealNode) -> RealNode:
    with node.client() as client:
        client.images.load(busybox_archive())
        client.swarm.init(advertise_addr="127.0.0.1", listen_addr="0.0.0.0:2377")
    create_service(node, "web", 2)
    wait_for(node, {"web": "2/2"})
    return node


def test_a_destroyed_manager_is_restored_from_its_backup(manager: RealNode, tmp_path: Path) -> None:
    file = tmp_path / "cluster.tar"
    done = command(manager, "backup", str(file))
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600 and list(tmp_path.glob(".*")) == []
    assert "exists already" in command(manager, "backup", str(file)).stderr
    create_service(manager, "later", 1)
    assert "stop it before restoring" in command(manager, "restore", "--yes", str(file)).stderr
    manager.end(signal.SIGTERM)
    assert command(manager, "uninstall", "--yes").returncode == 0

    done = command(manager, "restore", "--yes", str(file))
    assert (done.returncode, done.stdout) == (0, "Restored: start the agent.\n"), done.stderr
    manager.start()
    with manager.client() as client:
        client.images.load(busybox_archive())
    wait_for(manager, {"web": "2/2"})


def test_agents_follow_a_restored_manager_whatever_was_elected_after_the_backup(
    manager: RealNode, tmp_path: Path
) -> None:
    """The agent keeps its journal, and in it the highest term it has seen; etcd counts from the backup's revision."""
    file = tmp_path / "cluster.tar"
    assert command(manager, "backup", str(file)).returncode == 0
    for name in ("one", "two", "three"):
        create_service(manager, name, 1)
    wait_for(manager, {"web": "2/2", "one": "1/1", "two": "1/1", "three": "1/1"})
    pid = int((manager.base / "data/manager/manager.pid").read_text().split()[0])
    os.kill(pid, signal.SIGTERM)  # the agent starts another one, which is elected anew
    wait_for(manager, {"web": "2/2", "one": "1/1", "two": "1/1", "three": "1/1"})
    create_service(manager, "seen", 1)
    wait_for(manager, {"web": "2/2", "one": "1/1", "two": "1/1", "three": "1/1", "seen": "1/1"})
    manager.end(signal.SIGTERM)
    assert command(manager, "restore", "--yes", str(file)).returncode == 0
    manager.start()
    wait_for(manager, {"web": "2/2"})
    create_service(manager, "new", 1)
    wait_for(manager, {"web": "2/2", "new": "1/1"})


def test_what_is_no_backup_touches_nothing(manager: RealNode, tmp_path: Path) -> None:
    whole, cut, other = (tmp_path / name for name in ("whole.tar", "cut.tar", "other.tar"))
    assert command(manager, "backup", str(whole)).returncode == 0
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with tarfile.open(other, "w") as tar:
        tar.add(__file__, "membership.json")
    manager.end(signal.SIGTERM)
    for file, complaint in ((cut, "is no backup"), (other, "it lacks"), (tmp_path / "none.tar", "cannot read")):
        done = command(manager, "restore", "--yes", str(file))
        assert done.returncode == 1 and complaint in done.stderr
    manager.start()
    wait_for(manager, {"web": "2/2"})
