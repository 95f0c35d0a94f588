"""What only the leader does, started and stopped with leadership, and this manager's place among the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.loops import Group
from swarmlet.model.states import NodeState
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.state import Change
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.kv import KV

log = get_logger(__name__)


class Duty(Protocol):
    """A part of the manager that works only while this manager leads. `begin` and `end` are called in turn; neither
    waits, and between an `end` and the next `begin` nothing of the duty runs."""

    def begin(self, loops: Group) -> None:
        """This manager leads: forget what an earlier time has left, and start what runs in this group, which ends it.
        A loop of the group that fails ends the process."""
        ...

    def changed(self, changes: Sequence[Change]) -> None:
        """What the store has just applied. Told from `begin` until the loops are about to be ended."""
        ...

    def end(self) -> None:
        """This manager does not lead any more, and the loops have ended: tell those who still wait for something."""
        ...


class ElectedStore(StorePort, Protocol):
    async def wait_for_leadership(self) -> int: ...

    def subscribe_leadership(self, callback: Callable[[int | None], None]) -> Callable[[], None]: ...


class Leading:
    """The duties begin when this manager becomes the leader and end when it is not any more, again and again."""

    def __init__(self, store: ElectedStore, prepare: Callable[[], Awaitable[object]], duties: Sequence[Duty]) -> None:
        """prepare: what must be there before the duties begin (the cluster's record). It is not interrupted when the
        leadership is lost meanwhile: its next write fails. duties: they begin in this order and end in the reverse."""
        self._store = store
        self._prepare = prepare
        self._duties = tuple(duties)
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """For ever; if it is cancelled, the duties have ended when it has. Raises if preparing or a loop of a duty
        fails: the process ends, and whoever ensures it starts it anew."""
        unsubscribe = self._store.subscribe_leadership(self._told)
        try:
            while True:
                term = await self._store.wait_for_leadership()
                self._lost.clear()
                log.info("leading", term=term)
                try:
                    await self._lead()
                except SwarmletError as err:
                    if self._store.leader and not self._lost.is_set():
                        raise
                    log.info("leadership was lost on its first steps", reason=err)
                finally:
                    log.info("not leading any more", term=term)
        finally:
            unsubscribe()

    async def _lead(self) -> None:
        await self._prepare()
        if self._lost.is_set():
            return
        loops = Group()
        with contextlib.ExitStack() as ends:
            try:
                with contextlib.ExitStack() as told:
                    for duty in self._duties:
                        ends.callback(duty.end)
                        duty.begin(loops)
                        told.callback(self._store.subscribe(duty.changed))
                    await self._until_lost(loops)
            finally:
                await loops.close()

    async def _until_lost(self, loops: Group) -> None:
        """Raises what ended one of the loops."""
        lost = asyncio.create_task(self._lost.wait(), name="leadership")
        failed = asyncio.create_task(loops.wait(), name="duties")
        try:
            await asyncio.wait([lost, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
        finally:
            for task in (lost, failed):
                task.cancel()
            await asyncio.gather(lost, failed, return_exceptions=True)

    def _told(self, term: int | None) -> None:
        if term is None:
            self._lost.set()


async def retire_predecessor(kv: KV, keys: Keys, own_id: str) -> bool:
    """Give back the lease of an earlier process of this very manager, so that nobody waits for it to run out.

    Call it while holding the lock that lets only one process of this id run: the holder of the key is dead then.
    """
    found = await kv.read(keys.leader)
    for entry in found.kvs:
        try:
            holder = msgspec.json.decode(entry.value, type=Candidate)
        except msgspec.DecodeError:  # not written by this version: its lease ends by itself
            return False
        if holder.id == own_id and entry.lease:
            await kv.lease_revoke(entry.lease)
            log.info("the leadership of an earlier process was given back", term=entry.create_revision)
            return True
    return False


class Place:
    """Where this manager is and who leads, as the API shows it: by the nodes that say they run a manager."""

    def __init__(self, store: StorePort, own_addr: str, leader_addr: Callable[[], str]) -> None:
        self._store = store
        self._own_addr = own_addr
        self._leader_addr = leader_addr

    @property
    def node_id(self) -> str:
        """This host's node, "" before it has joined its own cluster."""
        return self._node_at(self._own_addr)

    @property
    def leader_node_id(self) -> str:
        return self._node_at(self._leader_addr())

    def _node_at(self, addr: str) -> str:
        if not addr:
            return ""
        there = [node for node in self._store.state.nodes.values() if node.manager_addr == addr]
        # A host that has left and joined again has two: the one that is there now is meant.
        return max(there, key=lambda node: (node.state is NodeState.READY, node.created_at)).id if there else ""
