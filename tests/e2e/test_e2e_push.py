"""Login, push, pull elsewhere and search with the stock docker command; services from a registry with a password."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import docker as docker_py
import pytest
from e2e_cluster import Cluster, View, eventually
from registry_fill import Image, busybox_image, push, tar_of

from swarmlet.demo_image import busybox_archive
from swarmlet.local import hosts
from swarmlet.local.images import find_busybox

#: bcrypt of "open sesame", as htpasswd -B writes it.
_HTPASSWD = "anna:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
_WORDS = b"open sesame"


def _is_up(address: str) -> bool:
    try:
        urlopen(f"http://{address}/v2/", timeout=2).close()
    except HTTPError as err:
        err.close()
        return err.code == 401
    return True


@pytest.fixture(scope="module")
def guarded(whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that only anna may use; its "address:port", reachable from every host."""
    folder = tmp_path_factory.mktemp("guarded")
    address = f"{whole_cluster.host(1).address}:5443"
    (folder / "htpasswd").write_text(_HTPASSWD)
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{address}'}}\nauth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n"
    )
    program = shutil.which("docker-registry")
    assert program, "docker-registry is missing: install the package docker-registry"
    argv = hosts.enter_argv(whole_cluster.host(1), [program, "serve", str(config)])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(lambda: _is_up(address))
            yield address
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A docker command's environment with a configuration folder of its own."""
    yield {"DOCKER_CONFIG": str(tmp_path / "docker")}


def docker(view: View, env: dict[str, str], *args: str, stdin: bytes | None = None) -> tuple[int, str]:
    done = view.run(*args, input=stdin, env=env, timeout=90)
    return done.returncode, (done.stdout + done.stderr).decode()


def log_in(view: View, env: dict[str, str], registry: str) -> None:
    code, out = docker(view, env, "login", "-u", "anna", "--password-stdin", registry, stdin=_WORDS)
    assert code == 0 and "Login Succeeded" in out, out


def load(view: View, name: str, text: str) -> None:
    """An image with busybox's commands and a layer that no other image has."""
    files, config = {"/mark": text.encode() * 1000}, {"Labels": {"made-for": text}}
    archive = busybox_archive(find_busybox(), name, files=files, config=config)
    view("load", "-q", input=archive)


def forget(cluster: Cluster, *names: str) -> None:
    for number in (1, 2, 3):
        cluster.node(number).run("rmi", "-f", *names)


def test_an_image_pushed_after_login_is_pulled_on_another_node(
    cluster: Cluster, guarded: str, config: dict[str, str], tmp_path: Path
) -> None:
    ref = f"{guarded}/team/push:1"
    one, two = cluster.node(1), cluster.node(2)
    load(one, ref, "one")

    code, out = docker(one, config, "login", "-u", "anna", "--password-stdin", guarded, stdin=b"guessed")
    assert code == 1 and "401 Unauthorized" in out and "guessed" not in out, out
    code, out = docker(one, config, "push", ref)
    assert code == 1 and "no basic auth credentials" in out, out
    log_in(one, config, guarded)
    code, out = docker(one, config, "push", ref)
    assert code == 0 and ": Pushed" in out and "1: digest: sha256:" in out, out
    code, out = docker(one, config, "push", ref)
    assert code == 0 and ": Layer already exists" in out and ": Pushed" not in out, out

    code, out = docker(two, {"DOCKER_CONFIG": str(tmp_path / "nobody")}, "pull", ref)
    assert code == 1 and "no basic auth credentials" in out, out
    code, out = docker(two, config, "pull", ref)
    assert code == 0 and "Downloaded newer image" in out, out
    assert two("run", "--rm", ref, "head", "-c", "3", "/mark") == "one"
    digests = [json.loads(view("image", "inspect", ref))[0]["RepoDigests"] for view in (one, two)]
    assert digests[0] == digests[1] and len(digests[0]) == 1
    code, out = docker(one, config, "logout", guarded)
    assert code == 0, out
    forget(cluster, ref)
    for number in (1, 2, 3):
        assert _files_with(cluster.host(number).data_dir, (_WORDS, base64.b64encode(b"anna:" + _WORDS))) == []


def _files_with(folder: Path, secrets: Sequence[bytes]) -> list[Path]:
    """Files of a host, its logs and the journal among them, in which a secret can be read; images' own are left out."""
    files = [file for file in folder.rglob("*") if "layers" not in file.parts and file.is_file()]
    return [file for file in files if any(secret in file.read_bytes() for secret in secrets)]


