"""Parts of volumes, and what a bind's propagation needs of its source."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.engine import propagation
from swarmlet_agent.engine.subpaths import Subpaths

MOUNTINFO = """22 1 0:5 / / rw - ext4 /dev/a rw
23 22 0:6 / /srv/with\\040space rw,noatime shared:7 - ext4 /dev/b rw
24 22 0:7 / /srv/slave rw master:3 - ext4 /dev/c rw
"""


def volume(root: Path, subpath: str) -> MountPoint:
    return MountPoint(type="volume", destination="/x", source=str(root), subpath=subpath)


def test_a_subpath_is_found_inside_the_volume_only(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    (root / "a" / "b").mkdir(parents=True)
    os.symlink("/", root / "out")
    os.symlink("a", root / "inner")
    subpaths = Subpaths()
    try:
        assert subpaths.resolve([volume(root, "inner/b")]) == {"/x": str(root / "a" / "b")}
        with pytest.raises(InvalidArgument, match=r"cannot access path .*: no such file or directory"):
            subpaths.resolve([volume(root, "nothing")])
        escapes = f'path concatenation escapes the base directory, base: "{root}", subpath: "out/etc"'
        with pytest.raises(InvalidArgument, match=re.escape(escapes)):
            subpaths.resolve([volume(root, "out/etc")])
    finally:
        subpaths.close()


@pytest.mark.parametrize(
    ("source", "mode", "words"),
    [
        ("/srv/with space/x", "rshared", ""),
        ("/srv/with space", "slave", ""),
        ("/srv/slave/x", "rslave", ""),
        ("/srv/slave/x", "shared", "path /srv/slave/x is mounted on /srv/slave but it is not a shared mount"),
        ("/srv/other", "rslave", "path /srv/other is mounted on / but it is not a shared or slave mount"),
        ("/srv/other", "rprivate", ""),
    ],
)
def test_propagation_needs_a_source_that_can_do_it(
    source: str, mode: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(propagation, "_MOUNTINFO", tmp_path / "mountinfo")
    points = [MountPoint(type="bind", destination="/x", source=source, propagation=mode)]
    assert propagation.asks_propagation(points) == (mode != "rprivate")
    own = [replace(point, own_propagation=True) for point in points]
    if not words:
        assert propagation.fit_propagation(points) == tuple(points)
        assert propagation.fit_propagation(own) == tuple(own)
        return
    with pytest.raises(Internal) as err:
        propagation.fit_propagation(points)
    assert str(err.value) == words
    assert [point.propagation for point in propagation.fit_propagation(own)] == ["rprivate"]
