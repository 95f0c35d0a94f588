"""Docker clients that come by TCP with certificates, to a host's engine and to the cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.tls
import pytest
from e2e_cluster import Cluster, View, eventually
from fakes.pki_made import make_pki

HOSTS = {"engine": 2376, "cluster": 2374}


@dataclass
class TlsView(View):
    """The same docker command, by TCP and with a client's certificate."""

    address: str
    pki: Path

    @property
    def url(self) -> str:
        return f"tcp://{self.address}"

    def env(self, name: str = "client") -> dict[str, str]:
        folder = self.pki / f"of-{name}"  # where the docker command looks for its certificate
        if not folder.exists():
            folder.mkdir()
            for wanted, given in (("ca.pem", "ca.pem"), ("cert.pem", f"{name}.pem"), ("key.pem", f"{name}.key")):
                (folder / wanted).write_bytes((self.pki / given).read_bytes())
        return {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}


@pytest.fixture(scope="module")
def pki(whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Certificates for clients; the first host's engine and manager listen for those who have one."""
    folder = tmp_path_factory.mktemp("pki")
    host, view = whole_cluster.host(1), whole_cluster.node(1)
    make_pki(folder, host.address)
    before = host.config_file.read_text()

    def restarted(config: str) -> None:
        host.config_file.write_text(config)
        # The agent first: it starts the manager with its own settings when that has ended.
        for program, ready in (("swarmlet-agent", ("info",)), ("swarmlet-manager", ("node", "ls"))):
            old = whole_cluster.pid(1, program)
            os.kill(old, signal.SIGKILL)

            def back(program: str = program, ready: tuple[str, ...] = ready, old: int = old) -> bool:
                return whole_cluster.pid(1, program) != old and view.run(*ready).returncode == 0

            eventually(back, 30)
        eventually(lambda: len(whole_cluster.ready()) == 3)

    tls = f'[hosts_tls]\nca = "{folder}/ca.pem"\ncert = "{folder}/server.pem"\nkey = "{folder}/server.key"\n'
    tcp = f"tcp://{host.address}"
    restarted(
        f'hosts = ["{tcp}:{HOSTS["engine"]}"]\ncluster_hosts = ["{tcp}:{HOSTS["cluster"]}"]\n{before}\n{tls}'
    )
    try:
        yield folder
    finally:
        restarted(before)


@pytest.fixture(params=sorted(HOSTS))
def remote(request: pytest.FixtureRequest, cluster: Cluster, pki: Path) -> TlsView:
    host = cluster.host(1)
    return TlsView(host.agent_socket, f"{host.address}:{HOSTS[request.param]}", pki)


def test_a_client_that_has_sent_its_input_gets_all_of_the_output(remote: TlsView) -> None:
    data = os.urandom(3 << 20)
    done = remote.run("run", "--rm", "-i", "busybox", "cat", input=data, env=remote.env())
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == data

    made = remote.run("run", "-d", "--name", "tls-target", "busybox", "sleep", "600", env=remote.env())
    assert made.returncode == 0, made.stderr
    counted = remote.run("exec", "-i", "tls-target", "wc", "-c", input=data, env=remote.env())
    assert (counted.returncode, counted.stdout.strip()) == (0, str(len(data)).encode())
    failed = remote.run("exec", "-i", "tls-target", "sh", "-c", "cat >/dev/null; exit 7", input=data, env=remote.env())
    assert failed.returncode == 7


def test_contexts_and_libraries_come_in_the_same_way(
    remote: TlsView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)  # docker-py's HTTP library trusts them instead of the CA it is given
    keys = remote.pki
    where = f"host={remote.url},ca={keys}/ca.pem,cert={keys}/client.pem,key={keys}/client.key"
    env = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": ""}
    assert remote.run("context", "create", "far", "--docker", where, env=env).returncode == 0
    shown = remote.run("--context", "far", "info", "-f", "{{.Name}}", env=env)
    assert (shown.returncode, shown.stdout.strip() != b"") == (0, True), shown.stderr
    tls = docker.tls.TLSConfig(
        ca_cert=f"{keys}/ca.pem", client_cert=(f"{keys}/client.pem", f"{keys}/client.key"), verify=True
    )
    client = docker.DockerClient(base_url=remote.url, tls=tls)
    try:
        assert client.containers.run("busybox", ["echo", "far"], remove=True) == b"far\n"
    finally:
        client.close()


def test_nobody_else_comes_in(remote: TlsView) -> None:
    stranger = remote.run("ps", env=remote.env("stranger"))
    assert stranger.returncode == 1 and b"tls" in stranger.stderr.lower()
    bare = remote.run("ps", env={"DOCKER_TLS_VERIFY": "", "DOCKER_TLS": ""})
    assert bare.returncode == 1
    assert remote.run("ps", env=remote.env()).returncode == 0