def test_the_cluster_pushes_from_whichever_nodes_have_the_tags(
    cluster: Cluster, guarded: str, config: dict[str, str]
) -> None:
    repository = f"{guarded}/team/spread"
    load(cluster.node(2), f"{repository}:2", "two")
    load(cluster.node(3), f"{repository}:3", "three")
    log_in(cluster.view, config, guarded)

    code, out = docker(cluster.view, config, "push", f"{repository}:3")
    assert code == 0 and "3: digest: sha256:" in out, out
    code, out = docker(cluster.view, config, "push", "-a", repository)
    assert code == 0 and "2: digest: sha256:" in out and "3: digest: sha256:" in out, out
    code, out = docker(cluster.view, config, "push", f"{repository}:4")
    assert code == 1 and ("tag does not exist" in out or "does not exist locally" in out), out
    code, out = docker(cluster.node(1), config, "pull", "-a", repository)
    assert code == 0, out
    assert cluster.node(1)("run", "--rm", f"{repository}:3", "head", "-c", "5", "/mark") == "three"
    forget(cluster, f"{repository}:2", f"{repository}:3")


def test_what_was_pulled_is_the_same_in_another_registry(
    cluster: Cluster, registry: str, guarded: str, config: dict[str, str]
) -> None:
    node, blobs = cluster.node(2), cluster.host(2).data_dir / "data" / "images" / "blobs"
    image = Image(busybox_image().config, (tar_of({"mirrored": b"same"}), tar_of({"above": b"more" * 1000})))
    push(registry, "team/mirror", "1", image)
    node("pull", "-q", f"{registry}/team/mirror:1")
    assert (blobs / image.packed().layers[-1][7:]).is_file()
    node("tag", f"{registry}/team/mirror:1", f"{guarded}/team/mirror:1")
    log_in(node, config, guarded)

    code, out = docker(node, config, "push", f"{guarded}/team/mirror:1")

    assert code == 0 and f"1: digest: {image.packed().digest} " in out, out
    before = _images_bytes(node)
    forget(cluster, f"{registry}/team/mirror:1", f"{guarded}/team/mirror:1")
    assert not (blobs / image.packed().layers[-1][7:]).exists() and _images_bytes(node) < before


def test_what_was_built_is_the_same_in_every_registry(
    cluster: Cluster, registry: str, guarded: str, config: dict[str, str]
) -> None:
    node = cluster.node(3)
    built = ["build", "-q", "-t", f"{guarded}/team/built:1", "-t", f"{registry}/team/built:1", "-"]
    code, out = docker(node, config | {"DOCKER_BUILDKIT": "0"}, *built, stdin=b"FROM busybox\nRUN echo built > /built")
    assert code == 0, out
    log_in(node, config, guarded)

    said = [docker(node, config, "push", f"{host}/team/built:1") for host in (guarded, registry)]

    assert [code for code, _ in said] == [0, 0], said
    digests = [re.findall(r"digest: (sha256:\w+)", out) for _, out in said]
    assert len(digests[0]) == 1 and digests[0] == digests[1]
    forget(cluster, f"{guarded}/team/built:1", f"{registry}/team/built:1")


def test_the_clusters_disk_usage_is_that_of_its_nodes(
    cluster: Cluster, registry: str, config: dict[str, str]
) -> None:
    """What is kept compressed is in it, and all of it is reclaimed once nothing uses the images."""
    node = cluster.node(2)
    before = _usage(node)
    code, out = docker(node, config | {"DOCKER_BUILDKIT": "0"}, "build", "-q", "-t", f"{registry}/used:1", "-", stdin=(
        b"FROM busybox\nRUN head -c 3000000 /dev/urandom > /noise"
    ))  # fmt: skip
    assert code == 0, out
    built = _usage(node)
    assert built["LayersSize"] >= before["LayersSize"] + 3_000_000 and built["BuilderSize"] > before["BuilderSize"]
    code, out = docker(node, config, "push", f"{registry}/used:1")
    assert code == 0, out
    assert _usage(node)["LayersSize"] >= built["LayersSize"] + 3_000_000  # noise does not compress

    nodes, whole = [_usage(cluster.node(number)) for number in (1, 2, 3)], _usage(cluster.view)

    for field in ("LayersSize", "BuilderSize"):
        assert whole[field] == sum(each[field] for each in nodes)
    assert len(whole["Images"]) == sum(len(each["Images"]) for each in nodes)
    forget(cluster, f"{registry}/used:1")
    node("builder", "prune", "-af")
    assert _usage(node)["LayersSize"] < built["LayersSize"]  # the noise is gone in both forms, busybox has two now


