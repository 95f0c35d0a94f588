"""Removing a container, so that a crash at any point leaves either all of it or a removal to be continued.

The journal decides. A container with volumes is first marked `removing`, because deleting those cannot be
undone; dropping the record is what makes it gone. Its files go last, in the background: a folder without a
record is what start() looks for.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from msgspec.structs import replace

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.engine.bringup import Bringup
from swarmlet_agent.engine.container import WaitResult
from swarmlet_agent.engine.core import TABLE, Core, Unit

log = get_logger(__name__)


class Removal:
    """One per engine."""

    def __init__(self, core: Core, bringup: Bringup) -> None:
        self._core = core
        self._bringup = bringup

    async def destroy(self, unit: Unit, *, volumes: bool, clear_later: bool = False) -> None:
        """Remove a container that has no process; the caller holds its lock. volumes: its anonymous ones too.

        clear_later: only its network has to be free when this returns; mounts and cgroup follow in the background
        (`run --rm` is waited for, and nothing can come in the way of a container whose id is gone).
        """
        core, record = self._core, unit.record
        unit.removing = True
        try:
            uses_volumes = any(point.type == "volume" for point in record.mounts)
            if uses_volumes and record.state.status != "removing":
                record = replace(
                    record, removes_volumes=volumes, state=replace(record.state, status="removing", pid=0)
                )
                await core.save(unit, record)
            if unit.dirty and clear_later:
                await core.networks.detach(unit.id)
            elif unit.dirty:
                await self._bringup.down(unit)
            if uses_volumes:
                await core.volumes.release(unit.id, remove_anonymous=volumes)
            await core.journal.delete(TABLE, unit.id)
        except BaseException:  # cancelled, too: undo, and pass it on
            unit.removing = False
            raise
        core.forget(unit)
        for pending in tuple(unit.pending):
            pending.end()
        core.emit(record, "destroy")
        unit.waiters.removed(WaitResult(exit_code=record.state.exit_code))
        core.spawn(self._clear_and_delete(unit), f"delete {unit.id[:12]}")

    async def _clear_and_delete(self, unit: Unit) -> None:
        if unit.dirty:
            try:
                await self._bringup.down(unit, keep_network=True)
            except (SwarmletError, OSError) as err:
                log.error("leftovers of a removed container stay until the next start", container_id=unit.id, error=err)
                return
        await self.delete_files(unit.id)

    async def delete_files(self, ident: str) -> None:
        """The container's own layer and folder. What cannot be deleted now is tried again at the next start."""
        try:
            await self._core.supplies.clear(ident)
            await self._core.images.remove_rootfs(ident)
            await asyncio.to_thread(_delete_tree, self._core.settings.container_dir(ident))
        except (SwarmletError, OSError) as err:
            log.warning("files of a removed container stay behind until the next start", container_id=ident, error=err)

    async def sweep(self, ident: str) -> None:
        """Everything of a container that has no record: a creation or removal that a crash has cut."""
        core = self._core
        await core.runtime.delete(ident)
        await core.networks.detach(ident)
        await core.volumes.release(ident, remove_anonymous=True)
        await self.delete_files(ident)
        core.settings.marker(ident).unlink(missing_ok=True)


def _delete_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
