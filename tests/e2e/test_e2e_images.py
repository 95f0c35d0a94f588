"""Images with the stock docker command: from a real registry, from archives, from registries that lie."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from e2e_cluster import Cluster, View, eventually
from registry_fill import (
    Image,
    Liar,
    busybox_image,
    lying_registry,
    push,
    push_list,
    tar_of,
    with_layer,
)

KEPT = {"busybox:latest", "swarmlet-demo:latest"}


@pytest.fixture(scope="module")
def base() -> Image:
    return busybox_image()


@pytest.fixture(autouse=True)
def nothing_left(whole_cluster: Cluster) -> Iterator[None]:
    """Every image that a test brought goes away again, and its layers and half-made files with it.

    Set up before `cluster`, so torn down after the containers are gone.
    """
    for number in (1, 2, 3):
        _remove_images(whole_cluster.node(number))  # what another file's tests may have left
    before = [(_layers(whole_cluster, number), _blobs(whole_cluster, number)) for number in (1, 2, 3)]
    yield
    for number in (1, 2, 3):
        _remove_images(whole_cluster.node(number))
    assert [(_layers(whole_cluster, number), _blobs(whole_cluster, number)) for number in (1, 2, 3)] == before
    for number in (1, 2, 3):
        for name in ("tmp", "partial"):
            assert not [*_image_folder(whole_cluster, number).joinpath(name).iterdir()]


def _remove_images(node: View) -> None:
    """All but the cluster's own, and all other names of those."""

    def clean() -> bool:
        rows = node.rows("images", "-a", "--no-trunc")
        kept = {row["ID"] for row in rows if f"{row['Repository']}:{row['Tag']}" in KEPT}
        extra = {row["ID"] for row in rows} - kept
        if extra:
            node.run("rmi", "-f", *extra)
        names = {f"{row['Repository']}:{row['Tag']}" for row in rows if row["ID"] in kept} - KEPT
        if names:
            node.run("rmi", *names)
        return not extra and not names

    eventually(clean)


# --- pull


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
    before = _layers(cluster, 2)
    for number in range(4):
        push(registry, "shared", str(number), base.on({"number": b"%d" % number}))
        node("pull", f"{registry}/shared:{number}")
    assert len(_layers(cluster, 2) - before) == 4
    node("rmi", f"{registry}/shared:0")
    eventually(lambda: len(_layers(cluster, 2) - before) == 3)


def test_run_and_create_pull_what_is_missing(view: View, registry: str, base: Image) -> None:
    push(registry, "fresh", "latest", base.on({"fresh": b"yes"}))
    done = view.run("run", "--rm", f"{registry}/fresh", "cat", "/fresh")
    assert done.stdout == b"yes", done.stderr
    assert b"Unable to find image" in done.stderr and b"Downloaded newer image" in done.stderr
    refused = view.run("run", "--rm", "--pull", "never", f"{registry}/other")
    assert refused.returncode == 125 and b"No such image" in refused.stderr


# --- services


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
    eventually(lambda: _versions(cluster, "app") == ["1"] * 3, 40)
    cluster.view("service", "update", "-d", "--image", name, "--update-monitor", "0s", "app")
    assert pinned() == f"{name}@{second.digest}"
    eventually(lambda: _versions(cluster, "app") == ["2"] * 3, 40)


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


# --- names


def test_tags_are_names_and_the_last_one_takes_the_image_along(view: View, registry: str, base: Image) -> None:
    image = base.on({"tagged": b"1"})
    push(registry, "tagged", "1", image)
    name = f"{registry}/tagged:1"
    view("pull", name)
    view("tag", name, "other/name:2")
    assert set(view.json("image", "inspect", image.id)[0]["RepoTags"]) == {name, "other/name:2"}

    several = view.run("rmi", image.id)
    assert several.returncode == 1
    assert b"unable to delete" in several.stderr and b"must be forced" in several.stderr
    assert view("rmi", name).splitlines()[0] == f"Untagged: {name}"
    last = view("rmi", "other/name:2").splitlines()
    assert last[0] == "Untagged: other/name:2"
    assert f"Deleted: {image.id}" in last
    assert view.run("image", "inspect", image.id).returncode == 1
    for args in (("tag", "nothing-here", "a:b"), ("rmi", "nothing-here")):
        done = view.run(*args)
        assert done.returncode == 1 and b"No such image: nothing-here" in done.stderr, done.stderr
    done = view.run("tag", "busybox", "Not_A_Name")
    assert done.returncode == 1 and b"must be lowercase" in done.stderr


