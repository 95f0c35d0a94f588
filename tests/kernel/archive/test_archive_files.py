"""Packing, unpacking and comparing containers' files, on the real kernel: links, mounts, overlayfs."""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import socket
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument, NotFound, SwarmletError
from swarmlet_agent.archive import looking, pack
from swarmlet_agent.archive.changes import Kind, find_changes, places_made
from swarmlet_agent.archive.extract import Rules, extract
from swarmlet_agent.archive.view import Bind, View, open_stacked, open_view
from swarmlet_agent.threads import own_thread

pytestmark = pytest.mark.kernel
ANYTHING = Rules()


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_600_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def unpack(root: Path, where: str, data: bytes, rules: Rules = ANYTHING) -> None:
    with opened(root) as handle:
        extract(handle, where, iter([data[at : at + 1000] for at in range(0, len(data), 1000)]), rules)


def put(view: View, where: str, name: str) -> None:
    """A file by way of a view."""

    def work() -> None:
        view.enter()
        extract(view.root, where, iter([tar(member(name, b"1"))]), Rules())

    asyncio.run(own_thread(work, "test"))


def names_of(pieces: pack.TarStream) -> dict[str, tarfile.TarInfo]:
    try:
        data = b"".join(pieces)
    finally:
        pieces.close()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: info for info in archive.getmembers()}


# unpacking


def test_everything_about_a_file_is_unpacked(tmp_path: Path) -> None:
    xattrs = {"SCHILY.xattr.user.note": "hi", "SCHILY.xattr.trusted.overlay.opaque": "y"}
    unpack(tmp_path, "/", tar(
        member("d", type=tarfile.DIRTYPE, mode=0o1750, uid=7, gid=8),
        member("d/tool", b"x" * 3000, mode=0o4755, uid=1, gid=2, pax_headers=xattrs),
        member("d/again", type=tarfile.LNKTYPE, linkname="d/tool"),
        link("d/l", "../../outside"),
        member("pipe", type=tarfile.FIFOTYPE, mode=0o622),
        member("dev", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("deep/er/file", b"1"),
    ))

    tool = tmp_path / "d/tool"
    found = tool.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_nlink) == (0o4755, 1, 2, 2)
    assert found.st_mtime == 1_600_000_000 and tool.read_bytes() == b"x" * 3000
    assert os.listxattr(tool) == ["user.note"] and os.getxattr(tool, "user.note") == b"hi"
    folder = (tmp_path / "d").stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid, folder.st_mtime) == (0o1750, 7, 1_600_000_000)
    assert os.readlink(tmp_path / "d/l") == "../../outside"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "pipe").stat().st_mode) == 0o622
    assert (tmp_path / "dev").stat().st_rdev == os.makedev(1, 3)
    assert (tmp_path / "deep/er/file").read_text() == "1"


