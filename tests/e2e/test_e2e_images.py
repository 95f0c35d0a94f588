"""Images with the stock docker command: names, archives, and what is told of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View
from registry_fill import (
    Image,
    push,
)

pytestmark = pytest.mark.usefixtures("no_images_left")


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
