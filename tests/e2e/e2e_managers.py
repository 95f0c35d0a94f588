"""A cluster whose three hosts are all managers, on a real etcd beside it that no host's death touches."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e_cluster import NAME, Cluster, View, eventually, swarmlet
from e2e_traces import traces
from fakes.pki_made import make_pki

from swarmlet.local import cluster as clusters

#: An address of the machine's own loopback interface, which the hosts reach through their gateway.
OCTET = int(hashlib.sha256(NAME.encode()).hexdigest(), 16) % 250
ADDRESS = f"10.214.{OCTET}.1"
PORT = 23790
URL = f"https://{ADDRESS}:{PORT}"


class Etcd:
    """One member, over mutual TLS."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        pki, peer = self._folder, f"http://{ADDRESS}:{PORT + 1}"
        argv = [
            "etcd", "--name", "beside", "--data-dir", str(pki / "data"), "--logger", "zap",
            "--listen-client-urls", URL, "--advertise-client-urls", URL, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"beside={peer}",
            "--cert-file", f"{pki}/server.pem", "--key-file", f"{pki}/server.key",
            "--trusted-ca-file", f"{pki}/ca.pem", "--client-cert-auth",
        ]  # fmt: skip
        with (pki / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    @property
    def options(self) -> list[str]:
        pki = self._folder
        return [
            "--etcd", URL, "--etcd-ca", f"{pki}/ca.pem", "--etcd-cert", f"{pki}/client.pem",
            "--etcd-key", f"{pki}/client.key",
        ]  # fmt: skip


class Managed(Cluster):
    """Three managers, by number."""

    etcd: Etcd

    def manager(self, number: int) -> View:
        """A manager's own socket."""
        return View(self.host(number).manager_socket)

    def leader(self) -> int:
        """Its number, once every manager that runs says the same."""

        def agreed() -> int:
            said = {self._leader_by(number) for number in (1, 2, 3)} - {0}
            return said.pop() if len(said) == 1 else 0

        return eventually(agreed)

    def follower(self) -> int:
        """The lowest number of one."""
        return min({1, 2, 3} - {self.leader()})

    def _leader_by(self, number: int) -> int:
        done = self.manager(number).run("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", timeout=30)
        names = [line.split()[0] for line in done.stdout.decode().splitlines() if line.endswith(" Leader")]
        return int(names[0].removeprefix("node-")) if names else 0


@contextmanager
def three_managers(folder: Path, name: str) -> Iterator[Managed]:
    swarmlet("down", "--name", name)
    subprocess.run(["ip", "addr", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)
    make_pki(folder, ADDRESS)
    etcd = Etcd(folder)
    try:
        etcd.start()
        swarmlet("up", "--name", name, "--nodes", "3", "--managers", "3", *etcd.options)
        cluster = Managed(clusters.find(name))
        cluster.etcd = etcd
        yield cluster
    finally:
        swarmlet("down", "--name", name)
        etcd.kill()
        subprocess.run(["ip", "addr", "del", f"{ADDRESS}/32", "dev", "lo"], check=True)
        assert traces(name) == []