def test_an_image_in_use_is_not_removed(view: View, base: Image) -> None:
    view("load", input=base.on({"used": b"1"}).archive("used:1"))
    view("create", "--name", "holder", "used:1", "sleep", "600")
    done = view.run("rmi", "used:1")
    assert done.returncode == 1
    assert re.search(rb"conflict: unable to remove repository reference .used:1. \(must force\)", done.stderr)
    view("start", "holder")
    ident = view("image", "inspect", "--format", "{{.Id}}", "used:1")
    done = view.run("rmi", "-f", ident)
    assert done.returncode == 1 and b"cannot be forced" in done.stderr and b"running container" in done.stderr
    assert view("exec", "holder", "cat", "/used") == "1"
    view("rm", "-f", "holder")
    assert f"Deleted: {ident}" in view("rmi", "used:1")


def test_a_forced_removal_leaves_the_stopped_container_its_files(cluster: Cluster, base: Image) -> None:
    node = cluster.node(1)
    node("load", input=base.on({"kept": b"1"}).archive("kept:1"))
    node("create", "--name", "holder", "kept:1", "cat", "/kept")
    node("rmi", "-f", "kept:1")
    assert node("images", "-q", "kept") == ""
    assert node("start", "-a", "holder") == "1"
    node("rm", "holder")


# --- archives


def test_save_and_load_bring_the_same_image_back(view: View, base: Image) -> None:
    image = base.on({"saved": b"content"}, Cmd=["cat", "/saved"], Env=["PATH=/bin", "A=b"])
    assert "Loaded image: saved:1" in view("load", input=image.archive("saved:1"))
    view("tag", "saved:1", "saved:2")
    archive = view.run("save", "saved:1", "saved:2", "busybox:latest").stdout
    view("rmi", "saved:1", "saved:2")
    assert view.run("image", "inspect", image.id).returncode == 1

    loaded = view("load", input=archive).splitlines()
    assert {"Loaded image: saved:1", "Loaded image: saved:2", "Loaded image: busybox:latest"} == set(loaded)
    shown = view.json("image", "inspect", "saved:2")[0]
    assert (shown["Id"], shown["Config"]["Env"]) == (image.id, ["PATH=/bin", "A=b"])
    assert view("run", "--rm", "saved:1") == "content"


