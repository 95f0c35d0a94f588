"""Group commit: the leader's one line of writes to etcd.

One transaction is in flight; what callers hand in meanwhile rides in the next. Each transaction compares the
leader key's create revision (so a deposed leader writes nothing) and the write sequence (so that sending the
same transaction again, after an answer was lost, writes nothing twice), and moves the sequence on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from swarmlet.errors import InvalidArgument, SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet_manager.state import Change, Op, StoredRecord
from swarmlet_manager.store.draft import Draft, Drafting
from swarmlet_manager.store.election import Deposed, Leadership, NotLeader
from swarmlet_manager.store.kv import KV, CreatedAt, HasValue, NoAnswer, NoSpace, PutKey, ReadKeys, TooLarge
from swarmlet_manager.store.mirror import Mirror

log = get_logger(__name__)

#: One attempt of a transaction, all endpoints tried. Callers wait by their own deadline.
ATTEMPT_S = 3.0

Records = tuple[StoredRecord, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one transaction may hold. The defaults fit any etcd; the embedded one is started with more.

    keys: etcd's --max-txn-ops less the sequence key. hard_bytes: its --max-request-bytes less overhead.
    ops: when a batch has so many, later callers wait for the next: a transaction stays near 1 MB.
    """

    keys: int = 120
    hard_bytes: int = 1_400_000
    ops: int = 4096


@dataclass(frozen=True, slots=True)
class _Caller:
    ops: tuple[Op, ...]
    done: asyncio.Future[Records]


class Writer:
    """Lives as long as one leadership. `run` is the pump; `close` tells everyone still waiting."""

    def __init__(
        self,
        kv: KV,
        mirror: Mirror,
        leadership: Leadership,
        limits: Limits,
        applied: Callable[[Sequence[Change]], None],
    ) -> None:
        self._kv = kv
        self._mirror = mirror
        self._leadership = leadership
        self._limits = limits
        self._applied = applied
        self._number = 0
        # Not bounded by itself: every entry is a caller that waits, and gives up after its timeout.
        self._queue: deque[_Caller] = deque()
        self._in_flight: Sequence[_Caller] = ()
        self._work = asyncio.Event()
        self._closed = False
        #: Put in front of the first transaction (the schema number of a new store).
        self.first: tuple[PutKey, ...] = ()

    async def commit(self, ops: Sequence[Op], timeout_s: float) -> Records:
        if self._closed:
            raise NotLeader(None)
        caller = _Caller(tuple(ops), asyncio.get_running_loop().create_future())
        self._queue.append(caller)
        self._work.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await caller.done
        except TimeoutError:
            raise Unavailable(
                f"etcd has not confirmed the write within {timeout_s:g} s; it may still be made"
            ) from None

    async def run(self) -> None:
        """Until cancelled, or Deposed."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                await self._round()

    async def tick(self) -> int:
        """A write of nothing but the sequence, ahead of whatever waits; returns its revision. It gives
        followers a recent revision to resume from. Raises as commit does."""
        await self.commit((), ATTEMPT_S)
        return self._mirror.state.revision

    def close(self) -> None:
        self._closed = True
        for caller in self._in_flight:
            _fail(caller, Unavailable("this manager has lost the leadership; the write may or may not have been made"))
        for caller in self._queue:
            _fail(caller, NotLeader(None))
        self._queue.clear()

    async def _round(self) -> None:
        callers, draft = self._gather()
        if not callers:
            return
        self._in_flight = callers
        try:
            revision = await self._send(draft)
        except (TooLarge, NoSpace) as err:
            for caller in callers:
                _fail(caller, err)
        except Deposed as err:
            for caller in () if err.uncertain else callers:
                _fail(caller, NotLeader(None))
            raise
        else:
            self._applied(self._mirror.write(draft, revision))
            for caller, records in zip(callers, draft.results, strict=True):
                if not caller.done.done():
                    caller.done.set_result(records)
        # Not in a finally: if we are cancelled or deposed, close() answers those in flight.
        self._in_flight = ()

    def _gather(self) -> tuple[list[_Caller], Draft]:
        most = len(self._queue)
        while True:
            callers, drafting = self._take(most)
            try:
                draft = drafting.finish()
                if draft.size_bytes <= self._limits.hard_bytes:
                    return callers, draft
                error: SwarmletError = TooLarge(
                    f"{draft.size_bytes} bytes of changes in one write; at most {self._limits.hard_bytes} are possible"
                )
            except (OverflowError, TypeError, ValueError, msgspec.MsgspecError) as err:
                error = InvalidArgument(f"a record cannot be stored: {err}")
            # Too much together, or one of them is bad: fewer at a time, until it is clear whose it is.
            if len(callers) == 1:
                _fail(callers.pop(), error)
            self._queue.extendleft(reversed(callers))
            most = max(1, len(callers) // 2)

    def _take(self, most: int) -> tuple[list[_Caller], Drafting]:
        drafting = Drafting(self._mirror.state, self._mirror.blocks, self._mirror.keys)
        callers: list[_Caller] = []
        while self._queue and len(callers) < most:
            caller = self._queue[0]
            keys = drafting.places(caller.ops)
            if callers and (keys > self._limits.keys or len(drafting) + len(caller.ops) > self._limits.ops):
                break
            self._queue.popleft()
            if caller.done.done():
                continue  # gave up waiting
            try:
                if keys > self._limits.keys:
                    raise TooLarge(f"a write of {keys} keys at once; this store takes {self._limits.keys}")
                drafting.add(caller.ops)
            except SwarmletError as err:
                _fail(caller, err)
            else:
                callers.append(caller)
        return callers, drafting

    async def _send(self, draft: Draft) -> int:
        """The revision at which it was written. TooLarge, NoSpace: it certainly was not. Deposed."""
        keys = self._mirror.keys
        before = self._leadership.sequence(self._number)
        after = self._leadership.sequence(self._number + 1)
        compares = (CreatedAt(keys.leader, self._leadership.term), HasValue(keys.wseq, before))
        success = (*self.first, *draft.requests, PutKey(keys.wseq, after))
        uncertain = False
        while True:
            try:
                result = await self._kv.txn(
                    compares, success, (ReadKeys(keys.leader), ReadKeys(keys.wseq)), timeout_s=ATTEMPT_S
                )
            except NoAnswer as err:
                log.warning("write not confirmed; sending it again", reason=err)
                uncertain = True
                await asyncio.sleep(0.05)
                continue
            except (TooLarge, NoSpace) as err:
                if uncertain:
                    # An earlier attempt may still land. A new term makes sure that it cannot.
                    raise Deposed(f"a write is uncertain and cannot be repeated: {err}") from err
                raise
            break
        if result.succeeded:
            revision = result.revision
        else:
            leader, wseq = result.reads
            if not leader or leader[0].create_revision != self._leadership.term:
                raise Deposed("another manager has been elected", uncertain=uncertain)
            if not wseq or wseq[0].value != after:
                raise Deposed("the write sequence is not where this leader left it")
            revision = wseq[0].mod_revision
        self._number += 1
        self.first = ()
        return revision


def _fail(caller: _Caller, error: SwarmletError) -> None:
    if not caller.done.done():
        caller.done.set_exception(error)
