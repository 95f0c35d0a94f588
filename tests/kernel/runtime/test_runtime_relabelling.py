"""Labels of files are attributes, which file systems keep whether the kernel has SELinux or not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from swarmlet.errors import Internal
from swarmlet_agent.runtime import selinux

pytestmark = pytest.mark.kernel

LABEL, OTHER = "u:o:f:s0:c1,c2", "u:o:f:s0"


def label_of(path: Path) -> str:
    return os.getxattr(path, selinux.ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/file").write_text("x")
    (top / "a/b/c/\udcff").touch()
    os.mkfifo(top / "a/pipe")
    return top


def test_all_that_lies_below_is_labelled(tree: Path) -> None:
    selinux.label_source(str(tree), LABEL)
    every = [tree, *tree.rglob("*")]
    assert len(every) == 7 and {label_of(path) for path in every} == {LABEL}
    selinux.label_source(str(tree), OTHER)
    assert {label_of(path) for path in every} == {OTHER}


def test_a_file_alone_is_labelled(tree: Path) -> None:
    selinux.label_source(str(tree / "a/file"), LABEL)
    assert label_of(tree / "a/file") == LABEL
    with pytest.raises(OSError, match="No data available"):
        label_of(tree / "a")


def test_links_lead_nowhere(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (tree / "a/folder").symlink_to(tmp_path / "outside")
    (tree / "a/name").symlink_to(tmp_path / "outside/secret")
    selinux.label_source(str(tree), LABEL)
    assert label_of(tree / "a/folder") == label_of(tree / "a/name") == LABEL
    for path in (tmp_path / "outside", tmp_path / "outside/secret"):
        with pytest.raises(OSError, match="No data available"):
            label_of(path)


def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    look = selinux._label_folder

    def exchange(folder: int, label: bytes) -> list[str]:
        found = look(folder, label)
        if "b" in found:
            (tree / "a/b").rename(tmp_path / "aside")
            (tree / "a/b").symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(selinux, "_label_folder", exchange)
    selinux.label_source(str(tree), LABEL)
    assert (tree / "a/b").is_symlink()
    with pytest.raises(OSError, match="No data available"):
        label_of(tmp_path / "outside/secret")


def test_folders_may_lie_deep_and_no_descriptor_stays(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(500):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    before = len(os.listdir("/proc/self/fd"))
    selinux.label_source(str(top), LABEL)
    assert os.getxattr(handle, selinux.ATTRIBUTE).decode() == LABEL
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(handle)


def test_what_has_its_label_is_left_alone(tree: Path) -> None:
    selinux.label_source(str(tree), LABEL)
    before = (tree / "a/file").stat().st_ctime_ns
    selinux.label_source(str(tree), LABEL)
    assert (tree / "a/file").stat().st_ctime_ns == before
    selinux.label_source(str(tree), OTHER)
    assert (tree / "a/file").stat().st_ctime_ns > before


def test_file_systems_without_labels_are_passed_over() -> None:
    selinux.label_source("/proc/sys/kernel", LABEL)
    selinux.label_files([Path("/proc/sys/kernel/hostname")], LABEL)


def test_what_cannot_be_labelled_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(Internal, match=f"error setting label on mount source '{tree}': Read-only file system"):
        selinux.label_source(str(tree), LABEL)
    with pytest.raises(Internal, match="error setting label on"):
        selinux.label_files([tree / "a/file"], LABEL)


def test_no_descriptor_stays_of_what_could_not_be_labelled(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = os.setxattr

    def refuse(path: str, *args: Any, **more: Any) -> None:
        if path.endswith("/c"):
            raise OSError(errno.EROFS, "Read-only file system")
        label(path, *args, **more)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(Internal, match="Read-only file system"):
        selinux.label_source(str(tree), LABEL)
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_are_labelled(tree: Path) -> None:
    selinux.label_files([tree / "a/file", tree / "a/pipe"], LABEL)
    assert label_of(tree / "a/file") == label_of(tree / "a/pipe") == LABEL
