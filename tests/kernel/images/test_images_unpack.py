"""Layers on a real file system: whiteouts, links, attributes, and the walls around them."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from fakes.images_made import digest, files, folder, hardlink, member, symlink, tar_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet_agent.images.feed import BadLayer
from swarmlet_agent.images.recipe import replay
from swarmlet_agent.images.unpack import Limits, Unpacked, unpack_layer

pytestmark = pytest.mark.kernel


def unpack(work: Path, data: bytes, *, expected: str | None = None, limits: Limits | None = None) -> Unpacked:
    (work / "diff").mkdir(parents=True)
    with (work / "recipe").open("xb") as recipe:
        return unpack_layer(
            io.BytesIO(data),
            len(data),
            os.fsencode(work / "diff"),
            os.fsencode(work / "kept"),
            recipe,
            label="L",
            expected=expected,
            limits=limits or Limits(),
        )


def rebuilt(work: Path) -> bytes:
    return b"".join(replay(work))


def everything(root: Path) -> dict[str, str]:
    """Relative path -> kind and content of all that is there."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        if path.is_symlink():
            shown = f"-> {os.readlink(path)}"
        elif path.is_dir():
            shown = "dir"
        elif path.is_file():
            shown = path.read_bytes().decode("latin-1")
        else:
            shown = stat.filemode(info.st_mode)
        found[str(path.relative_to(root))] = shown
    return found


def test_files_folders_links_and_their_attributes_arrive(tmp_path: Path) -> None:
    layer = tar_of(
        [
            folder("./", 0o750, uid=3),
            folder("tmp", 0o1777, mtime=77),
            member("tmp/a", b"A", uid=5, gid=6, mode=0o4755, mtime=99),
            symlink("link", "/etc/passwd"),
            hardlink("hard", "tmp/a"),
            member("fifo", type=tarfile.FIFOTYPE),
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        ]
    )

    done = unpack(tmp_path, layer, expected=digest(layer))

    root = tmp_path / "diff"
    assert stat.S_IMODE(root.stat().st_mode) == 0o750 and root.stat().st_uid == 3
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777 and (root / "tmp").stat().st_mtime == 77
    file = (root / "tmp/a").stat()
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode), file.st_mtime) == (5, 6, 0o4755, 99)
    assert os.readlink(root / "link") == "/etc/passwd"
    assert (root / "hard").stat().st_ino == file.st_ino
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert done.size_bytes == 1 + len("/etc/passwd")  # as Docker counts
    assert rebuilt(tmp_path) == layer


