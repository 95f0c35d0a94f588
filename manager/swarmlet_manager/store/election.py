"""Who may write: one manager at a time, elected through a key in etcd.

The key is created with a lease and exists only as long as the lease is renewed. Its create revision is the
*term*: it grows from leader to leader, every write compares it (the fence), and agents refuse orders of a
lower one. The campaign's transaction also resets the write sequence, so a late duplicate of a former
leader's first write finds nothing it could match.

A leader that cannot renew stops on its own monotonic clock before the lease can have ended at etcd: counted
from when the renewal was *sent*. That makes a deposed leader quiet early; it is the fence that makes it safe.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from swarmlet.errors import SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.base import Record
from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.kv import KV, CreatedAt, KeyValue, LeaseGone, NoAnswer, PutKey, ReadKeys

log = get_logger(__name__)

#: A failed leader is replaced this long (and up to 0.5 s more) after its last renewal.
LEASE_TTL_S = 3
#: How long a leader tries to give its lease back when it stops.
RESIGN_TIMEOUT_S = 1.0


class Candidate(Record, frozen=True, kw_only=True):
    """Stored as the leader key's value: whom to ask. `addr` is "host:port" of its API for other managers."""

    id: str
    addr: str = ""


@dataclass(frozen=True, slots=True)
class Leader:
    """The manager that holds the key, as last seen."""

    id: str
    addr: str
    term: int


@dataclass(frozen=True, slots=True)
class Leadership:
    """Our own: the term, and the lease that keeps it."""

    term: int
    lease: int

    def sequence(self, number: int) -> bytes:
        """The write sequence's value after so many writes of this leadership."""
        return b"%x:%d" % (self.lease, number)


class Deposed(SwarmletError):
    """Another manager leads, or may: this one must not write any more. uncertain: its last write may have been made."""

    def __init__(self, reason: str, *, uncertain: bool = True) -> None:
        super().__init__(reason)
        self.uncertain = uncertain


class NotLeader(Unavailable):
    """Only the leader writes, and nothing was. `leader` says whom to ask, if one is known."""

    def __init__(self, leader: Leader | None) -> None:
        where = f"; the leader is {leader.id} at {leader.addr}" if leader else "; there is none at the moment"
        super().__init__(f"this manager is not the leader{where}")
        self.leader = leader


