"""Reading a container's files from outside never leaves its root, whatever links the image holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_agent.engine.create import _folder_in
from swarmlet_agent.engine.inside import ensure_folder, read_accounts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "passwd").write_text("host:x:0:0::/:\n")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    return root


def test_plain_files_are_read_and_missing_ones_are_empty(root):
    (root / "etc" / "passwd").write_text("a:x:1:1::/:\n")

    assert read_accounts(root) == ("a:x:1:1::/:\n", "")


@pytest.mark.parametrize("target", ["/../outside/passwd", "../../outside/passwd", "/outside/passwd", "loop"])
def test_links_that_would_lead_outside_find_nothing(root, target):
    (root / "etc" / "passwd").symlink_to(target)
    (root / "etc" / "loop").symlink_to("loop")

    assert read_accounts(root)[0] == ""


def test_links_inside_are_followed_from_the_containers_root(root):
    (root / "usr").mkdir()
    (root / "usr" / "passwd").write_text("inner\n")
    (root / "etc" / "passwd").symlink_to("/usr/passwd")

    assert read_accounts(root)[0] == "inner\n"


def test_a_folder_or_a_fifo_in_their_place_is_no_file(root):
    (root / "etc" / "passwd").mkdir()
    os.mkfifo(root / "etc" / "group")

    assert read_accounts(root) == ("", "")


def test_a_working_directory_is_made_inside(root, tmp_path):
    (root / "srv").symlink_to("/../../outside")
    (root / "outside").mkdir()
    ensure_folder(root, "/srv/app/x")

    assert (root / "outside" / "app" / "x").is_dir()
    assert list((tmp_path / "outside").iterdir()) == [tmp_path / "outside" / "passwd"]
    ensure_folder(root, "/srv/app/x")


def test_a_file_in_the_way_is_told(root):
    (root / "srv").write_text("")
    with pytest.raises(InvalidArgument, match="/srv is not a directory"):
        ensure_folder(root, "/srv")


def test_an_images_folder_is_resolved_inside_its_root(root, tmp_path):
    (root / "data").symlink_to("/real")
    (root / "real").mkdir()
    (root / "bad").symlink_to("../../outside")

    assert _folder_in(root, "/data") == root / "real"
    assert _folder_in(root, "/bad") is None
    assert _folder_in(root, "/nothing") is None
