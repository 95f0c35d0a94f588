"""A volume's size is that of its files."""

from __future__ import annotations

import os
from pathlib import Path

from swarmlet_agent.volumes.copying import size_of


def test_files_count_by_their_bytes_once_and_folders_do_not(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/one").write_bytes(b"123")
    os.link(tmp_path / "below/one", tmp_path / "again")
    (tmp_path / "two").write_bytes(b"4567")

    assert size_of(tmp_path) == 7
