"""Terms after a restore: whatever was elected after the backup, agents follow the leader of the restored state."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.control_world import start_manager, until

from swarmlet.config import RESTORED
from swarmlet.errors import Internal
from swarmlet_manager.restored import note_restore
from swarmlet_manager.store.memory import MemoryEtcd


async def test_terms_are_beyond_the_restore_for_good(tmp_path: Path) -> None:
    file = tmp_path / RESTORED
    file.write_text("1000000")
    etcd = MemoryEtcd()
    manager = await start_manager(etcd, folder=tmp_path)
    try:
        await until(lambda: not file.exists())
        first = manager.dispatcher.welcome().term
        assert first > 1_000_000
    finally:
        await manager.stop()
    manager = await start_manager(etcd, folder=tmp_path)
    try:
        assert manager.dispatcher.welcome().term > first
    finally:
        await manager.stop()


async def test_an_older_restore_takes_nothing_back(tmp_path: Path) -> None:
    """A backup that was made between a restore and its first leader has the mark of that restore in it."""
    file = tmp_path / RESTORED
    file.write_text("1000000")
    manager = await start_manager(MemoryEtcd(), folder=tmp_path)
    try:
        await until(lambda: not file.exists())
        file.write_text("999999")
        await note_restore(manager.store, tmp_path)
        assert not file.exists() and manager.dispatcher.welcome().term > 1_000_000
    finally:
        await manager.stop()


async def test_a_mark_that_no_restore_wrote_is_named(tmp_path: Path) -> None:
    manager = await start_manager(MemoryEtcd())
    try:
        (tmp_path / RESTORED).write_text("yesterday")
        with pytest.raises(Internal, match="is no moment of a restore"):
            await note_restore(manager.store, tmp_path)
    finally:
        await manager.stop()
