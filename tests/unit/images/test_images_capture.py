"""An upper folder becomes a layer: its tar is a proper one, the same each time, and nothing of it is lost."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.errors import Internal
from swarmlet_agent.images.capture import Stopped, file_pieces, forget_mount_points, parts, seal
from swarmlet_agent.images.recipe import replay

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and not name.startswith(".wh.") and len(name.encode()) < 200
)


def raw_tar(folder: Path) -> bytes:
    root = os.fsencode(folder)
    pieces = []
    for part in parts(root):
        pieces += [part] if isinstance(part, bytes) else [*file_pieces(root, part), bytes(-part.size % 512)]
    return b"".join(pieces) + bytes(1024)


def tar_of(folder: Path) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(raw_tar(folder)))


def test_files_folders_links_and_modes_are_in_the_tar(tmp_path: Path) -> None:
    upper = tmp_path / "diff"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/conf").write_text("a=b\n")
    os.chmod(upper / "etc/conf", 0o4751)
    os.symlink("conf", upper / "etc/link")
    os.link(upper / "etc/conf", upper / "etc/same")
    os.mkfifo(upper / "fifo")
    os.utime(upper / "etc/conf", ns=(0, 1_600_000_000_999_999_999))

    tar = tar_of(upper)

    assert tar.getnames() == ["etc", "fifo", "etc/conf", "etc/link", "etc/same"]
    conf = tar.getmember("etc/conf")
    assert (conf.mode, conf.size, conf.mtime) == (0o4751, 4, 1_600_000_000)
    assert tar.extractfile(conf).read() == b"a=b\n"  # type: ignore[union-attr]
    assert tar.getmember("etc/link").linkname == "conf"
    assert tar.getmember("etc/same").islnk() and tar.getmember("etc/same").linkname == "etc/conf"
    assert tar.getmember("fifo").isfifo()


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=2000), max_size=6), uid=st.integers(0, (1 << 31) - 1))
def test_any_names_contents_and_owners_come_back_from_recipe_and_tar(files: dict[str, bytes], uid: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "diff").mkdir()
        for name, content in files.items():
            (folder / "diff" / name).write_bytes(content)
            if os.geteuid() == 0:
                os.chown(folder / "diff" / name, uid, uid)

        sealed = seal(folder / "diff", folder / "recipe")

        if sealed is None:
            assert not files
            return
        raw = b"".join(replay(folder))
        assert raw == raw_tar(folder / "diff")
        assert len(raw) == sealed.tar_bytes and sealed.size_bytes == sum(map(len, files.values()))
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert found == files


@pytest.mark.kernel
def test_whiteouts_and_opaque_folders_take_the_form_of_the_image_spec(tmp_path: Path) -> None:
    upper = tmp_path / "diff"
    (upper / "a").mkdir(parents=True)
    os.mknod(upper / "a/gone", 0o020000, 0)
    os.setxattr(upper / "a", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "a", "user.kept", b"\xff\0")

    tar = tar_of(upper)

    assert tar.getnames() == ["a", "a/.wh..wh..opq", "a/.wh.gone"]
    assert tar.getmember("a").pax_headers["SCHILY.xattr.user.kept"].encode("utf-8", "surrogateescape") == b"\xff\0"
    assert all(member.isreg() and not member.size for member in tar if ".wh." in member.name)


def test_a_reserved_name_is_refused_and_an_empty_folder_is_no_layer(tmp_path: Path) -> None:
    (tmp_path / "diff").mkdir()
    assert seal(tmp_path / "diff", tmp_path / "recipe") is None
    (tmp_path / "diff/.wh.x").touch()
    with pytest.raises(Internal, match="reserved name"):
        seal(tmp_path / "diff", tmp_path / "other")


def test_sealing_stops_when_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "diff").mkdir()
    (tmp_path / "diff/x").write_bytes(b"x")
    with pytest.raises(Stopped):
        seal(tmp_path / "diff", tmp_path / "recipe", lambda: True)


def test_mount_points_that_the_runtime_made_are_no_change(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "srv").mkdir(parents=True)
    for path in ("proc", "etc", "srv/data", "kept/below"):
        (upper / path).mkdir(parents=True)
    (upper / "etc/hosts").touch()
    (upper / "etc/hostname").touch()
    (upper / "kept/below/file").write_text("x")

    targets = ["/proc", "/etc/hosts", "/etc/hostname", "/srv/data", "/kept/below", "/none/x"]
    forget_mount_points(upper, [lower], targets)

    left = sorted(str(path.relative_to(upper)) for path in upper.rglob("*"))
    assert left == ["kept", "kept/below", "kept/below/file"]


def test_a_folder_on_the_way_that_was_changed_stays(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "srv").mkdir(parents=True)
    (upper / "srv/data").mkdir(parents=True)
    os.chmod(upper / "srv", 0o700)

    forget_mount_points(upper, [lower], ["/srv/data"])

    assert [path.name for path in upper.rglob("*")] == ["srv"]
