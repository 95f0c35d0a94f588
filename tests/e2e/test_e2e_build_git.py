"""git repositories as build contexts and as sources of ADD, from servers of git's own and of plain files."""

from __future__ import annotations

import functools
import http.server
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest
from e2e_builds import build, clean_node, refused, write
from e2e_cluster import Cluster, View, eventually


@pytest.fixture
def node(cluster: Cluster) -> Iterator[View]:
    with clean_node(cluster.node(2)) as view:
        yield view


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A repository with two commits on main, the first of them tagged v1."""
    work = write(tmp_path / "work", {
        "Dockerfile": "FROM busybox\nCOPY . /all\n", "sub/Dockerfile": "FROM busybox\nCOPY . /sub\n", "sub/one": "1",
    })
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "one")
    git(work, "tag", "v1")
    write(work, {"later": ""})
    git(work, "add", "-A")
    git(work, "commit", "-qm", "two")
    return work


def git(work: Path, *argv: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(work), *who, *argv], check=True, capture_output=True, timeout=30)
    return done.stdout.decode().strip()


@pytest.fixture
def gateway(cluster: Cluster) -> str:
    """Where a node finds this machine."""
    return str(json.loads(cluster.exec(2, "ip", "-j", "route", "show", "default"))[0]["gateway"])


def test_a_git_repository_is_a_context(gateway: str, node: View, work: Path) -> None:
    with Daemon(work.parent, gateway) as daemon:
        client = docker.DockerClient(base_url=node.url)
        try:
            def built(reference: str, command: str, **args: str) -> list[str]:
                remote = f"git://{gateway}:{daemon.port}/work/.git{reference}"
                image, _ = client.images.build(path=remote, rm=True, labels={"e2e.build": "1"}, buildargs=args)
                return sorted(node("run", "--rm", str(image.id), "ls", "-A", command).split())

            assert built("", "/all") == ["Dockerfile", "later", "sub"]
            assert built("#v1", "/all") == ["Dockerfile", "sub"]
            assert built("#main:sub", "/sub") == ["Dockerfile", "one"]
            assert ".git" in built("#v1", "/all", BUILDKIT_CONTEXT_KEEP_GIT_DIR="1")
            with pytest.raises(docker.errors.APIError, match="couldn't find remote ref gone"):
                built("#gone", "/all")
            with pytest.raises(docker.errors.APIError, match="outside the repository"):
                built("#main:../..", "/all")
        finally:
            client.close()


def test_add_takes_a_repository_a_folder_and_a_commit(gateway: str, node: View, work: Path, tmp_path: Path) -> None:
    first, second = git(work, "rev-parse", "v1"), git(work, "rev-parse", "main")
    with Daemon(work.parent, gateway) as daemon:
        url = f"git://{gateway}:{daemon.port}/work/.git"
        dockerfile = (
            f"FROM busybox\nARG REF=v1\nADD --chown=3:4 --chmod=go-rwx {url}#$REF /tagged\nADD {url}#main:sub /sub/\n"
            f"ADD --keep-git-dir=true --checksum={second[:12]} {url} /whole\nADD --exclude=sub {url}#{first} /less\n"
            "CMD ls -A /tagged /sub /whole /less; stat -c '%n %u:%g %a' /tagged/sub /tagged/sub/one; "
            "cat /whole/.git/HEAD /whole/.git/config\n"
        )
        context = write(tmp_path / "context", {"Dockerfile": dockerfile})
        build(node, context, "-t", "with-git")
        said = node("run", "--rm", "with-git")
        lists = dict(part.split(":\n", 1) for part in said.split("\n\n", 3))
        assert lists["/tagged"].split() == ["Dockerfile", "sub"] and lists["/sub"].split() == ["Dockerfile", "one"]
        assert lists["/whole"].split()[:4] == [".git", "Dockerfile", "later", "sub"]
        assert lists["/less"].split() == ["Dockerfile"] and "/tagged/sub 3:4 700\n/tagged/sub/one 3:4 600" in said
        assert second in said and f"url = {url}" in said

        # The commit is what the cache goes by.
        assert build(node, context, "-t", "with-git").count("Using cache") == 7  # with ARG, CMD and the label
        write(work, {"sub/two": ""})
        git(work, "add", "-A")
        git(work, "commit", "-qm", "three")
        assert "expected checksum to match" in refused(node, context)
        write(context, {"Dockerfile": f"FROM busybox\nADD {url}#main:sub /sub/\nCMD ls /sub\n"})
        build(node, context, "-t", "later")
        assert node("run", "--rm", "later").split() == ["Dockerfile", "one", "two"]
        for source, why in (
            (f"{url}#gone", "couldn't find remote ref gone"), (f"{url}#main:../..", "outside the repository"),
            (f"{url}#--upload-pack=x", "invalid git reference"), (f"{url}#main:later", "is not in the repository"),
        ):
            write(context, {"Dockerfile": f"FROM busybox\nADD {source} /x\n"})
            assert why in refused(node, context), source


def test_add_takes_a_repository_from_a_server_of_plain_files(
    gateway: str, node: View, work: Path, tmp_path: Path
) -> None:
    git(work, "clone", "-q", "--bare", str(work), str(tmp_path / "files/plain.git"))
    git(tmp_path / "files/plain.git", "update-server-info")
    with Files(tmp_path / "files", gateway) as files:
        url = f"http://{gateway}:{files.port}/plain.git"
        context = write(tmp_path / "context", {"Dockerfile": f"FROM busybox\nADD {url}#v1 /x\nCMD ls -A /x\n"})
        build(node, context, "-t", "plain-git")
    assert node("run", "--rm", "plain-git").split() == ["Dockerfile", "sub"]


class Daemon:
    """git's own server, on a port that is free."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder, self._address = folder, address

    def __enter__(self) -> Daemon:
        with socket.socket() as free:
            free.bind((self._address, 0))
            self.port: int = free.getsockname()[1]
        self._process = subprocess.Popen(
            ["git", "daemon", "--reuseaddr", f"--base-path={self._folder}", "--export-all",
             f"--listen={self._address}", f"--port={self.port}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(lambda: socket.create_connection((self._address, self.port), 1).close() is None, 10)
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, 15)
        self._process.wait(30)


class Files:
    """A folder over HTTP."""

    def __init__(self, folder: Path, address: str) -> None:
        handler = functools.partial(_Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="files over http")

    def __enter__(self) -> Files:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass
