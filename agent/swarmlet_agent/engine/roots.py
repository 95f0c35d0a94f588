"""Lending a container's root to who works with its files (`docker cp`, `diff`, `export`, `commit`).

A container that runs goes on meanwhile. One that does not is mounted, and can neither start nor be removed until the
root is given back: two mounts of the same changes would spoil them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from swarmlet.errors import Conflict
from swarmlet.model.common import Driver
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.core import Core, Unit

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LentRoot:
    """The container as it was, and where its root is mounted."""

    record: Container
    path: Path


class Roots:
    """One per engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @asynccontextmanager
    async def lend(self, ref: str, verb: str) -> AsyncIterator[LentRoot]:
        """The root while the block runs. verb: what is done, for a refusal. NotFound; Conflict while it is removed."""
        unit = self._core.find(ref)
        await unit.lock.acquire()
        held = True
        try:
            self._check(unit, verb)
            if unit.record.has_process:
                path = await self._core.root_of(unit.record)
                unit.lock.release()
                held = False
                yield LentRoot(unit.record, path)
            else:
                async with self._mounted(unit) as path:
                    yield LentRoot(unit.record, path)
        finally:
            if held:
                unit.lock.release()

    @asynccontextmanager
    async def _mounted(self, unit: Unit) -> AsyncIterator[Path]:
        unmark = not unit.dirty
        try:
            yield await self._whole(self._mount(unit), f"mount {unit.id[:12]}")
        finally:
            await self._whole(self._unmount(unit, unmark=unmark), f"unmount {unit.id[:12]}")

    async def _whole(self, work: Coroutine[Any, Any, Result], name: str) -> Result:
        """To its end even if the caller is cancelled meanwhile."""
        task = self._core.spawn(work, name)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _check(self, unit: Unit, verb: str) -> None:
        if unit.id not in self._core.units or unit.removing or unit.record.state.status == "removing":
            raise Conflict(f"You cannot {verb} container {unit.id} which is being removed")
        if unit.record.state.status == "dead":
            raise Conflict(f"You cannot {verb} container {unit.id} which is Dead")

    async def _mount(self, unit: Unit) -> Path:
        """Marked first, so that what an agent that is killed leaves mounted is found by the next."""
        core = self._core
        if not unit.dirty:
            core.mark(unit)
        for point in unit.record.mounts:
            if point.type == "volume":  # its folder may be a mount of its own
                await core.volumes.ensure(point.name, Driver(name=point.driver), {})
            elif point.type == "image":
                await core.mount_image(unit.record, point)
        return await core.root_of(unit.record)

    async def _unmount(self, unit: Unit, *, unmark: bool) -> None:
        await self._core.images.unmount_rootfs(unit.id)
        if unmark:
            self._core.unmark(unit)
