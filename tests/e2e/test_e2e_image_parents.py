"""Images that others were made on, by `docker commit` or a build: Docker's rules of removing and showing them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from e2e_builds import build
from e2e_cluster import View

REFUSED = "(cannot be forced) - image has dependent child images"


@pytest.fixture
def parent(node: View) -> Iterator[str]:
    """The id of an image parent:1, itself made on busybox."""
    ident = _commit(node, "busybox", "parent:1")
    yield ident
    for name in ("child:1", "child:2", "parent:1"):
        node.run("rmi", "-f", name)
    node("image", "prune", "-f")


def _commit(node: View, image: str, name: str) -> str:
    container = node("run", "-d", image, "touch", f"/{name}").strip()
    node("wait", container)
    ident = node("commit", "--change", "LABEL kin=yes", container, name).strip()
    node("rm", container)
    return ident


def _ids(node: View, *options: str) -> list[str]:
    return node("images", "-q", "--no-trunc", *options).split()


def test_an_image_with_children_is_not_deleted_by_its_id_not_even_by_force(node: View, parent: str) -> None:
    _commit(node, "parent:1", "child:1")

    for options in ((), ("-f",)):
        done = node.run("rmi", *options, parent)
        assert done.returncode == 1
        said = f"conflict: unable to delete {parent.removeprefix('sha256:')[:12]} {REFUSED}"
        assert said in done.stderr.decode()
    assert node("images", "-q", "parent:1")
    client = docker.APIClient(base_url=node.url, timeout=60)
    try:
        with pytest.raises(docker.errors.APIError) as caught:
            client.remove_image(parent, force=True)
        assert caught.value.status_code == 409
    finally:
        client.close()


def test_without_a_name_it_is_hidden_and_goes_with_its_last_child(node: View, parent: str) -> None:
    first = _commit(node, "parent:1", "child:1")
    second = _commit(node, "parent:1", "child:2")

    assert node("rmi", "parent:1").split("\n")[:1] == ["Untagged: parent:1"]
    assert parent not in _ids(node) and parent in _ids(node, "-a")
    assert parent not in _ids(node, "-f", "dangling=true") and parent not in node("image", "prune", "-f")
    assert node("rmi", "child:1").splitlines()[:2] == ["Untagged: child:1", f"Deleted: {first}"]
    assert parent in _ids(node, "-a")
    gone = node("rmi", "child:2").splitlines()
    assert gone[:2] == ["Untagged: child:2", f"Deleted: {second}"] and f"Deleted: {parent}" in gone
    assert parent not in _ids(node, "-a") and _ids(node, "busybox")


def test_with_no_prune_it_stays_and_is_dangling_then(node: View, parent: str) -> None:
    _commit(node, "parent:1", "child:1")
    node("rmi", "parent:1")

    assert parent not in node("rmi", "--no-prune", "child:1")
    assert parent in _ids(node) and parent in _ids(node, "-f", "dangling=true")
    assert f"deleted: {parent}" in node("image", "prune", "-f")


def test_it_stays_while_a_container_uses_it(node: View, parent: str) -> None:
    _commit(node, "parent:1", "child:1")
    node("create", "--name", "holds-parent", "parent:1")
    node("rmi", "-f", "parent:1")

    assert f"Deleted: {parent}" not in node("rmi", "child:1")
    assert parent in _ids(node)
    node("rm", "holds-parent")
    assert f"Deleted: {parent}" in node("rmi", parent)


def test_what_is_built_is_a_child_of_its_base(node: View, parent: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM parent:1 AS below\nENV a=1\nFROM below\nRUN touch /built\n")
    build(node, tmp_path, "-t", "child:1")

    assert node.json("image", "inspect", "child:1")[0]["Parent"] == parent
    assert REFUSED.encode() in node.run("rmi", "-f", parent).stderr
    node("rmi", "parent:1")
    assert f"Deleted: {parent}" in node("rmi", "child:1")


def test_pruning_everything_takes_children_and_what_they_were_made_on(node: View, parent: str) -> None:
    child = _commit(node, "parent:1", "child:1")
    node("create", "--name", "holds-child", "child:1")
    said = node("image", "prune", "-af", "--filter", "label=kin")

    assert "untagged: parent:1" in said and f"deleted: {parent}" not in said
    assert child in _ids(node) and parent in _ids(node, "-a")
    node("rm", "holds-child")
    said = node("image", "prune", "-af", "--filter", "label=kin")
    assert f"deleted: {child}" in said and f"deleted: {parent}" in said
