"""A cluster that keeps its state in an etcd of the user's own, reached over mutual TLS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_cluster import NAME, Cluster, eventually, swarmlet
from e2e_traces import traces
from fakes.pki_made import make_pki

from swarmlet.local import cluster as clusters
from swarmlet.local import hosts

OWN = f"{NAME}-xe"
PORT = 23790
URL = f"https://127.0.0.1:{PORT}"


class OwnEtcd:
    """The user's etcd, inside the first host's network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        host = clusters.find(OWN).nodes[0]
        pki = self.folder
        argv = [
            "etcd", "--name", "own", "--data-dir", str(self.folder / "data"), "--logger", "zap",
            "--listen-client-urls", URL, "--advertise-client-urls", URL,
            "--listen-peer-urls", f"http://127.0.0.1:{PORT + 1}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{PORT + 1}",
            "--initial-cluster", f"own=http://127.0.0.1:{PORT + 1}",
            "--cert-file", str(pki / "server.pem"), "--key-file", str(pki / "server.key"),
            "--trusted-ca-file", str(pki / "ca.pem"), "--client-cert-auth",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                hosts.enter_argv(host, argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def options(self, cert: str = "client") -> list[str]:
        pki = self.folder
        return [
            "--etcd", URL, "--etcd-ca", f"{pki}/ca.pem", "--etcd-cert", f"{pki}/{cert}.pem",
            "--etcd-key", f"{pki}/{cert}.key",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def own_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEtcd]:
    folder = tmp_path_factory.mktemp("own-etcd")
    make_pki(folder)
    etcd = OwnEtcd(folder)
    yield etcd
    etcd.kill()


def bring_up(etcd: OwnEtcd, *options: str) -> None:
    """`up` makes the host's network, where etcd is then started; the manager waits for it."""
    starting = subprocess.Popen(
        [str(Path(sys.executable).with_name("swarmlet")), "up", "--name", OWN, *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        eventually(lambda: OWN in clusters.all_names() and clusters.find(OWN).nodes[0].agent_socket.exists(), 60)
        etcd.start()
        _, said = starting.communicate(timeout=90)
        assert starting.returncode == 0, said
    finally:
        if starting.poll() is None:
            starting.kill()
            starting.communicate()


@pytest.fixture(scope="module")
def one_node(own_etcd: OwnEtcd) -> Iterator[Cluster]:
    swarmlet("down", "--name", OWN)
    try:
        bring_up(own_etcd, "--nodes", "1", *own_etcd.options())
        yield Cluster(clusters.find(OWN))
    finally:
        swarmlet("down", "--name", OWN)
        own_etcd.kill()
        assert traces(OWN) == []


def test_the_manager_uses_the_given_etcd_and_starts_none(one_node: Cluster, own_etcd: OwnEtcd) -> None:
    one_node.view("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sleep", "600")
    one_node.wait_running("web", 2)

    with pytest.raises(LookupError):
        one_node.pid(1, "etcd")  # none of its own: the test's is not of the host's cgroup
    keys = _etcdctl(one_node, own_etcd, "get", "--prefix", "--keys-only", "/swarmlet/").stdout.split()
    assert len(keys) > 4 and all(key.startswith("/swarmlet/") for key in keys)


def test_the_settings_stand_in_the_hosts_file(one_node: Cluster, own_etcd: OwnEtcd) -> None:
    text = one_node.host(1).config_file.read_text()
    assert f'endpoints = ["{URL}"]' in text and f'ca = "{own_etcd.folder}/ca.pem"' in text
    swarmlet("up", "--name", OWN)  # needs not be told again
    assert one_node.host(1).config_file.read_text() == text
    other = swarmlet("up", "--name", OWN, "--etcd", "http://127.0.0.1:1", check=False)
    assert other.returncode == 1 and f"keeps its state in {URL} already" in other.stderr


def test_manager_and_agent_killed_find_everything_again(one_node: Cluster) -> None:
    one_node.view("service", "create", "-d", "--name", "kept", "--label", "a=b", "busybox", "sleep", "600")
    before = {task["ID"] for task in one_node.wait_running("kept", 1)}
    manager, agent = one_node.pid(1, "swarmlet-manager"), one_node.pid(1, "swarmlet-agent")
    for pid in (manager, agent):
        os.kill(pid, signal.SIGKILL)

    eventually(lambda: one_node.pid(1, "swarmlet-manager") not in (0, manager))
    eventually(lambda: one_node.view.run("node", "ls").returncode == 0)
    assert one_node.view.json("service", "inspect", "kept")[0]["Spec"]["Labels"] == {"a": "b"}
    eventually(lambda: {task["ID"] for task in one_node.running("kept")} == before)
    eventually(lambda: "node-1" in one_node.ready())
    one_node.view("service", "scale", "-d", "kept=3")
    assert before < {task["ID"] for task in one_node.wait_running("kept", 3)}


def test_containers_run_on_while_etcd_is_away_and_commands_work_again_after(
    one_node: Cluster, own_etcd: OwnEtcd
) -> None:
    one_node.view("service", "create", "-d", "--name", "calm", "busybox", "sleep", "600")
    [task] = one_node.wait_running("calm", 1)
    own_etcd.kill()
    refused = one_node.view.run("service", "create", "-d", "--name", "late", "busybox", "sleep", "600", timeout=90)
    assert refused.returncode != 0
    assert one_node.node(1)("ps", "-q", "--filter", "name=calm") != ""
    time.sleep(1)
    own_etcd.start()

    def created() -> bool:
        return one_node.view.run("service", "create", "-d", "--name", "late", "busybox", "sleep", "600").returncode == 0

    eventually(created, 60)
    one_node.wait_running("late", 1)
    assert {row["ID"] for row in one_node.wait_running("calm", 1)} == {task["ID"]}


def test_what_a_kill_of_the_whole_host_leaves_is_enough_to_go_on(one_node: Cluster, own_etcd: OwnEtcd) -> None:
    one_node.view("service", "create", "-d", "--name", "phoenix", "busybox", "sleep", "600")
    one_node.wait_running("phoenix", 1)
    one_node.command("kill", 1)
    own_etcd.kill()  # its network went with the host
    bring_up(own_etcd)

    one_node.wait_running("phoenix", 1)
    names = {row["Name"] for row in one_node.view.rows("service", "ls")}
    assert "phoenix" in names


def test_a_certificate_that_etcd_does_not_know_is_told_in_the_managers_log(
    one_node: Cluster, own_etcd: OwnEtcd, tmp_path: Path
) -> None:
    """The manager by itself, with a stranger's certificate: it gives up, with a reason, and touches nothing."""
    program = str(Path(sys.executable).with_name("swarmlet-manager"))
    argv = [
        program, "--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run"), "--port", "23777",
        "--advertise-addr", "127.0.0.1", *own_etcd.options("stranger"),
    ]  # fmt: skip
    process = subprocess.Popen(
        hosts.enter_argv(one_node.host(1), argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"it neither works nor gives up: {said[-2000:]}") from None
    assert process.returncode == 1
    assert "etcd" in said.splitlines()[-1] and "Traceback" not in said


def _etcdctl(cluster: Cluster, etcd: OwnEtcd, *args: str) -> subprocess.CompletedProcess[str]:
    pki = etcd.folder
    argv = [
        "etcdctl", "--endpoints", URL, "--cacert", f"{pki}/ca.pem", "--cert", f"{pki}/client.pem",
        "--key", f"{pki}/client.key", *args,
    ]  # fmt: skip
    return subprocess.run(
        hosts.enter_argv(cluster.host(1), argv), capture_output=True, text=True, check=True, timeout=20,
        env=os.environ | {"ETCDCTL_API": "3"},
    )  # fmt: skip