def test_links_of_the_container_lead_to_its_own_root_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "outside").mkdir(parents=True)
    outside.mkdir()
    (root / "abs").symlink_to(outside)
    (root / "up").symlink_to("../../../../../../outside")
    (root / str(outside).lstrip("/")).mkdir(parents=True)

    unpack(root, "/", tar(member("abs/one", b"1"), member("up/two", b"2")))
    unpack(root, "/up", tar(member("three", b"3")))

    assert list(outside.iterdir()) == []
    assert (root / str(outside).lstrip("/") / "one").read_text() == "1"
    assert (root / "outside/two").read_text() == "2" and (root / "outside/three").read_text() == "3"


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    root, victim = tmp_path / "root", tmp_path / "victim"
    root.mkdir()
    victim.write_text("safe")
    (root / "x").symlink_to(victim)

    unpack(root, "/", tar(member("x", b"new")))

    assert victim.read_text() == "safe" and not (root / "x").is_symlink() and (root / "x").read_text() == "new"


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "up"]), min_size=1, max_size=4).map("/".join)
ENTRIES = st.lists(
    st.one_of(
        NAMES.map(lambda name: member(name, b"evil")),
        NAMES.map(lambda name: member(name, type=tarfile.DIRTYPE, mode=0o755)),
        st.tuples(NAMES, st.sampled_from(["..", "/", "../..", "../../a", "a", "/a/b"])).map(lambda pair: link(*pair)),
        st.tuples(NAMES, NAMES).map(lambda pair: member(pair[0], type=tarfile.LNKTYPE, linkname=pair[1])),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(ENTRIES, st.booleans())
def test_no_archive_writes_outside(entries: list[tuple[tarfile.TarInfo, bytes]], strict: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        around = Path(name)
        root = around / "one/two/root"
        (root / "where").mkdir(parents=True)
        (root / "up").symlink_to("../../..")
        (around / "a").write_text("safe")
        (around / "one/two/a").write_text("safe")
        # If it is refused, what was done until then must not have led out either.
        with suppress(SwarmletError, OSError):
            unpack(root, "/where", tar(*entries), Rules(no_change_of_kind=strict))
        outside = {path: path.read_text() for path in around.rglob("*") if path.is_file() and root not in path.parents}
        assert outside == {around / "a": "safe", around / "one/two/a": "safe"}
        assert {path.name for path in (around / "one/two").iterdir()} == {"root", "a"}


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "where").mkdir()
    with pytest.raises(InvalidArgument, match="is outside of '/where'"):
        unpack(tmp_path, "/where", tar(member(name, b"1")))
    with pytest.raises(InvalidArgument):
        unpack(tmp_path, "/where", tar(member("x", type=tarfile.LNKTYPE, linkname=name)))
    assert [path.name for path in tmp_path.rglob("*")] == ["where"]


def test_a_folder_and_something_else_take_each_others_place_only_if_they_may(tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "f").write_text("old")
    strict = Rules(no_change_of_kind=True)

    with pytest.raises(InvalidArgument, match='cannot overwrite directory "/d" with non-directory "/"'):
        unpack(tmp_path, "/", tar(member("d", b"1")), strict)
    with pytest.raises(InvalidArgument, match='cannot overwrite non-directory "/f" with directory "/"'):
        unpack(tmp_path, "/", tar(member("f", type=tarfile.DIRTYPE)), strict)
    assert (tmp_path / "d/sub").is_dir() and (tmp_path / "f").read_text() == "old"

    unpack(tmp_path, "/", tar(member("d", b"1"), member("f", type=tarfile.DIRTYPE, mode=0o755)))
    assert (tmp_path / "d").read_text() == "1" and (tmp_path / "f").is_dir()


def test_files_can_be_given_to_the_containers_user(tmp_path: Path) -> None:
    unpack(tmp_path, "/", tar(member("x", b"1", uid=5, gid=5), link("l", "x")), Rules(owner=(1234, 4321)))

    for name in ("x", "l"):
        found = os.lstat(tmp_path / name)
        assert (found.st_uid, found.st_gid) == (1234, 4321)


@pytest.mark.parametrize("cut", [100, 700, 1300])
def test_an_archive_that_ends_early_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(InvalidArgument):
        unpack(tmp_path, "/", tar(member("x", b"1" * 2000))[:cut])


def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"middle")
    packed = tmp_path / "big.tar"
    assert os.spawnlp(os.P_WAIT, "tar", "tar", "-C", str(tmp_path), "-S", "-cf", str(packed), "big") == 0
    (tmp_path / "out").mkdir()

    unpack(tmp_path, "/out", packed.read_bytes())

    found = (tmp_path / "out/big").stat()
    assert found.st_size == size and found.st_blocks * 512 < 1 << 20
    with (tmp_path / "out/big").open("rb") as file:
        file.seek(size // 2)
        assert file.read(6) == b"middle"


# packing


def test_a_tree_is_packed_with_everything_but_sockets(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(b"1" * 1000)
    os.link(source / "a", source / "sub/same")
    (source / "sub/l").symlink_to("../a")
    os.mkfifo(source / "pipe")
    os.setxattr(source / "a", "user.note", b"\xff\x00v")
    os.chmod(source / "a", 0o4711)
    (source / ("long" * 60)).write_text("x")
    with socket.socket(socket.AF_UNIX) as listener, opened(tmp_path) as root:
        listener.bind(str(source / "sock"))
        found = names_of(pack.tree(root, "/src", "renamed"))

    assert set(found) == {
        "renamed", "renamed/a", "renamed/pipe", "renamed/sub", "renamed/sub/l", "renamed/sub/same",
        "renamed/" + "long" * 60,
    }
    assert found["renamed/sub/same"].islnk() and found["renamed/sub/same"].linkname == "renamed/a"
    assert found["renamed/sub/l"].linkname == "../a" and found["renamed/pipe"].isfifo()
    assert found["renamed/a"].mode == 0o4711
    note = found["renamed/a"].pax_headers["SCHILY.xattr.user.note"]
    assert note.encode("utf-8", "surrogateescape") == b"\xff\x00v"


def test_what_is_packed_unpacks_to_the_same(tmp_path: Path) -> None:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/sub/f").write_bytes(os.urandom(3 << 20))
    (tmp_path / "dst").mkdir()
    with opened(tmp_path) as root:
        pieces = pack.tree(root, "/src", ".")
        extract(root, "/dst", pieces, Rules())
        pieces.close()
    assert (tmp_path / "dst/sub/f").read_bytes() == (tmp_path / "src/sub/f").read_bytes()


def test_a_file_that_shrinks_while_it_is_read_keeps_its_promised_length(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1" * (5 << 20))
    (tmp_path / "g").write_bytes(b"2")
    with opened(tmp_path) as root:
        pieces = pack.tree(root, "/", ".")
        data = next(pieces)
        os.truncate(tmp_path / "f", 10)
        data += b"".join(pieces)
        pieces.close()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getmember("./f").size == 5 << 20
        content = archive.extractfile("./g")
        assert content is not None and content.read() == b"2"


def test_a_stream_that_is_never_read_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path) as root:
        pack.tree(root, "/", ".").close()
        half = pack.tree(root, "/", ".")
        next(half)
        half.close()
        half.close()
    assert len(os.listdir("/proc/self/fd")) == before


# looking


def test_a_link_is_shown_itself_with_where_it_ends(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "one").symlink_to("/two")
    (tmp_path / "two").symlink_to("../../d/missing")
    (tmp_path / "tod").symlink_to("/d")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "f").write_text("abc")
    with opened(tmp_path) as root:
        found = looking.stat_path(root, "/one", "box", "/one")
        assert stat.S_ISLNK(found.mode) and found.target == "/d/missing"
        assert looking.stat_path(root, "/tod", "box", "tod").target == "/d"
        assert looking.stat_path(root, "/tod/", "box", "tod/").is_folder
        assert looking.stat_path(root, "/f", "box", "f").size == 3
        with pytest.raises(NotFound, match=r"Could not find the file /x in container box"):
            looking.stat_path(root, "/x", "box", "/x")
        with pytest.raises(InvalidArgument, match="not a directory"):
            looking.stat_path(root, "/f/", "box", "/f/")
        with pytest.raises(InvalidArgument, match="too many levels"):
            looking.stat_path(root, "/loop", "box", "/loop")
        with pytest.raises(InvalidArgument, match="extraction point is not a directory"):
            looking.open_folder(root, "/f", "box", "/f")


# the view


def test_a_view_shows_volumes_and_leaves_nothing_mounted(tmp_path: Path) -> None:
    root, volume, secret = tmp_path / "root", tmp_path / "volume", tmp_path / "file"
    (root / "etc").mkdir(parents=True)
    (root / "link").symlink_to("/real")
    (root / "real").mkdir()
    (root / "proc").mkdir()
    volume.mkdir()
    (volume / "inside").write_text("v")
    secret.write_text("file")
    view = open_view(root, [
        Bind(str(volume), "/link"), Bind(str(volume), "/new/ro", read_only=True), Bind(str(secret), "/etc/f"),
        Bind(str(tmp_path / "missing"), "/gone"),
    ], guarded=["/proc", "/none"])
    try:
        assert "real/inside" in names_of(pack.tree(view.root, "/real", "real"))
        assert names_of(pack.single(view.root, "/etc", "f", "f"))["f"].size == 4
        put(view, "/real", "x")
        for where, name, why in (
            ("/new/ro", "y", "read-only"), ("/etc", "f", "busy"), ("/", "new", "busy"), ("/", "proc", "busy"),
        ):
            with pytest.raises(OSError, match=why):
                put(view, where, name)
        assert (root / "proc").is_dir() and (volume / "inside").exists()
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    finally:
        view.close()

    assert (volume / "x").read_text() == "1" and not (root / "real/x").exists() and not (root / "gone").exists()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_a_read_only_root_takes_nothing_but_its_volumes_do(tmp_path: Path) -> None:
    root, volume = tmp_path / "root", tmp_path / "volume"
    (root / "v").mkdir(parents=True)
    volume.mkdir()
    view = open_view(root, [Bind(str(volume), "/v")], read_only=True)
    try:
        with pytest.raises(OSError, match="read-only"):
            put(view, "/", "x")
        put(view, "/v", "x")
    finally:
        view.close()
    assert (volume / "x").exists() and not (root / "x").exists()


# differences


libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def overlay(base: Path, *lower: Path) -> Iterator[tuple[Path, Path]]:
    """(merged, upper) over the folders, highest first."""
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={base}/upper,workdir={base}/work,index=off"
    merged = base / "merged"
    assert libc.mount(b"overlay", os.fsencode(merged), b"overlay", 0, options.encode()) == 0, ctypes.get_errno()
    try:
        yield merged, base / "upper"
    finally:
        assert libc.umount2(os.fsencode(merged), 2) == 0


def changes_of(upper: Path, *lower: Path) -> dict[str, Kind]:
    view = open_stacked(lower)
    try:
        found = find_changes(upper, view.root)
    finally:
        view.close()
    assert [change.path.split("/") for change in found] == sorted(change.path.split("/") for change in found)
    return {change.path: change.kind for change in found}


def layers(tmp_path: Path) -> tuple[Path, Path]:
    low, high = tmp_path / "low", tmp_path / "high"
    for name in ("etc", "opt/app", "same"):
        (low / name).mkdir(parents=True)
    high.mkdir()
    for name in ("etc/a", "etc/b", "opt/app/x", "same/f"):
        (low / name).write_text(name)
    (high / "etc").mkdir()
    os.mknod(high / "etc/b", stat.S_IFCHR, 0)  # the image itself has deleted it
    (high / "etc/c").write_text("c")
    return high, low


def test_differences_are_told_as_docker_tells_them(tmp_path: Path) -> None:
    high, low = layers(tmp_path)
    with overlay(tmp_path, high, low) as (merged, upper):
        (merged / "etc/a").write_text("changed")
        (merged / "etc/c").unlink()
        (merged / "etc/b").write_text("as if new")
        (merged / "new/dir").mkdir(parents=True)
        (merged / "new/dir/f").write_text("1")
        for name in ("app/x", "app"):
            (merged / "opt" / name).unlink() if name.endswith("x") else (merged / "opt" / name).rmdir()
        with (merged / "same/f").open("r+"):
            pass  # copied up, and still the same
        assert changes_of(upper, high, low) == {
            "/etc": Kind.MODIFIED, "/etc/a": Kind.MODIFIED, "/etc/b": Kind.ADDED, "/etc/c": Kind.DELETED,
            "/new": Kind.ADDED, "/new/dir": Kind.ADDED, "/new/dir/f": Kind.ADDED,
            "/opt": Kind.MODIFIED, "/opt/app": Kind.DELETED,
        }


def test_a_folder_made_anew_hides_what_the_image_has_in_it(tmp_path: Path) -> None:
    high, low = layers(tmp_path)
    with overlay(tmp_path, high, low) as (merged, upper):
        (merged / "opt/app/x").unlink()
        (merged / "opt/app").rmdir()
        (merged / "opt/app").mkdir()
        (merged / "opt/app/y").write_text("y")
        os.chmod(merged / "same", 0o700)
        (merged / "same/f").unlink()
        (merged / "same/f").mkdir()
        (merged / "same/f/g").write_text("g")
        assert changes_of(upper, high, low) == {
            "/opt": Kind.MODIFIED, "/opt/app": Kind.MODIFIED, "/opt/app/x": Kind.DELETED, "/opt/app/y": Kind.ADDED,
            "/same": Kind.MODIFIED, "/same/f": Kind.MODIFIED, "/same/f/g": Kind.ADDED,
        }
        packed = names_of(pack.layer(upper, lambda path: False))
    assert set(packed) == {
        "opt", "opt/app", "opt/app/.wh..wh..opq", "opt/app/y", "same", "same/f", "same/f/.wh..wh..opq", "same/f/g",
    }


def test_places_for_mounts_are_no_changes(tmp_path: Path) -> None:
    low = tmp_path / "low"
    (low / "bin").mkdir(parents=True)
    with overlay(tmp_path, low) as (merged, upper):
        for name in ("dev", "proc", "sys", "etc"):
            (merged / name).mkdir()
        for name in ("etc/hosts", "etc/resolv.conf"):
            (merged / name).touch()
        assert changes_of(upper, low) == {}
        view = open_stacked([low])
        made = places_made(upper, view.root)
        assert names_of(pack.layer(upper, made.__contains__)) == {}

        (merged / "etc/mine").write_text("1")
        (merged / "dev/x").write_text("1")
        assert changes_of(upper, low) == {
            "/dev": Kind.MODIFIED, "/dev/x": Kind.ADDED, "/etc": Kind.MODIFIED, "/etc/mine": Kind.ADDED,
        }
        made = places_made(upper, view.root)
        view.close()
        assert set(names_of(pack.layer(upper, made.__contains__))) == {"dev", "dev/x", "etc", "etc/mine"}


def test_a_deleted_file_becomes_a_whiteout(tmp_path: Path) -> None:
    high, low = layers(tmp_path)
    with overlay(tmp_path, high, low) as (merged, upper):
        (merged / "etc/a").unlink()
        packed = names_of(pack.layer(upper, lambda path: False))
    assert set(packed) == {"etc", "etc/.wh.a"} and packed["etc/.wh.a"].isreg() and packed["etc/.wh.a"].size == 0
