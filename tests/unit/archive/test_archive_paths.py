"""What paths and names mean to `docker cp`."""

from __future__ import annotations

import base64
import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.archive.paths import PathStat, absolute, archive_name, clean, entry_path, go_mode

WORDS = st.sampled_from(["a", "b.c", ".", "..", "", "...", "x y", "..a", "é"])
PATHS = st.lists(WORDS, max_size=8).map("/".join)


@pytest.mark.parametrize(
    ("given_", "meant", "name"),
    [
        ("/", "/", "/"),
        (".", "/.", "."),
        ("/.", "/.", "."),
        ("./", "/./", "."),
        ("/./", "/./", "."),
        ("bar/root", "/bar/root", "root"),
        ("/bar/root/", "/bar/root/", "root"),
        ("/bar/root/.", "/bar/root/.", "."),
        ("//bar//quux/baz", "/bar/quux/baz", "baz"),
        ("../../etc", "/etc", "etc"),
        ("/a/../b/./c/", "/b/c/", "c"),
    ],
)
def test_the_end_of_a_path_is_kept_and_names_the_archive(given_: str, meant: str, name: str) -> None:
    assert absolute(given_) == meant
    assert archive_name(absolute(given_)) == name


@given(PATHS)
def test_an_absolute_path_never_has_a_step_upwards(path: str) -> None:
    for found in (absolute(path), clean(path)):
        assert found.startswith("/")
        assert ".." not in found.split("/")
    assert absolute(absolute(path)) == absolute(path)


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        absolute("/etc\0/x")


@given(st.one_of(PATHS.map(str.encode), st.binary(max_size=40)))
def test_an_entry_stays_below_its_folder_or_is_refused(name: bytes) -> None:
    try:
        path = entry_path(name, "/where")
    except InvalidArgument:
        return
    assert not path.startswith(b"/")
    assert b"\0" not in path
    assert not {b"..", b"."} & set(path.split(b"/"))


@pytest.mark.parametrize("name", [b"..", b"../x", b"a/../../x", b"./../x", b"a\0b", b"x" * 5000])
def test_an_entry_that_leads_out_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidArgument):
        entry_path(name, "/where")


@pytest.mark.parametrize(
    ("name", "path"),
    [(b".", b""), (b"./", b""), (b"/", b""), (b"a/", b"a"), (b"/etc/x", b"etc/x"), (b"/../x", b"x"), (b"a/../b", b"b")],
)
def test_an_entry_goes_where_its_cleaned_name_says(name: bytes, path: bytes) -> None:
    assert entry_path(name, "/where") == path


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFDIR | 0o755, 0o755 | 1 << 31),
        (stat.S_IFDIR | 0o1777, 0o777 | 1 << 31 | 1 << 20),
        (stat.S_IFLNK | 0o777, 0o777 | 1 << 27),
        (stat.S_IFCHR | 0o666, 0o666 | 1 << 26 | 1 << 21),
        (stat.S_IFBLK | 0o660, 0o660 | 1 << 26),
        (stat.S_IFIFO | 0o600, 0o600 | 1 << 25),
        (stat.S_IFSOCK | 0o600, 0o600 | 1 << 24),
        (stat.S_IFREG | 0o6755, 0o755 | 1 << 23 | 1 << 22),
    ],
)
def test_modes_are_shown_as_go_has_them(mode: int, shown: int) -> None:
    assert go_mode(mode) == shown


def test_the_header_is_base64_of_json() -> None:
    found = PathStat("lnk\udcff", 3, stat.S_IFLNK | 0o777, 1_700_000_000_000_000_000, "/etc/é")

    assert json.loads(base64.b64decode(found.header())) == {
        "name": "lnk\ufffd", "size": 3, "mode": 0o777 | 1 << 27, "mtime": "2023-11-14T22:13:20.000000000Z",
        "linkTarget": "/etc/é",
    }