def test_save_to_a_file_refuses_an_unknown_image(view: View, tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    done = view.run("save", "-o", str(target), "nothing-here")
    assert done.returncode == 1 and b"No such image: nothing-here" in done.stderr
    assert not target.exists()


def test_import_makes_an_image_of_a_file_tree(view: View, base: Image) -> None:
    tree = base.on({}).layers[0]
    ident = view(
        "import", "--message", "made by hand", "-c", 'CMD ["cat", "/etc/passwd"]', "-c", "ENV COLOUR=red",
        "-", "imported:1", input=tree,
    )  # fmt: skip
    shown = view.json("image", "inspect", "imported:1")[0]
    assert (shown["Id"], shown["Config"]["Cmd"]) == (ident, ["cat", "/etc/passwd"])
    assert "COLOUR=red" in shown["Config"]["Env"] and shown["Comment"] == "made by hand"
    assert view("run", "--rm", "imported:1").startswith("root:x:0:0")
    done = view.run("import", "-c", "FROM nowhere", "-", "bad:1", input=tree)
    assert done.returncode == 1 and b"FROM" in done.stderr
    assert view("images", "-q", "bad") == ""


def test_an_import_through_the_cluster_view_is_one_image_wherever_it_is(cluster: Cluster, base: Image) -> None:
    ident = cluster.view("import", "-", input=base.on({"spread": b"1"}).layers[1])
    for number in (1, 2, 3):
        shown = cluster.node(number).json("image", "inspect", ident)[0]
        assert shown["Id"] == ident
    assert f"Deleted: {ident}" in cluster.view("rmi", ident)
    assert [cluster.node(number).run("image", "inspect", ident).returncode for number in (1, 2, 3)] == [1, 1, 1]


def test_what_happens_to_images_is_told_as_events(cluster: Cluster, registry: str, base: Image, tmp_path: Path) -> None:
    node, image = cluster.node(1), base.on({"told": b"1"}, Labels={"by": "events"})
    name, started = f"{registry}/told:1", node("info", "--format", "{{.SystemTime}}")
    node("load", input=image.archive("told:1"))
    node("tag", "told:1", name)
    node("push", name)
    node("save", "-o", str(tmp_path / "saved.tar"), "told:1")
    node("rmi", name)
    node("rmi", "told:1")
    node("pull", name)
    imported = node("import", "-", "imported:1", input=base.layers[0])
    node("rmi", "-f", name, "imported:1")
    node("image", "prune", "-f")
    until = node("info", "--format", "{{.SystemTime}}")

    told = [json.loads(line) for line in node(
        "events", "--since", started, "--until", until, "--filter", "type=image", "--format", "{{json .}}"
    ).splitlines()]  # fmt: skip
    assert [(event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"].get("name")) for event in told] == [
        ("load", image.id, image.id),
        ("tag", image.id, name),
        ("push", name, f"{registry}/told"),
        ("save", image.id, image.id),
        ("untag", image.id, image.id),
        ("untag", image.id, image.id),  # the digest that the push gave it
        ("untag", image.id, image.id),
        ("delete", image.id, image.id),
        ("pull", name, f"{registry}/told"),
        ("tag", imported, "imported:1"),
        ("import", imported, imported),
        ("untag", image.id, image.id),
        ("untag", image.id, image.id),
        ("delete", image.id, image.id),
        ("untag", imported, imported),
        ("delete", imported, imported),
        ("prune", "", None),
    ]
    assert {event["Actor"]["Attributes"].get("by") for event in told if event["Actor"]["ID"] == image.id} == {"events"}
    assert told[-1]["Actor"]["Attributes"] == {"reclaimed": "0"}


# --- looking


def test_history_and_inspect_tell_what_is_in_it(view: View, base: Image) -> None:
    image = base.on({"data": b"x" * 1000}, Labels={"team": "blue"}, ExposedPorts={"80/tcp": {}}, WorkingDir="/var")
    view("load", input=image.archive("shown:1"))

    rows = view.rows("history", "--no-trunc", "shown:1")
    assert [row["CreatedBy"] for row in rows] == ["ADD files in /", "busybox and its applets"]
    assert rows[0]["ID"] == image.id and rows[1]["ID"] == "<missing>" and rows[0]["Size"].endswith("kB")
    shown = view.json("image", "inspect", "shown:1")[0]
    assert shown["Config"]["Labels"] == {"team": "blue"} and shown["Config"]["WorkingDir"] == "/var"
    assert shown["RepoTags"] == ["shown:1"] and shown["RepoDigests"] == []
    assert (shown["Os"], shown["Architecture"]) == ("linux", image.config["architecture"])
    assert shown["RootFS"]["Layers"] == json.loads(image.document)["rootfs"]["diff_ids"]
    assert shown["Size"] > 1_000_000
    gone = view.run("history", "nothing-here")
    assert gone.returncode == 1 and b"No such image: nothing-here" in gone.stderr


def test_lists_are_filtered(view: View, base: Image) -> None:
    first = Image({**base.config, "created": "2024-01-01T00:00:00Z"}, base.layers)
    second = Image({**base.config, "created": "2024-02-01T00:00:00Z"}, base.layers)
    view("load", input=first.on({"n": b"1"}, Labels={"tier": "web"}).archive("list/one:1"))
    view("load", input=second.on({"n": b"2"}, Labels={"tier": "db"}).archive("list/two:1"))

    def names(*filters: str) -> list[str]:
        args = [word for given in filters for word in ("--filter", given)]
        return [f"{row['Repository']}:{row['Tag']}" for row in view.rows("images", *args)]

    assert names("reference=list/*") == ["list/two:1", "list/one:1"]
    assert names("label=tier=web") == ["list/one:1"] and names("label=tier") == ["list/two:1", "list/one:1"]
    assert names("since=list/one:1", "reference=list/*") == ["list/two:1"]
    assert names("before=list/two:1", "reference=list/*") == ["list/one:1"]
    assert names("dangling=true") == []
    ident = view("images", "-q", "--no-trunc", "list/one")
    assert view("images", "-q", "list/one") == ident.removeprefix("sha256:")[:12]
    refused = view.run("images", "--filter", "colour=red")
    assert refused.returncode == 1 and b"invalid filter 'colour'" in refused.stderr, refused.stderr


def test_prune_removes_the_nameless_and_with_a_all_that_no_container_uses(view: View, base: Image) -> None:
    view("load", input=base.on({"n": b"old"}).archive("pruned:1"))
    old = view("images", "-q", "--no-trunc", "pruned:1")
    view("load", input=base.on({"n": b"new"}, Labels={"tier": "web"}).archive("pruned:1"))
    view("load", input=base.on({"n": b"held"}, Labels={"tier": "web"}).archive("held:1"))
    view("create", "--name", "holder", "held:1")

    assert f"deleted: {old}" in view("image", "prune", "-f")
    assert view("images", "-q", "pruned") and view.run("image", "inspect", old).returncode == 1
    assert "untagged: pruned:1" in view("image", "prune", "-af", "--filter", "label=tier=web")
    assert view("images", "-q", "pruned") == "" and view("images", "-q", "held") and view("images", "-q", "busybox")


# --- refusals


def test_an_unreachable_registry_is_named_with_the_reason(view: View, cluster: Cluster) -> None:
    with socket.socket() as free:
        free.bind((cluster.layout.gateway, 0))
        name = f"{cluster.layout.gateway}:{free.getsockname()[1]}/a/b:c"
        done = view.run("pull", name)
    assert done.returncode == 1 and b"connection refused" in done.stderr.lower(), done.stderr
    assert b"Error response from daemon" in done.stderr and name.partition("/")[0].encode() in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such:1", "manifest for {registry}/no/such:1 not found"),
        ("no/such@sha256:" + "0" * 64, "not found"),
        ("UPPER/case", "must be lowercase"),
        ("bad:tag:twice", "invalid reference format"),
        ("short@sha256:abc", "invalid reference format"),
    ],
)
def test_what_cannot_be_pulled_is_refused_in_the_words_of_docker(
    view: View, registry: str, name: str, said: str
) -> None:
    done = view.run("pull", f"{registry}/{name}")
    assert done.returncode == 1 and said.format(registry=registry).encode() in done.stderr, done.stderr
    ran = view.run("run", "--rm", f"{registry}/{name}")
    assert ran.returncode == 125 and view("ps", "-aq") == ""