def test_whiteouts_become_what_overlayfs_understands(tmp_path: Path) -> None:
    layer = tar_of(
        [
            folder("etc"),
            member("etc/.wh.gone"),
            member("var/.wh..wh..opq"),
            member(".wh..wh.plnk", b"x"),
            member("etc/.wh.own"),
            member("etc/own", b"mine"),
            member("etc/first", b"1"),
            member("etc/.wh.first"),
        ]
    )

    unpack(tmp_path, layer)

    gone = (tmp_path / "diff/etc/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    assert os.getxattr(tmp_path / "diff/var", "trusted.overlay.opaque") == b"y"
    assert not (tmp_path / "diff/.wh..wh.plnk").exists()
    assert (tmp_path / "diff/etc/own").read_bytes() == b"mine"
    assert (tmp_path / "diff/etc/first").read_bytes() == b"1"
    assert rebuilt(tmp_path) == layer


def test_extended_attributes_arrive_but_not_those_that_steer_overlayfs(tmp_path: Path) -> None:
    info, data = member("f", b"x")
    info.pax_headers = {"SCHILY.xattr.user.colour": "red", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    layer = tar_of([(info, data)])

    unpack(tmp_path, layer)

    names = os.listxattr(tmp_path / "diff/f")
    assert "user.colour" in names and not [name for name in names if name.startswith("trusted.overlay")]


def test_a_sparse_file_keeps_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
        file.truncate(8 << 20)
    for number, form in enumerate(("gnu", "pax")):
        archive = tmp_path / f"{form}.tar"
        assert (
            os.spawnlp(
                os.P_WAIT,
                "tar",
                "tar",
                "--sparse",
                f"--format={form}",
                "-C",
                str(tmp_path),
                "-cf",
                str(archive),
                "sparse",
            )
            == 0
        )
        work = tmp_path / str(number)

        unpack(work, archive.read_bytes())

        assert (work / "diff/sparse").read_bytes() == source.read_bytes()
        assert (work / "diff/sparse").stat().st_blocks * 512 < 1 << 20
        assert rebuilt(work) == archive.read_bytes()


_ESCAPES = {
    "absolute dot dot": [member("/../swarmlet-escape", b"x")],
    "dot dot": [member("../escape", b"x")],
    "dot dot inside": [folder("a"), member("a/../../escape", b"x")],
    "absolute link": [symlink("out", "/tmp"), member("out/escape", b"x")],
    "absolute link by dot dot": [symlink("out", "/../tmp"), member("out/escape", b"x")],
    "relative link": [symlink("out", "../.."), member("out/escape", b"x")],
    "link to a link": [symlink("a", "b"), symlink("b", ".."), member("a/escape", b"x")],
    "folder through a link": [symlink("out", "/tmp"), folder("out/escape")],
    "link through a link": [symlink("out", ".."), symlink("out/escape", "/etc")],
    "hard link by dot dot": [hardlink("mine", "../../../etc/passwd")],
    "hard link to an absolute name": [hardlink("mine", "/etc/passwd")],
    "hard link behind a link": [symlink("out", "/etc"), hardlink("mine", "out/passwd")],
    "whiteout through a link": [symlink("out", ".."), member("out/.wh.diff")],
    "whiteout of dot dot": [member(".wh...")],
    "opaque through a link": [symlink("out", ".."), member("out/.wh..wh..opq")],
    "endless link": [symlink("a", "a"), member("a/b", b"x")],
    "links that double": [
        symlink("l0", "."),
        *(symlink(f"l{n}", f"l{n - 1}/l{n - 1}") for n in range(1, 40)),
        member("l39/x", b""),
    ],
    "device through a link": [symlink("out", ".."), member("out/dev", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
}


@pytest.mark.parametrize("members", _ESCAPES.values(), ids=_ESCAPES.keys())
def test_a_layer_that_leaves_its_root_is_refused_and_writes_nothing_outside(members: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    work = outside / "layer"

    with pytest.raises(BadLayer, match=r"^layer L "):
        unpack(work, tar_of(members))

    assert [path.name for path in outside.iterdir()] == ["layer"]
    assert {path.name for path in work.iterdir()} <= {"diff", "recipe", "kept"}
    assert not Path("/swarmlet-escape").exists() and not Path("/tmp/escape").exists()


def test_a_link_inside_the_layer_may_be_followed(tmp_path: Path) -> None:
    layer = tar_of([folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), member("lib/x", b"x")])

    unpack(tmp_path, layer)

    assert (tmp_path / "diff/usr/lib/x").read_bytes() == b"x"
    assert rebuilt(tmp_path) == layer


def test_absolute_names_and_links_begin_at_the_layers_root(tmp_path: Path) -> None:
    layer = tar_of([
        folder("/etc"), member("/etc/swarmlet-absolute", b"x"), hardlink("/again", "/etc/swarmlet-absolute"),
        symlink("conf", "/etc"), member("conf/through", b"y"), member("etc/../below", b"z"), member("//.wh.gone"),
    ])  # fmt: skip

    unpack(tmp_path, layer)

    root = tmp_path / "diff"
    assert {path.name for path in root.iterdir()} == {"etc", "again", "conf", "below", "gone"}
    assert (root / "again").read_bytes() == b"x" and (root / "etc/through").read_bytes() == b"y"
    assert not Path("/etc/swarmlet-absolute").exists() and not Path("/etc/through").exists()
    assert rebuilt(tmp_path) == layer


def test_a_folder_may_be_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    layer = tar_of([
        folder("d"), member("d/x", b"first"), folder("d/e"), symlink("d/l", "e"), member("d/e/y", b"deep"),
        symlink("d", "elsewhere"), folder("elsewhere"), member("d/x", b"through"), member("d", b"a file"),
    ])  # fmt: skip

    unpack(tmp_path, layer)

    assert everything(tmp_path / "diff") == {"d": "a file", "elsewhere": "dir", "elsewhere/x": "through"}
    assert rebuilt(tmp_path) == layer
    many = [entry for _ in range(101) for entry in (folder("d"), member("d", b""))]
    with pytest.raises(BadLayer, match="replaces too many folders"):
        unpack(tmp_path / "many", tar_of(many))


def test_a_later_entry_replaces_an_earlier_one_and_the_tar_can_still_be_made_again(tmp_path: Path) -> None:
    layer = tar_of(
        [
            member("f", b"first"),
            member("f", b"second"),
            symlink("f", "elsewhere"),
            member("f", b"third"),
            member("g", b"g"),
            hardlink("h", "g"),
            member("g", b"new g"),
        ]
    )

    unpack(tmp_path, layer)

    assert everything(tmp_path / "diff") == {"f": "third", "g": "new g", "h": "g"}
    assert rebuilt(tmp_path) == layer


@pytest.mark.parametrize("cut", [1, 511, 513, 700, 1400])
def test_a_truncated_layer_is_refused(tmp_path: Path, cut: int) -> None:
    layer = tar_of([member("a", b"a" * 600), member("b", b"b" * 600)], tarfile.GNU_FORMAT)

    with pytest.raises(BadLayer):
        unpack(tmp_path / "plain", layer[:cut], expected=digest(layer))
    with pytest.raises(BadLayer):
        packed = gzip.compress(layer)
        unpack(tmp_path / "gzip", packed[: min(cut, len(packed) - 1)], expected=digest(layer))


def test_noise_and_a_changed_byte_are_refused(tmp_path: Path) -> None:
    layer = files({"a": b"content"})
    broken = bytearray(layer)
    broken[0] ^= 1
    swapped = layer.replace(b"content", b"CONTENT")

    for number, (data, words) in enumerate(
        [
            (b"no tar at all" * 100, "invalid tar header"),
            (bytes(broken), "invalid tar header"),
            (swapped, "failed verification"),
        ]
    ):
        with pytest.raises(BadLayer, match=words):
            unpack(tmp_path / str(number), data, expected=digest(layer))


def test_bombs_are_stopped(tmp_path: Path) -> None:
    bomb = tar_of([member("zeros", bytes(64 << 20))])
    limits = Limits(tar_bytes=1 << 20, entries=10, reserve_bytes=0)
    for number, packed in enumerate([gzip.compress(bomb), zstandard.compress(bomb)]):
        with pytest.raises(BadLayer, match="more than"):
            unpack(tmp_path / str(number), packed, limits=limits)
    many = tar_of([member(str(number)) for number in range(11)])
    with pytest.raises(BadLayer, match="more than 10 entries"):
        unpack(tmp_path / "many", many, limits=limits)
    deep = tar_of([member("/".join("d" * 900), b"")])
    with pytest.raises(BadLayer, match="impossible"):
        unpack(tmp_path / "deep", deep, limits=limits)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "full", bomb, limits=Limits(reserve_bytes=1 << 60))


_names = st.lists(
    st.sampled_from(["a", "b", "ü", "c" * 120, "..", ".", "", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4
).map("/".join)
_members = st.lists(
    st.one_of(
        st.builds(
            member,
            _names,
            st.binary(max_size=700),
            mode=st.sampled_from([0o644, 0o4711]),
            uid=st.sampled_from([0, 7, 3 << 21]),
        ),
        st.builds(folder, _names),
        st.builds(symlink, _names, _names),
        st.builds(hardlink, _names, _names),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=_members, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), number=st.integers())
def test_any_layer_is_either_refused_or_made_again_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, members: Any, form: int, number: int
) -> None:
    work = tmp_path_factory.mktemp("layer")
    canary = work / "canary"
    canary.write_text("alive")
    layer = tar_of(members, form)

    try:
        unpack(work / "inner" / "layer", layer)
    except BadLayer:
        pass
    else:
        assert rebuilt(work / "inner" / "layer") == layer

    assert {path.name for path in work.iterdir()} == {"canary", "inner"}
    assert {path.name for path in (work / "inner").iterdir()} == {"layer"}
    assert {path.name for path in (work / "inner/layer").iterdir()} <= {"diff", "recipe", "kept"}
