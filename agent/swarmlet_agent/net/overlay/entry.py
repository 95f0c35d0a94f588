"""This node's part of the routing mesh: what a manager told last, kept in the journal, and made so in the kernel.

A host that comes up again publishes what it published, also while no manager can be reached. A port that something else
on this host has already is left to it, and said to be a problem of the node, until it is free.
"""

from __future__ import annotations

import asyncio

import msgspec

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.base import Record
from swarmlet.wire.networking import MeshInfo
from swarmlet_agent.journal import Write
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.overlay.published import addresses_of, mesh_state, places_of, without

log = get_logger(__name__)

#: Journal table and key.
TABLE, KEY = "mesh", "told"
PROBLEM = "mesh"


class _Kept(Record, frozen=True, kw_only=True):
    node_id: str
    mesh: MeshInfo
    #: What the way to other nodes carries, 0 = not known.
    mtu: int = 0


class MeshEntry:
    """One per agent. Calls may come side by side: they take turns."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._told: _Kept | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """After the networks' recovery, when the containers' ports are theirs again."""
        for _, value in self._ground.journal.items(TABLE):
            self._told = msgspec.msgpack.decode(value, type=_Kept)
            await self.refresh()

    async def told(self, mesh: MeshInfo | None, node_id: str, *, full: bool, mtu: int = 0) -> None:
        """What a manager says. None: as it was; with a full set: no port is published anywhere. mtu: as `_Kept`'s."""
        async with self._turn:
            before, ground = self._told, self._ground
            if mesh is not None:
                self._told = _Kept(node_id=node_id, mesh=mesh, mtu=mtu)
                await ground.journal.write(Write(TABLE, KEY, msgspec.msgpack.encode(self._told)))
                await self._ensure()
                await self._cut(addresses_of(before.mesh if before is not None else None) - addresses_of(mesh))
            elif full:
                self._told = None
                await ground.journal.write(Write(TABLE, KEY, None))
                await self._remove()

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

    async def _ensure(self) -> None:
        if self._told is None:
            return
        ground, told = self._ground, self._told.mesh
        troubles = ground.ports.take_for_mesh(places_of(told, ipv6=ground.kernel.has_ipv6))
        ground.set_problems(PROBLEM, tuple(sorted(set(troubles.values()))))
        subnets = tuple(sorted(part.subnet for network in ground.catalog.bridges() for part in network.families))
        state = mesh_state(without(told, troubles), self._told.node_id, subnets, self._told.mtu)
        if state is None:
            return
        try:
            await ground.run(ground.kernel.mesh.ensure, state)
        except (SwarmletError, OSError) as err:
            log.error("ports of services are not published on this node", reason=str(err))

    async def _cut(self, gone: set[str]) -> None:
        if not gone:
            return
        try:
            await self._ground.run(self._ground.kernel.mesh.cut, gone)
        except OSError as err:
            log.warning("UDP flows to tasks that have ended go on", reason=str(err))

    async def _remove(self) -> None:
        ground = self._ground
        ground.ports.take_for_mesh({})
        ground.set_problems(PROBLEM, ())
        try:
            await ground.run(ground.kernel.mesh.remove)
        except (SwarmletError, OSError) as err:
            log.error("the routing mesh cannot be removed from this node", reason=str(err))