def test_content_that_does_not_match_its_digest_never_arrives(view: View, cluster: Cluster, base: Image) -> None:
    """Layer, configuration and manifest in turn, of the right length; what was right is not kept either."""
    image = base.on({"honest": os.urandom(1000)}, Cmd=["true"])
    packed = image.packed()
    layer, config = packed.layers[-1], packed.config
    good = packed.blobs[layer]
    lies = {
        ":layer": Liar(packed, tampered={layer: good[:500] + bytes([good[500] ^ 1]) + good[501:]}),
        ":longer": Liar(packed, tampered={layer: good + b"and more"}),
        ":config": Liar(packed, tampered={config: packed.blobs[config].replace(b'["true"]', b'["evil"]')}),
        f"@{packed.digest}": Liar(packed, tampered={packed.digest: packed.manifest.replace(b"2", b"3")}),
    }
    for version, liar in lies.items():
        with lying_registry(cluster.layout.gateway, liar) as address:
            done = view.run("pull", f"{address}/liar{version}", timeout=120)
        assert done.returncode == 1, done.stdout
        assert re.search(rb"verification (failed|for)|larger than", done.stderr), (version, done.stderr)
    assert not [row for row in view.rows("images", "-a") if row["Repository"].endswith("/liar")]


def test_a_transfer_that_always_breaks_off_is_given_up(cluster: Cluster, base: Image) -> None:
    packed = base.on({"cut": b"short" * 100}).packed()
    liar = Liar(packed, cut=[packed.layers[-1]])
    with lying_registry(cluster.layout.gateway, liar) as address:
        done = cluster.node(2).run("pull", f"{address}/cut", timeout=120)
    assert done.returncode == 1 and done.stderr, done.stdout
    assert cluster.node(2)("images", "-q", f"{address}/cut") == ""


