"""What only the leader does, started and stopped with leadership, and this manager's place among the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.states import NodeState
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.kv import KV

log = get_logger(__name__)


class Duty(Protocol):
    """Something that runs while this manager leads."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def wait(self) -> None:
        """Raises what ended it; never returns otherwise."""
        ...


class ElectedStore(StorePort, Protocol):
    async def wait_for_leadership(self) -> int: ...

    def subscribe_leadership(self, callback: Callable[[int | None], None]) -> Callable[[], None]: ...

    def step_down(self) -> None: ...


class Leading:
    """Runs the duties for as long as this manager leads, again and again."""

    def __init__(self, store: ElectedStore, prepare: Callable[[], Awaitable[object]], duties: tuple[Duty, ...]) -> None:
        """prepare: what must be there before the duties start (the cluster's record)."""
        self._store = store
        self._prepare = prepare
        self._duties = duties
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """For ever. Raises if a duty fails: the process ends, and whoever ensures it starts it anew."""
        unsubscribe = self._store.subscribe_leadership(self._told)
        try:
            while True:
                term = await self._store.wait_for_leadership()
                self._lost.clear()
                log.info("leading", term=term)
                try:
                    await self._lead()
                finally:
                    log.info("not leading any more", term=term)
        finally:
            unsubscribe()

    async def _lead(self) -> None:
        lost = asyncio.create_task(self._lost.wait(), name="leadership")
        watches: list[asyncio.Task[object]] = []
        started: list[Duty] = []
        try:
            await self._prepare()
            for duty in self._duties:
                started.append(duty)
                await duty.start()
            watches = [asyncio.create_task(_watch(duty), name="duty") for duty in started]
            done, _ = await asyncio.wait([lost, *watches], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except SwarmletError as err:
            if self._store.leader:
                raise
            log.info("leadership was lost on its first steps", reason=err)
        finally:
            for task in (lost, *watches):
                task.cancel()
            await asyncio.gather(lost, *watches, return_exceptions=True)
            for duty in reversed(started):
                await duty.stop()

    def _told(self, term: int | None) -> None:
        if term is None:
            self._lost.set()


async def _watch(duty: Duty) -> object:
    await duty.wait()
    return None


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
