"""git repositories as build contexts by https, from git's own backend behind a CA of one's own, and by ssh."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import docker.errors
import pytest
from e2e_builds import clean_node, write
from e2e_cluster import Cluster, View
from e2e_sshd import Sshd
from fakes.pki_made import make_pki

#: Whom this system trusts, and where others may say how a host is reached by ssh.
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
SSH_CONFIG = Path("/etc/ssh/ssh_config.d/swarmlet-e2e.conf")


@pytest.fixture
def node(cluster: Cluster) -> Iterator[View]:
    with clean_node(cluster.node(2)) as view:
        yield view


@pytest.fixture
def gateway(cluster: Cluster) -> str:
    """Where a node finds this machine."""
    return str(json.loads(cluster.exec(2, "ip", "-j", "route", "show", "default"))[0]["gateway"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with two commits on main, the first of them tagged v1."""
    work = write(tmp_path / "work", {"Dockerfile": "FROM busybox\nCOPY . /all\nCMD ls /all\n"})
    bare = tmp_path / "served" / "work.git"
    who = ("-c", "user.name=a", "-c", "user.email=a@b")

    def git(*argv: str) -> None:
        subprocess.run(["git", "-C", str(work), *who, *argv], check=True, capture_output=True, timeout=30)

    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-qm", "one")
    git("tag", "v1")
    write(work, {"later": ""})
    git("add", "-A")
    git("commit", "-qm", "two")
    git("clone", "-q", "--bare", str(work), str(bare))
    return bare


def built(node: View, remote: str) -> list[str]:
    """What the image of a remote context says when it runs."""
    client = docker.DockerClient(base_url=node.url)
    try:
        image, _ = client.images.build(path=remote, rm=True, labels={"e2e.build": "1"})
        return node("run", "--rm", str(image.id)).split()
    finally:
        client.close()


def test_a_context_by_https_is_fetched_from_a_server_that_this_host_trusts(
    node: View, gateway: str, repository: Path, tmp_path: Path
) -> None:
    pki = tmp_path / "pki"
    pki.mkdir()
    make_pki(pki, gateway)
    with _https(repository.parent, gateway, pki) as port:
        url = f"https://{gateway}:{port}/work.git"
        with pytest.raises(docker.errors.APIError, match="certificate"):
            built(node, url)
        with _trusting(pki / "ca.pem", tmp_path):
            assert built(node, url) == ["Dockerfile", "later"]
            assert built(node, f"{url}#v1") == ["Dockerfile"]
            with pytest.raises(docker.errors.APIError, match="not found"):
                built(node, f"https://{gateway}:{port}/other.git")


def test_a_context_by_ssh_is_fetched_with_this_hosts_keys(
    node: View, gateway: str, repository: Path, tmp_path: Path
) -> None:
    with Sshd(tmp_path / "ssh", gateway) as server:
        url = f"ssh://root@{server.alias}{repository}"
        assert "Could not resolve hostname" in said(node, url)
        try:
            SSH_CONFIG.write_text(server.client_config)
            for remote, files in (
                (url, ["Dockerfile", "later"]), (f"{url}#v1", ["Dockerfile"]),
                (f"root@{server.alias}:{repository}#v1", ["Dockerfile"]),
            ):
                assert "Successfully tagged by-ssh:latest" in said(node, remote)
                assert node("run", "--rm", "by-ssh").split() == files
            (tmp_path / "ssh/known").write_text("")  # a server that nobody vouches for
            assert "Host key verification failed" in said(node, url)
        finally:
            SSH_CONFIG.unlink(missing_ok=True)


def said(node: View, remote: str) -> str:
    """What a build of a remote context says; by the API itself, for clients take ssh:// for a folder's name."""
    client = docker.APIClient(base_url=node.url, timeout=60)
    try:
        wanted = {"remote": remote, "t": "by-ssh", "rm": "1", "labels": '{"e2e.build": "1"}'}
        return client.post(f"{client.base_url}/v1.45/build", params=wanted, timeout=60).text
    finally:
        client.close()


@contextmanager
def _trusting(ca: Path, folder: Path) -> Iterator[None]:
    """This system trusts one more CA while the block runs, as if its administrator had installed it."""
    bundle = folder / "bundle.crt"
    bundle.write_text(TRUSTED.read_text() + ca.read_text())
    subprocess.run(["mount", "--bind", str(bundle), str(TRUSTED)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(TRUSTED)], check=True)


@contextmanager
def _https(folder: Path, address: str, pki: Path) -> Iterator[int]:
    """git http-backend (gitprotocol-http) over TLS; the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.pem", pki / "server.key")

    class Handler(_Backend):
        root = folder

    server = _Server((address, 0), Handler, context)
    thread = threading.Thread(target=server.serve_forever, name="git over https")
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, where: tuple[str, int], handler: type[_Backend], context: ssl.SSLContext) -> None:
        super().__init__(where, handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust the certificate hangs up."""


class _Backend(http.server.BaseHTTPRequestHandler):
    root: Path

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, timeout=30,
            env=os.environ | {
                "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command,
                "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
        )  # fmt: skip
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response_only(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