class Election:
    """Campaigns for as long as `run` runs; while elected, `reign` runs and is cancelled when that ends.

    `observe` is told of the leader key by whoever watches it; without, the key is looked at once per TTL.
    """

    def __init__(
        self,
        kv: KV,
        keys: Keys,
        candidate: Candidate,
        reign: Callable[[Leadership], Coroutine[Any, Any, None]],
        *,
        ttl_s: int = LEASE_TTL_S,
        rng: random.Random | None = None,
    ) -> None:
        self._kv = kv
        self._keys = keys
        self._candidate = candidate
        self._reign = reign
        self._ttl_s = ttl_s
        self._rng = rng or random.Random()
        self._vacant = asyncio.Event()
        self._deposed = asyncio.Event()
        self._deadline = 0.0
        self._leadership: Leadership | None = None
        self._moved = asyncio.Event()
        self.leader: Leader | None = None

    @property
    def leadership(self) -> Leadership | None:
        """Ours, while the clock says that nobody else can have been elected, and nothing else says that it is over."""
        over = self._deposed.is_set() or asyncio.get_running_loop().time() >= self._deadline
        return None if over else self._leadership

    def observe(self, kv: KeyValue | None, revision: int) -> None:
        """What the leader key holds at a revision of the store; None = it is gone. Sources may be late: that the key
        had gone before our own election made it anew says nothing of us."""
        if kv is None and self._leadership is not None and revision < self._leadership.term:
            return
        self._see(None if kv is None else _leader(kv))
        if self.leader is None:
            self._vacant.set()
        else:
            self._vacant.clear()
        if self._leadership is not None and (kv is None or kv.create_revision > self._leadership.term):
            self._deposed.set()

    def step_down(self) -> None:
        """End our leadership, if there is one; campaigning goes on."""
        self._deposed.set()

    def tell(self) -> None:
        """Wake who waits for another leader: there is one, or this one has become able to write."""
        self._moved.set()
        self._moved = asyncio.Event()

    def moved(self) -> Awaitable[object]:
        """Ends with the first `tell` after the call."""
        return self._moved.wait()

    def _see(self, leader: Leader | None) -> None:
        if leader != self.leader:
            self.leader = leader
            self.tell()

    async def run(self) -> None:
        """Until cancelled; a leader resigns first, and its successor is elected at once."""
        while True:
            try:
                won = await self._campaign()
            except (Unavailable, LeaseGone) as err:
                log.warning("campaign failed", reason=err)
                await asyncio.sleep(self._rng.uniform(0.1, 0.5))
                continue
            if won is not None:
                await self._hold(won)
                # Whatever ended it may last; others go first.
                await asyncio.sleep(self._rng.uniform(0, self._ttl_s / 4))
            else:
                await self._wait_for_vacancy()

    async def _campaign(self) -> Leadership | None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        lease = await self._kv.lease_grant(self._ttl_s)
        won: Leadership | None = None
        try:
            if loop.time() - sent > self._ttl_s / 4:
                # The request has waited somewhere: counted from then, little or nothing of the TTL may be left.
                sent = loop.time()
                await self._kv.lease_renew(lease)
            won = await self._try_key(lease)
        finally:
            if won is None:
                await self._give_back(lease)
        if won is not None:
            self._extend(sent)
        return won

    async def _try_key(self, lease: int) -> Leadership | None:
        leader = self._keys.leader
        result = await self._kv.txn(
            [CreatedAt(leader, 0)],
            [
                PutKey(leader, msgspec.json.encode(self._candidate), lease),
                PutKey(self._keys.wseq, Leadership(0, lease).sequence(0)),
            ],
            [ReadKeys(leader)],
        )
        if result.succeeded:
            term = result.revision
        elif result.reads[0] and result.reads[0][0].lease == lease:
            term = result.reads[0][0].create_revision  # it was ours already: the first answer was lost
        else:
            self.observe(result.reads[0][0] if result.reads[0] else None, result.revision)
            return None
        self._see(Leader(self._candidate.id, self._candidate.addr, term))
        self._vacant.clear()
        return Leadership(term, lease)

    async def _hold(self, leadership: Leadership) -> None:
        log.info("elected", term=leadership.term)
        self._leadership = leadership
        self._deposed.clear()
        reign = asyncio.create_task(self._reign(leadership), name="reign")
        deposed = asyncio.create_task(self._deposed.wait(), name="deposed")
        try:
            await self._renew(leadership, {reign, deposed})
        finally:
            self._leadership = None
            reign.cancel()
            deposed.cancel()
            await asyncio.gather(reign, deposed, return_exceptions=True)
            log.info("no longer leader", term=leadership.term, reason=_reason(reign))
            await self._give_back(leadership.lease)

    async def _renew(self, leadership: Leadership, ends: set[asyncio.Task[Any]]) -> None:
        """Returns when the leadership is over: lost, given up, or no longer certain."""
        loop = asyncio.get_running_loop()
        period = self._ttl_s / 4
        wait = period
        while True:
            await asyncio.wait(ends, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            sent = loop.time()
            if any(end.done() for end in ends) or sent >= self._deadline:
                return
            try:
                await self._kv.lease_renew(leadership.lease, timeout_s=min(period, self._deadline - sent))
            except LeaseGone:
                return
            except NoAnswer as err:
                log.warning("lease not renewed", term=leadership.term, reason=err)
                wait = 0.0 if loop.time() - sent > period / 2 else 0.1
            else:
                self._extend(sent)
                wait = max(0.0, sent + period - loop.time())

    def _extend(self, sent: float) -> None:
        # A sixth of the TTL for clocks that run unevenly and for a loop that is late.
        self._deadline = sent + self._ttl_s * 5 / 6

    async def _wait_for_vacancy(self) -> None:
        """Until the watch says that the key is gone, or the key itself does (it is read once per TTL)."""
        while True:
            try:
                async with asyncio.timeout(self._ttl_s):
                    await self._vacant.wait()
                return
            except TimeoutError:
                pass
            try:
                page = await self._kv.read(self._keys.leader)
            except Unavailable as err:
                log.warning("the leader cannot be looked up", reason=err)
            else:
                self.observe(page.kvs[0] if page.kvs else None, page.revision)

    async def _give_back(self, lease: int) -> None:
        try:
            async with asyncio.timeout(RESIGN_TIMEOUT_S):
                await self._kv.lease_revoke(lease, timeout_s=RESIGN_TIMEOUT_S)
        except (TimeoutError, SwarmletError) as err:
            log.debug("lease not revoked; it ends by itself", reason=err)


def _leader(kv: KeyValue) -> Leader:
    try:
        candidate = msgspec.json.decode(kv.value, type=Candidate)
    except msgspec.MsgspecError:
        return Leader("", "", kv.create_revision)  # not from us, but it does hold the key
    return Leader(candidate.id, candidate.addr, kv.create_revision)


def _reason(reign: asyncio.Task[None]) -> str:
    if reign.cancelled() or (error := reign.exception()) is None:
        return "lease lost or given up"
    return repr(error)
