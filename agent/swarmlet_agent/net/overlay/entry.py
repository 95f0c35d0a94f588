"""This node's part of the routing mesh: what a manager told last, kept in the journal, and made so in the kernel.

A host that comes up again publishes what it published, also while no manager can be reached. A port that something else
on this host has already is left to it, and said to be a problem of the node, until it is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.loops import Backoff
from swarmlet.wire.networking import MeshNews
from swarmlet_agent.journal import Write
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.overlay.meshtold import MeshHead, MeshTold, Rows
from swarmlet_agent.net.overlay.published import mesh_state, places_of, without

log = get_logger(__name__)

#: Journal table.
TABLE = "mesh"
#: Ports that others have; and what the kernel refused.
PROBLEM, KERNEL_PROBLEM = "mesh", "mesh in the kernel"
#: Pauses between attempts to program what the kernel refused.
RETRY_FLOOR_S, RETRY_BASE_S, RETRY_LIMIT_S = 0.5, 1.0, 30.0


class MeshEntry:
    """One per agent. Calls may come side by side: they take turns."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._told = MeshTold()
        self._turn = asyncio.Lock()
        self._backoff: Backoff[str] = Backoff(RETRY_BASE_S, RETRY_LIMIT_S, floor=RETRY_FLOOR_S)
        self._failed = asyncio.Event()
        self._unwritten: Rows = {}

    async def start(self) -> None:
        """After the networks' recovery, when the containers' ports are theirs again."""
        await self._write(self._told.restore(self._ground.journal.items(TABLE)))
        await self.refresh()

    async def told(self, news: MeshNews | None, node_id: str, *, full: bool, mtu: int = 0) -> None:
        """What a manager says. None: as it was; with a full set: no port is published anywhere. mtu: as `MeshHead`'s.

        Unavailable if it does not go on from what was told before.
        """
        async with self._turn:
            if news is not None:
                head = MeshHead(node_id=node_id, mtu=mtu, data_path_port=news.data_path_port)
                rows, silent = self._told.take(news, head)
                await self._write(rows)
                await self._ensure()
                await self._cut(silent)
            elif full:
                await self._write(self._told.clear())
                await self._ensure(removed=True)

    async def refresh(self) -> None:
        """What this host has of subnets and free ports may be another thing now."""
        async with self._turn:
            await self._ensure()

    async def run(self) -> None:
        """Take ports that come free, for ever."""
        while True:
            await self._ground.ports.freed.wait()
            self._ground.ports.freed.clear()
            await self.refresh()

    async def mend(self) -> None:
        """What the kernel refused is tried again, with growing pauses, for ever."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            await asyncio.sleep(self._backoff.next(TABLE))
            async with self._turn:
                await self._ensure(removed=self._told.head is None)

    async def _write(self, rows: Rows) -> None:
        """With those that the disk refused before."""
        self._unwritten |= rows
        if self._unwritten:
            await self._ground.journal.write(*(Write(TABLE, key, value) for key, value in self._unwritten.items()))
            self._unwritten = {}

    async def _ensure(self, *, removed: bool = False) -> None:
        """removed: nothing is left of it, also in the kernel."""
        ground, told = self._ground, self._told
        if told.head is None:
            if removed:
                ground.ports.take_for_mesh({})
                ground.set_problems(PROBLEM, ())
                await self._try("the routing mesh cannot be removed from this node", ground.kernel.mesh.remove)
            return
        troubles = ground.ports.take_for_mesh(places_of(told.ports.values(), ipv6=ground.kernel.has_ipv6))
        ground.set_problems(PROBLEM, tuple(sorted(set(troubles.values()))))
        state = mesh_state(
            told.nodes.values(), without(told.published, troubles), told.head.node_id,
            tuple(sorted(part.subnet for network in ground.catalog.bridges() for part in network.families)),
            mtu=told.head.mtu, port=told.head.data_path_port,
        )
        if state is not None:
            what = "ports of services are not published on this node as they should be"
            await self._try(what, lambda: ground.kernel.mesh.ensure(state))

    async def _try(self, failure: str, work: Callable[[], None]) -> None:
        try:
            await self._ground.run(work)
        except (SwarmletError, OSError) as err:
            self._ground.set_problems(KERNEL_PROBLEM, (f"{failure}: {err}; this is tried again",))
            self._failed.set()
            return
        self._backoff.forget(TABLE)
        self._ground.set_problems(KERNEL_PROBLEM, ())

    async def _cut(self, gone: set[str]) -> None:
        if not gone:
            return
        try:
            await self._ground.run(self._ground.kernel.mesh.cut, gone)
        except OSError as err:
            log.warning("UDP flows to tasks that have ended go on", reason=str(err))
