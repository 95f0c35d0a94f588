"""Contexts, copies and digests on a real file system: the rules of COPY, and that nothing leads outside."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.context import read_dockerfile
from swarmlet_agent.builder.copying import How, copy_sources, owner_of, resolve_target
from swarmlet_agent.builder.modes import Mode, parse_mode
from swarmlet_agent.builder.patterns import parse_ignore
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.builder.sources import digest_of_sources, find_sources, is_archive
from swarmlet_agent.builder.untar import untar
from swarmlet_agent.images.capture import Stopped

pytestmark = pytest.mark.kernel


def running() -> bool:
    return False


def tar(*members: tuple[str, str, str]) -> bytes:
    """(name, kind, content or link) of each; kind is tarfile's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind.encode()
            if kind == "0":
                info.size = len(text.encode())
            else:
                info.linkname = text
            info.mode = 0o755 if kind == "5" else 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    with Root(folder) as root:
        untar(io.BytesIO(data).read, root, what="the archive")


def copy(source: Path, names: Sequence[str], target: Path, place: str, how: How | None = None, work: str = "/") -> None:
    with Root(source) as root, Root(target) as into:
        found = find_sources(root, names, what="COPY")
        path, as_folder = resolve_target(place, work, several=len(found) > 1, what="COPY")
        copy_sources(found, into, path, as_folder, how or How(), running)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    for name, content in {"a": "A", "b.txt": "B", "dir/c": "C", "dir/deep/d": "D", "dir/.e": "E"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    os.symlink("c", folder / "dir/link")
    os.chown(folder / "a", 12, 34)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    (folder / "there").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text("app:x:55:66::/:\n")
    (folder / "etc/group").write_text("staff:x:77:\n")
    os.symlink("/there", folder / "way")
    return folder


@pytest.mark.parametrize(("names", "place", "made"), [
    (["a"], "/x", {"x": "A"}),
    (["a"], "/x/", {"x/a": "A"}),
    (["a"], "/there", {"there/a": "A"}),
    (["a"], "/way", {"there/a": "A"}),
    (["a"], "/new/deep/name", {"new/deep/name": "A"}),
    (["a"], "rel", {"work/rel": "A"}),
    (["a"], ".", {"work/a": "A"}),
    (["a", "b.txt"], "/there/", {"there/a": "A", "there/b.txt": "B"}),
    (["dir"], "/x", {"x/c": "C", "x/deep/d": "D", "x/.e": "E", "x/link": "c"}),
    (["dir/", "a"], "/x/", {"x/c": "C", "x/deep/d": "D", "x/.e": "E", "x/link": "c", "x/a": "A"}),
    (["*.txt"], "/x/", {"x/b.txt": "B"}),
    (["d*/c"], "/x", {"x": "C"}),
    (["dir/link"], "/x/", {"x/link": "C"}),
    (["/a"], "/x", {"x": "A"}),
    (["dir/../a"], "/x", {"x": "A"}),
])
def test_copy_puts_files_where_docker_does(
    context: Path, image: Path, names: list[str], place: str, made: dict[str, str]
) -> None:
    before = tree(image)
    copy(context, names, image, place, work="/work")
    assert {name: text for name, text in tree(image).items() if name not in before} == made


@pytest.mark.parametrize(("names", "place", "why"), [
    (["gone"], "/x", "file not found"), (["../a"], "/x", "forbidden path"), (["*.gone"], "/x", "no source files"),
    (["a", "b.txt"], "/x", "must be a directory"), (["dir"], "/etc/passwd", "cannot copy"),
    (["a"], "/etc/passwd/x", "cannot copy"),
])
def test_copies_that_cannot_be_are_refused(
    context: Path, image: Path, names: list[str], place: str, why: str
) -> None:
    before = tree(image)
    with pytest.raises(InvalidArgument, match=why):
        copy(context, names, image, place)
    assert tree(image) == before


def test_owners_modes_and_times(context: Path, image: Path) -> None:
    os.chmod(context / "a", 0o4750)
    os.utime(context / "a", ns=(5, 1_000_000_007))
    copy(context, ["a"], image, "/root-owned")
    copy(context, ["a"], image, "/kept", How(owner=None))
    copy(context, ["a"], image, "/changed", How(owner=(1, 2), mode=Mode(0o600)))
    shown = {name: os.stat(image / name) for name in ("root-owned", "kept", "changed")}

    assert [(s.st_uid, s.st_gid, stat.S_IMODE(s.st_mode)) for s in shown.values()] == [
        (0, 0, 0o4750), (12, 34, 0o4750), (1, 2, 0o600),
    ]
    assert {s.st_mtime_ns for s in shown.values()} == {1_000_000_007}
    with Root(image) as root:
        assert [owner_of(root, text) for text in ("app", "app:staff", "8", "8:9")] == [
            (55, 55), (55, 77), (8, 8), (8, 9),
        ]
        with pytest.raises(InvalidArgument, match="can't find uid for user nobody"):
            owner_of(root, "nobody")


def test_a_symbolic_mode_is_applied_to_each_file_and_folder(context: Path, image: Path) -> None:
    os.chmod(context / "a", 0o700)
    os.chmod(context / "dir/c", 0o600)
    os.chmod(context / "dir", 0o700)
    copy(context, ["a", "dir"], image, "/to/", How(mode=parse_mode("u=rwX,go=rX")))
    modes = {name: stat.S_IMODE(os.stat(image / "to" / name).st_mode) for name in ("a", "c")}
    assert modes == {"a": 0o755, "c": 0o644}
    copy(context, ["dir"], image, "/new/dir", How(mode=parse_mode("go+rX")))
    assert stat.S_IMODE(os.stat(image / "new/dir/c").st_mode) == 0o644


def test_what_is_there_is_replaced_and_folders_are_merged(context: Path, image: Path) -> None:
    (image / "there/deep").mkdir()
    (image / "there/deep/old").write_text("old")
    (image / "there/c").symlink_to("/etc/passwd")
    copy(context, ["dir"], image, "/there")

    assert (image / "there/deep/old").read_text() == "old" and (image / "there/c").read_text() == "C"
    assert not (image / "there/c").is_symlink() and (image / "etc/passwd").read_text().startswith("app")


def test_excluded_files_stay_behind(context: Path, image: Path) -> None:
    copy(context, ["dir"], image, "/x", How(exclude=parse_ignore("deep\n.e\n")))
    assert {name for name in tree(image) if name.startswith("x")} == {"x/c", "x/link"}


def test_parents_are_kept_when_asked_for(context: Path, image: Path) -> None:
    with Root(context) as root, Root(image) as into:
        found = find_sources(root, ["dir/deep/d", "dir/./deep/d", "dir/deep"], what="COPY", parents=True)
        assert [one.within for one in found] == ["dir/deep", "deep", "dir/deep"]
        copy_sources(found, into, "/p", True, How(), running)
    assert {name for name in tree(image) if name.startswith("p/")} == {"p/dir/deep/d", "p/deep/d"}


def test_links_of_an_image_never_lead_out_of_it(context: Path, image: Path, tmp_path: Path) -> None:
    os.symlink(str(tmp_path), image / "absolute")
    os.symlink("../../..", image / "up")
    copy(context, ["a"], image, "/absolute/x")
    copy(context, ["a"], image, "/up/y")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["context", "image"]
    assert (image / "y").read_text() == "A" and (image / str(tmp_path).lstrip("/") / "x").read_text() == "A"


def digest(context: Path, names: Sequence[str], *, owners: bool = False) -> str:
    with Root(context) as root:
        return digest_of_sources(find_sources(root, names, what="COPY"), owners=owners, stopped=running)


def test_the_digest_changes_with_the_capabilities_of_a_program(context: Path) -> None:
    before = digest(context, ["dir"])
    os.setxattr(context / "dir/c", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    assert digest(context, ["dir"]) != before


def test_the_digest_changes_with_content_mode_and_names_only(context: Path) -> None:
    before = digest(context, ["dir"])
    os.utime(context / "dir/c", (1, 1))
    os.chown(context / "dir/c", 9, 9)
    assert digest(context, ["dir"]) == before and before.startswith("dir:")
    owned = digest(context, ["dir"], owners=True)
    os.chmod(context / "dir/c", 0o600)
    after_mode = digest(context, ["dir"])
    (context / "dir/c").write_text("X")
    after_content = digest(context, ["dir"])
    (context / "dir/c").rename(context / "dir/f")
    assert len({before, owned, after_mode, after_content, digest(context, ["dir"])}) == 5
    assert digest(context, ["a", "b.txt"]).startswith("multi:") and digest(context, ["a"]).startswith("file:")
    with Root(context) as root, pytest.raises(Stopped):
        digest_of_sources(find_sources(root, ["dir"], what="COPY"), stopped=lambda: True)


def test_archives_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(tar(("x", "0", "x")))
    (tmp_path / "text.tar").write_text("no tar at all, but long enough" * 50)
    (tmp_path / "empty").touch()
    with Root(tmp_path) as root:
        found = find_sources(root, ["empty", "tar", "text.tar"], what="ADD")
        assert [is_archive(one) for one in found] == [False, True, False]


def test_added_archives_go_where_the_images_links_lead(image: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar(("sub/f", "0", "F"), ("out", "2", "/etc"), ("out/g", "0", "G")))
    copy(tmp_path, ["x.tar"], image, "/way", How(unpack=True))
    assert (image / "there/sub/f").read_text() == "F" and (image / "etc/g").read_text() == "G"


def test_an_archive_that_lacks_its_last_padding_is_whole(tmp_path: Path) -> None:
    data = tar(("a", "0", "1"), ("b", "0", "two"))
    unpack(data[: 512 + 512 + 512 + 3], tmp_path)
    assert tree(tmp_path) == {"a": "1", "b": "two"}


@pytest.mark.parametrize("data", [b"", b"nonsense" * 100, tar(("a", "0", "x" * 600))[:700], tar(("../a", "0", "x"))])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        unpack(data, tmp_path)


PARTS = st.sampled_from(["a", "b", "up", "..", ".", "", "/"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
MEMBERS = st.tuples(PATHS, st.sampled_from(["0", "0", "1", "2", "5", "6"]), st.one_of(PATHS, st.just("/outside")))


@settings(max_examples=150, deadline=None)
@given(st.lists(MEMBERS, max_size=8))
def test_no_archive_reaches_outside_its_folder(members: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as made:
        outside, inside = Path(made), Path(made) / "folder"
        inside.mkdir()
        (outside / "a").write_text("safe")
        with contextlib.suppress(InvalidArgument):
            unpack(tar(*members), inside)
        assert sorted(path.name for path in outside.iterdir()) == ["a", "folder"]
        assert (outside / "a").read_text() == "safe" and (outside / "a").stat().st_nlink == 1


def test_the_dockerfile_is_read_before_what_is_ignored_goes(tmp_path: Path) -> None:
    for name in ("Dockerfile", "a.log", "sub/b.log", "keep/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("FROM x\n")
    (tmp_path / ".dockerignore").write_text("Dockerfile\n**/*.log\n.dockerignore\n")
    assert read_dockerfile(tmp_path, "") == "FROM x\n"
    assert list(tree(tmp_path)) == ["keep/x"]
    with pytest.raises(InvalidArgument, match="Cannot locate specified Dockerfile: gone"):
        read_dockerfile(tmp_path, "gone")
    (tmp_path / "Dockerfile").write_text("FROM x")
    for name in ("../Dockerfile", "a/../../Dockerfile"):
        with pytest.raises(InvalidArgument, match="forbidden path outside the build context"):
            read_dockerfile(tmp_path, name)


def test_a_dockerfile_that_is_a_link_is_read_inside_the_context(tmp_path: Path) -> None:
    os.symlink("/etc/hostname", tmp_path / "Dockerfile")
    with pytest.raises(InvalidArgument, match="Cannot locate"):
        read_dockerfile(tmp_path, "")
