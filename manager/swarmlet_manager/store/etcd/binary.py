"""Which etcd may hold a cluster's state, and the command line it is started with. Pure but for `find`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_manager.store.etcd.channels import Tls

Version = tuple[int, int, int]

#: What the embedded etcd accepts in one transaction; the store's limits follow from these.
MAX_TXN_OPS = 1024
MAX_REQUEST_BYTES = 8 << 20
QUOTA_BYTES = 8 << 30
#: etcd keeps every write since its last snapshot (and 5000 before it) in memory, and in its log on disk. Ours are
#: large, blocks of tasks of 10 kB and more: its default of 100,000 could be gigabytes. A snapshot itself is small.
SNAPSHOT_COUNT = 1000

_ADVICE = "install Debian's or Ubuntu's package: apt install etcd-server (its own etcd.service can stay disabled)"


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """One member. Without `tls` it listens on unix sockets in `data_dir` only, which is enough for a single
    manager and needs no network; with it also on host:client_port and host:peer_port (host: an IP address),
    certificates required of everyone, so that further members can join.

    peers: (name, peer URL) of the other members, when this one joins a cluster that has it on its list; or,
    with a bootstrap_token that all share, when they all start together as a new cluster.
    """

    data_dir: Path
    name: str
    binary: str = "etcd"
    host: str = ""
    client_port: int = 2379
    peer_port: int = 2380
    tls: Tls | None = None
    peers: tuple[tuple[str, str], ...] = ()
    bootstrap_token: str = ""
    heartbeat_ms: int = 50
    election_ms: int = 500

    def __post_init__(self) -> None:
        if not self.data_dir.is_absolute():
            raise InvalidArgument(f"etcd's directory must be an absolute path: {self.data_dir}")
        if bool(self.host) != (self.tls is not None):
            raise InvalidArgument("etcd listens on an address only with certificates, and needs both for it")
        if self.peers and not self.host:
            raise InvalidArgument("an etcd that joins others needs an address and certificates")

    @property
    def socket(self) -> Path:
        """etcd takes no path for a unix socket, only host:port; the file is made in its working directory."""
        return self.data_dir / "etcd:0"

    @property
    def peer_url(self) -> str:
        return f"https://{_bracketed(self.host)}:{self.peer_port}" if self.tls else "unix://peer:0"


def command_line(settings: EtcdSettings, binary: str, token: str) -> list[str]:
    """Of etcd 3.4 and later. The initial-… flags only matter while its directory is empty."""
    client_urls = ["unix://etcd:0"]
    tls_flags: list[str] = []
    if settings.tls:
        client_urls.append(f"https://{_bracketed(settings.host)}:{settings.client_port}")
        tls = settings.tls
        for stem in ("", "peer-"):
            tls_flags += [f"--{stem}cert-file={tls.cert}", f"--{stem}key-file={tls.key}"]
            tls_flags += [f"--{stem}trusted-ca-file={tls.ca}", f"--{stem}client-cert-auth=true"]
    members = [*settings.peers, (settings.name, settings.peer_url)]
    joins = bool(settings.peers) and not settings.bootstrap_token
    return [
        binary,
        f"--name={settings.name}",
        f"--data-dir={settings.data_dir / 'data'}",
        f"--listen-client-urls={','.join(client_urls)}",
        f"--advertise-client-urls={client_urls[-1]}",
        f"--listen-peer-urls={settings.peer_url}",
        f"--initial-advertise-peer-urls={settings.peer_url}",
        f"--initial-cluster={','.join(f'{name}={url}' for name, url in members)}",
        f"--initial-cluster-state={'existing' if joins else 'new'}",
        f"--initial-cluster-token={settings.bootstrap_token or token}",
        *tls_flags,
        f"--heartbeat-interval={settings.heartbeat_ms}",
        f"--election-timeout={settings.election_ms}",
        "--pre-vote=true",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        f"--max-txn-ops={MAX_TXN_OPS}",
        f"--max-request-bytes={MAX_REQUEST_BYTES}",
        f"--snapshot-count={SNAPSHOT_COUNT}",
        # 3.4 copies what it has not yet committed to disk on every read: keep that small.
        "--backend-batch-limit=200",
        "--enable-grpc-gateway=false",
        "--logger=zap",
        "--log-level=warn",
        "--log-outputs=stderr",
    ]


def parse_version(text: str) -> Version:
    """From the output of `etcd --version`. InvalidArgument."""
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", text)
    if not found:
        raise InvalidArgument("its answer to --version names no version")
    major, minor, patch = (int(part) for part in found.groups())
    return major, minor, patch


def objection(version: Version) -> str | None:
    """Why this version must not be used; None if it may.

    3.5.0 to 3.5.5 can corrupt data and 3.5.0 to 3.5.4 acknowledge writes before they are on disk (etcd
    issues 13766, 14370); 3.4.22 is upstream's oldest for production.
    """
    if version < (3, 4, 22):
        return "is too old: 3.4.22 is the least"
    if (3, 5, 0) <= version < (3, 5, 6):
        return "is known to corrupt or lose data: 3.4.22 and later 3.4, or 3.5.6 and later are sound"
    return None


def find(binary: str) -> tuple[str, Version]:
    """Path and version of a usable etcd. Internal, with what to install, if there is none. Blocks briefly."""
    path = shutil.which(binary)
    if path is None:
        raise Internal(f"etcd is not installed ({binary} is not in PATH); {_ADVICE}")
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
        version = parse_version(answer.stdout)
    except (OSError, subprocess.SubprocessError, InvalidArgument) as err:
        raise Internal(f"{path} cannot be used: {err}; {_ADVICE}") from err
    if why := objection(version):
        raise Internal(f"{path} {'.'.join(map(str, version))} {why}; {_ADVICE}")
    return path, version


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main() -> None:
    """`python -m …`: the embedded etcd's version, or exit status 1 and why there can be none."""
    try:
        path, version = find("etcd")
    except Internal as err:
        sys.exit(str(err))
    print(f"{path} {'.'.join(map(str, version))}")


if __name__ == "__main__":
    main()
