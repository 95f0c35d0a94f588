"""A store that starts while the last one's unpacking is just ending."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from swarmlet_agent.images import layers


class Busy:
    """Removing a folder, where something is made in it each time but the last."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, path: Path) -> None:
        if self.left:
            self.left -= 1
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))


def test_what_is_still_written_for_a_moment_is_removed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(3)
    monkeypatch.setattr(layers, "remove_tree", busy)
    monkeypatch.setattr(layers, "REMOVAL_PAUSE_S", 0.0)
    layers._remove_for_good(tmp_path)
    assert busy.left == 0


def test_it_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "remove_tree", Busy(10**6))
    monkeypatch.setattr(layers, "REMOVAL_PAUSE_S", 0.0)
    with pytest.raises(OSError, match="not empty"):
        layers._remove_for_good(tmp_path)