def test_a_pull_whose_agent_is_killed_goes_on_where_it_was(cluster: Cluster, base: Image) -> None:
    node, agent = cluster.node(3), cluster.pid(3, "swarmlet-agent")
    packed = base.on({"done": b"d" * 1000}).on({"half": os.urandom(6 << 20)}).packed()
    done, half = packed.layers[-2:]
    liar = Liar(packed, held=[half])
    partial = _image_folder(cluster, 3) / "partial"
    with lying_registry(cluster.layout.gateway, liar) as address:
        with node.popen("pull", f"{address}/killed:1", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pulling:
            eventually(lambda: (partial / half[7:]).stat().st_size and (partial / done[7:]).exists())
            os.kill(agent, signal.SIGKILL)
            pulling.communicate(timeout=30)
            assert pulling.returncode == 1
        have = (partial / half[7:]).stat().st_size
        liar.go_on.set()
        eventually(lambda: node.run("version").returncode == 0, 30)
        assert node("images", "-q", f"{address}/killed") == ""

        assert "Downloaded newer image" in node("pull", f"{address}/killed:1")
        assert liar.asked[done] == 1 and liar.ranges == [f"bytes={have}-"]
    assert node("run", "--rm", f"{address}/killed:1", "sh", "-c", "wc -c </half; head -c 2 /done").split() == [
        str(6 << 20), "dd",
    ]  # fmt: skip
    eventually(lambda: cluster.ready() == {"node-1", "node-2", "node-3"})


def test_a_pull_whose_client_goes_away_is_stopped(cluster: Cluster, view: View, base: Image) -> None:
    packed = base.on({"slow": os.urandom(100_000)}).packed()
    liar = Liar(packed, held=[packed.layers[-1]])
    with lying_registry(cluster.layout.gateway, liar) as address:
        with view.popen("pull", f"{address}/left:1", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pulling:
            eventually(lambda: liar.asked[packed.layers[-1]])
            pulling.send_signal(signal.SIGINT)
            pulling.communicate(timeout=30)
        assert liar.hung_up.wait(20)
    assert view("images", "-q", f"{address}/left") == ""
    eventually(lambda: not [file for n in (1, 2, 3) for file in (_image_folder(cluster, n) / "partial").iterdir()])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("junk", b"invalid"),
        ("truncated", b"unexpected end of file"),
        ("no images", b"neither manifest.json nor index.json"),
        ("dots", b"escapes its root"),
        ("symbolic link", b"escapes its root through the symbolic link"),
        ("absolute link", b"leads to no folder of the layer"),
        ("not a layer", b"invalid"),
    ],
)
def test_an_archive_that_is_broken_or_evil_is_refused_whole(
    view: View, base: Image, tmp_path: Path, what: str, said: bytes
) -> None:
    up = "../" * 12 + str(tmp_path).lstrip("/")
    archives = {
        "junk": b"junk" * 1000,
        "truncated": base.on({"a": b"b"}).archive("bad:1")[:500_000],
        "no images": tar_of({"something": b"else"}),
        "dots": with_layer(base, tar_of({f"{up}/escaped": b"x"})).archive("bad:1"),
        "symbolic link": with_layer(base, tar_of({"out/escaped": b"x"}, {"out": up})).archive("bad:1"),
        "absolute link": with_layer(base, tar_of({"out/escaped": b"x"}, {"out": str(tmp_path)})).archive("bad:1"),
        "not a layer": with_layer(base, b"this is no tar" * 100).archive("bad:1"),
    }
    done = view.run("load", input=archives[what])
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert view("images", "-q", "bad") == "" and not [*tmp_path.iterdir()]


# --- the nodes' folders


def _image_folder(cluster: Cluster, number: int) -> Path:
    return cluster.host(number).data_dir / "data" / "images"


def _blobs(cluster: Cluster, number: int) -> set[str]:
    return {path.name for path in _image_folder(cluster, number).joinpath("blobs").iterdir()}


def _layers(cluster: Cluster, number: int) -> set[str]:
    """Unpacked layers on a node."""
    return {entry.name for entry in (_image_folder(cluster, number) / "layers").iterdir()}
