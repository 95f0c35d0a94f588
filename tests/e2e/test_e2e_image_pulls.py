"""Pulls with the stock docker command, and the images of services: from a real registry."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest
from e2e_cluster import Cluster, View, eventually
from e2e_image_folders import layers
from registry_fill import (
    Image,
    push,
    push_list,
    tar_of,
)

pytestmark = pytest.mark.usefixtures("no_images_left")


def test_a_pull_shows_its_progress_the_digest_and_what_it_did(view: View, registry: str, base: Image) -> None:
    image = base.on({"greeting": b"hello"}, Cmd=["cat", "/greeting"])
    packed = push(registry, "team/hello", "1.0", image)
    name = f"{registry}/team/hello:1.0"

    said = view("pull", name).splitlines()
    assert any(line.endswith(": Pull complete") for line in said), said
    assert said[-3:] == [f"Digest: {packed.digest}", f"Status: Downloaded newer image for {name}", name]
    assert view("image", "inspect", "--format", "{{.Id}}", name) == image.id
    assert view("run", "--rm", name) == "hello"

    again = view("pull", name).splitlines()
    assert again[-3:] == [f"Digest: {packed.digest}", f"Status: Image is up to date for {name}", name]
    assert view("pull", "-q", name) == name


def test_a_nodes_pull_tells_each_layer(cluster: Cluster, registry: str, base: Image) -> None:
    packed = push(registry, "team/layers", "1.0", base.on({"layer": b"own"}))
    said = cluster.node(1)("pull", f"{registry}/team/layers:1.0").splitlines()
    shared, own = (layer.removeprefix("sha256:")[:12] for layer in packed.layers)
    assert said[0] == "1.0: Pulling from team/layers"
    assert f"{shared}: Already exists" in said and f"{own}: Pull complete" in said, said


def test_progress_counts_the_bytes_of_each_layer(cluster: Cluster, registry: str, base: Image) -> None:
    push(registry, "big", "latest", base.on({"data": bytes(range(256)) * 20_000}))
    client = docker.APIClient(base_url=cluster.node(1).url)
    try:
        lines = list(client.pull(f"{registry}/big", tag="latest", stream=True, decode=True))
    finally:
        client.close()

    seen = [line for line in lines if line.get("progressDetail", {}).get("total")]
    assert {line["status"] for line in seen} >= {"Downloading", "Extracting"}, lines
    for line in seen:
        assert 0 < line["progressDetail"]["current"] <= line["progressDetail"]["total"]
    statuses = [line["status"] for line in lines if line.get("id") == seen[0]["id"]]
    assert statuses[0] == "Pulling fs layer" and statuses[-1] == "Pull complete"
    assert "Download complete" in statuses and "Verifying Checksum" in statuses


def test_a_pull_through_the_cluster_view_reaches_every_node(cluster: Cluster, registry: str, base: Image) -> None:
    image = base.on({"where": b"everywhere"})
    packed = push(registry, "everywhere", "1", image)
    name = f"{registry}/everywhere:1"
    cluster.view("pull", name)

    for number in (1, 2, 3):
        shown = cluster.node(number).json("image", "inspect", name)[0]
        assert shown["Id"] == image.id and shown["RepoDigests"] == [f"{registry}/everywhere@{packed.digest}"]


def test_a_pull_by_digest_brings_exactly_that(view: View, registry: str, base: Image) -> None:
    old = push(registry, "moving", "latest", base.on({"version": b"1"}))
    push(registry, "moving", "latest", base.on({"version": b"2"}))
    name = f"{registry}/moving@{old.digest}"

    said = view("pull", name).splitlines()
    assert said[-3:] == [f"Digest: {old.digest}", f"Status: Downloaded newer image for {name}", name]
    assert view("run", "--rm", name, "cat", "/version") == "1"
    row = next(row for row in view.rows("images", "--digests") if row["Repository"].endswith("/moving"))
    assert (row["Digest"], row["Tag"]) == (old.digest, "<none>")


def test_all_tags_are_pulled_and_a_tag_that_moved_leaves_the_old_image_nameless(
    cluster: Cluster, registry: str, base: Image
) -> None:
    node = cluster.node(3)
    first = base.on({"version": b"a"})
    push(registry, "many", "a", first)
    push(registry, "many", "b", base.on({"version": b"b"}))
    node("pull", "-a", f"{registry}/many")
    assert sorted(r["Tag"] for r in node.rows("images", f"{registry}/many")) == ["a", "b"]

    push(registry, "many", "a", base.on({"version": b"c"}))
    assert "Downloaded newer image" in node("pull", f"{registry}/many:a")
    assert node("run", "--rm", f"{registry}/many:a", "cat", "/version") == "c"
    dangling = node("images", "-q", "--no-trunc", "--filter", "dangling=true").split()
    assert dangling == [first.id]


def test_a_list_of_platforms_gives_the_hosts_own(cluster: Cluster, registry: str, base: Image) -> None:
    node = cluster.node(1)
    own = base.config["architecture"]
    other = "arm64" if own == "amd64" else "amd64"
    mine = base.on({"which": b"mine"})
    theirs = Image({**base.config, "architecture": other}, (tar_of({"which": b"theirs"}),))
    members = {
        ("linux", other): push(registry, "multi", "theirs", theirs),
        ("linux", own): push(registry, "multi", "mine", mine),
    }
    push_list(registry, "multi", "both", members)

    node("pull", f"{registry}/multi:both")
    assert node("run", "--rm", f"{registry}/multi:both", "cat", "/which") == "mine"
    push_list(registry, "multi", "only", {("linux", other): members["linux", other]})
    done = node.run("pull", f"{registry}/multi:only")
    assert done.returncode == 1 and b"no matching manifest for linux/" in done.stderr, done.stderr
    shown = _pulled_for(node, f"{registry}/multi:both", f"linux/{other}")
    assert shown["Architecture"] == other
    differs = f"its platform (linux/{other}) does not match the specified platform (linux/{own})"
    done = node.run("run", "--pull", "never", "--platform", f"linux/{own}", f"{registry}/multi:both", "true")
    assert done.returncode == 125 and differs.encode() in done.stderr, done.stderr
    created = node.run("create", "--platform", f"linux/{other}", f"{registry}/multi:both", "true")
    assert created.returncode == 0, created.stderr
    folders = node.json("inspect", created.stdout.decode().strip())[0]["GraphDriver"]["Data"]
    image = node.json("image", "inspect", f"{registry}/multi:both")[0]["GraphDriver"]["Data"]
    assert folders["LowerDir"] == image["UpperDir"] and Path(image["UpperDir"]).is_dir()  # told before the first start
    node("rm", created.stdout.decode().strip())
    assert node("run", "--rm", "--platform", f"linux/{own}", f"{registry}/multi:both", "cat", "/which") == "mine"
    assert node.json("image", "inspect", f"{registry}/multi:both")[0]["Architecture"] == own  # the tag has moved
    for command in ("inspect", "history", "save", "push", "rm"):
        done = node.run("image", command, "--platform", f"linux/{other}", f"{registry}/multi:both")
        assert done.returncode == 1 and b"does not match the specified platform" in done.stderr, (command, done.stderr)


def _pulled_for(node: View, name: str, platform: str) -> dict[str, str]:
    node("pull", "--platform", platform, name)
    shown: dict[str, str] = node.json("image", "inspect", name)[0]
    return shown


def test_layers_are_kept_once_however_many_images_share_them(cluster: Cluster, registry: str, base: Image) -> None:
    node = cluster.node(2)
    before = layers(cluster, 2)
    for number in range(4):
        push(registry, "shared", str(number), base.on({"number": b"%d" % number}))
        node("pull", f"{registry}/shared:{number}")
    assert len(layers(cluster, 2) - before) == 4
    node("rmi", f"{registry}/shared:0")
    eventually(lambda: len(layers(cluster, 2) - before) == 3)


def test_run_and_create_pull_what_is_missing(view: View, registry: str, base: Image) -> None:
    push(registry, "fresh", "latest", base.on({"fresh": b"yes"}))
    done = view.run("run", "--rm", f"{registry}/fresh", "cat", "/fresh")
    assert done.stdout == b"yes", done.stderr
    assert b"Unable to find image" in done.stderr and b"Downloaded newer image" in done.stderr
    refused = view.run("run", "--rm", "--pull", "never", f"{registry}/other")
    assert refused.returncode == 125 and b"No such image" in refused.stderr


def test_a_service_is_pinned_to_the_digest_and_runs_on_every_node(
    cluster: Cluster, registry: str, base: Image
) -> None:
    command = ["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"]
    first = push(registry, "app", "stable", base.on({"version": b"1"}, Cmd=command))
    name = f"{registry}/app:stable"
    said = cluster.view("service", "create", "--name", "app", "--mode", "global", "--detach=false", name)
    assert "converged" in said
    assert {task["Node"] for task in cluster.wait_running("app", 3)} == {"node-1", "node-2", "node-3"}

    def pinned() -> str:
        spec = cluster.view.json("service", "inspect", "app")[0]["Spec"]
        image: str = spec["TaskTemplate"]["ContainerSpec"]["Image"]
        return image

    assert pinned() == f"{name}@{first.digest}"
    assert cluster.view.rows("service", "ls")[0]["Image"] == name

    # The tag moves: nothing changes until the service is told to look again.
    second = push(registry, "app", "stable", base.on({"version": b"2"}, Cmd=command))
    cluster.view("service", "update", "-d", "--env-add", "A=1", "--update-monitor", "0s", "--no-resolve-image", "app")
    eventually(lambda: _versions(cluster, "app") == ["1"] * 3)
    cluster.view("service", "update", "-d", "--image", name, "--update-monitor", "0s", "app")
    assert pinned() == f"{name}@{second.digest}"
    eventually(lambda: _versions(cluster, "app") == ["2"] * 3)


def _versions(cluster: Cluster, service: str) -> list[str]:
    """/version in each running container of the service."""
    found = []
    for number in (1, 2, 3):
        node = cluster.node(number)
        idents = node("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}").split()
        found += [node.run("exec", ident, "cat", "/version").stdout.decode() for ident in idents]
    return found


def test_a_service_of_an_image_that_is_nowhere_says_so_in_its_tasks(cluster: Cluster, registry: str) -> None:
    done = cluster.view.run("service", "create", "-d", "--name", "lost", f"{registry}/nowhere:1")
    assert done.returncode == 0 and b"could not be accessed on a registry" in done.stderr, done.stderr

    def rejected() -> bool:
        rows = cluster.view.rows("service", "ps", "lost", "--no-trunc")
        return any(r["CurrentState"].startswith("Rejected") and f"{registry}/nowhere:1" in r["Error"] for r in rows)

    eventually(rejected)