def _usage(view: View) -> dict[str, Any]:
    with closing(docker_py.DockerClient(base_url=view.url)) as client:
        shown: dict[str, Any] = client.df()
    return shown


def _images_bytes(node: View) -> int:
    total: int = _usage(node)["LayersSize"]
    return total


def test_services_from_a_registry_with_a_password_run_on_every_node(
    cluster: Cluster, guarded: str, config: dict[str, str]
) -> None:
    ref = f"{guarded}/team/service:1"
    load(cluster.node(1), ref, "service")
    log_in(cluster.view, config, guarded)
    code, out = docker(cluster.view, config, "push", ref)
    assert code == 0, out
    forget(cluster, ref)

    code, out = docker(
        cluster.view, config, "service", "create", "-d", "--name", "locked", "--mode", "global",
        "--restart-condition", "none", ref, "sleep", "600",
    )  # fmt: skip
    assert code == 0, out
    eventually(lambda: "no basic auth credentials" in json.dumps(
        cluster.view.rows("service", "ps", "locked", "--no-trunc")
    ), 30)
    code, out = docker(
        cluster.view, config, "service", "create", "-d", "--with-registry-auth", "--name", "open", "--mode", "global",
        ref, "sleep", "600",
    )  # fmt: skip
    assert code == 0, out
    tasks = cluster.wait_running("open", 3)
    assert {task["Node"] for task in tasks} == cluster.ready()
    spec = cluster.view.json("service", "inspect", "open")[0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert spec["Image"].startswith(f"{ref}@sha256:")
    assert "sesame" not in json.dumps(cluster.view.json("service", "inspect", "open", "locked"))


def test_a_registrys_catalogue_is_searched(view: View, cluster: Cluster, guarded: str, config: dict[str, str]) -> None:
    ref = f"{guarded}/found/needle:1"
    load(cluster.node(2), ref, "needle")
    log_in(view, config, guarded)
    code, out = docker(cluster.node(2), config, "push", ref)
    assert code == 0, out
    code, out = docker(view, config, "search", "--format", "{{.Name}}", f"{guarded}/needle")
    assert (code, out.strip()) == (0, f"{guarded}/found/needle"), out
    code, out = docker(view, config | {"DOCKER_CONFIG": "/nonexistent"}, "search", f"{guarded}/needle")
    assert code == 1 and "no basic auth credentials" in out, out
    code, out = docker(view, config, "search", "--filter", "nosuch=1", "x")
    assert code == 1 and "invalid filter" in out, out
    forget(cluster, ref)


def test_what_was_pushed_is_counted_and_pruned_like_any_image(
    cluster: Cluster, registry: str, config: dict[str, str]
) -> None:
    node, ref = cluster.node(3), f"{registry}/pruned:1"
    load(node, ref, "prune")
    code, out = docker(node, config, "push", ref)
    assert code == 0, out
    with urlopen(Request(f"http://{registry}/v2/pruned/tags/list"), timeout=5) as answer:
        assert json.load(answer)["tags"] == ["1"]
    shown = node("system", "df", "-v", "--format", "{{range .Images}}{{.Repository}}:{{.Tag}} {{.Containers}}\n{{end}}")
    assert f"{ref} 0" in shown.splitlines()
    out = node("image", "prune", "-af", "--filter", "label=made-for=prune")
    assert f"untagged: {ref}" in out and f"untagged: {registry}/pruned@sha256:" in out
    assert ref not in node("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")


def test_docker_system_prune_goes_through_to_its_end(cluster: Cluster, view: View) -> None:
    """With a filter that nothing has: what other tests need stays."""
    done = view.run("system", "prune", "-af", "--filter", "label=nothing-has-this")
    assert done.returncode == 0 and b"Total reclaimed space: 0B" in done.stdout, done.stderr
    done = view.run("image", "prune", "-af", "--filter", "nosuch=1")
    assert done.returncode == 1 and b"invalid filter" in done.stderr, done.stdout
