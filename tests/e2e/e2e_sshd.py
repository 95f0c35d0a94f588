"""An ssh server for one test, with keys of its own, and what a client needs to know of it."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from e2e_cluster import eventually

PRIVILEGES = Path("/run/sshd")


class Sshd:
    """Lets root in by one key. The programs that a client starts have this process's PATH."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder, self._address = folder, address
        folder.mkdir()
        for name in ("host", "client"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, timeout=30
            )

    def __enter__(self) -> Sshd:
        with socket.socket() as free:
            free.bind((self._address, 0))
            self.port: int = free.getsockname()[1]
        PRIVILEGES.mkdir(mode=0o755, exist_ok=True)  # it insists; a service's unit would make it
        config = self._folder / "sshd_config"
        config.write_text(
            f"ListenAddress {self._address}:{self.port}\nHostKey {self._folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self._folder}/client.pub\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv PATH={os.environ['PATH']}\n"
        )
        key = (self._folder / "host.pub").read_text().split()
        (self._folder / "known").write_text(f"{self.alias} {key[0]} {key[1]}\n")
        self._process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(lambda: socket.create_connection((self._address, self.port), 1).close() is None)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    @property
    def alias(self) -> str:
        """The name that `client_config` gives the server."""
        return "swarmlet-e2e-ssh"

    @property
    def client_config(self) -> str:
        """For ssh_config(5)."""
        return (
            f"Host {self.alias}\n  HostName {self._address}\n  Port {self.port}\n  User root\n"
            f"  HostKeyAlias {self.alias}\n  IdentityFile {self._folder}/client\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self._folder}/known\n  StrictHostKeyChecking yes\n"
        )
