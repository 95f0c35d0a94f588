"""An etcd in memory, for tests and for whole clusters simulated in virtual time.

`MemoryEtcd` is the server: revisions, history, leases, watches and transactions as etcd has them.
`MemoryClient` is one manager's way to it and can fail the ways networks fail (`Faults`): slow, lost
requests, lost replies, requests that land after the caller has given up, and a cut cable. All time is the
running loop's and all chance comes from the given generator, so a seed replays a run exactly.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from swarmlet.errors import InvalidArgument
from swarmlet_manager.store.kv import (
    ClusterChanged,
    Compacted,
    Compare,
    CreatedAt,
    DeleteKeys,
    Event,
    HasValue,
    KeyValue,
    KvStatus,
    LeaseGone,
    ModifiedAt,
    NoAnswer,
    NoSpace,
    PutKey,
    RangeResult,
    ReadKeys,
    Request,
    TooLarge,
    TxnResult,
    WatchBatch,
)

_T = TypeVar("_T")
_LAST = b"\0"


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    timer: asyncio.TimerHandle
    keys: set[bytes] = field(default_factory=set)


class MemoryEtcd:
    """One cluster. Its methods act at once; only clients wait."""

    def __init__(self, *, cluster_id: int = 1, max_txn_ops: int = 1024, max_bytes: int = 4 << 20) -> None:
        self.cluster_id = cluster_id
        self.revision = 1
        self.compacted = 0
        self.full = False
        self.changed: list[asyncio.Event] = []
        self._max_txn_ops = max_txn_ops
        self._max_bytes = max_bytes
        self._kvs: dict[bytes, KeyValue] = {}
        self._order: list[bytes] = []
        self._base: dict[bytes, KeyValue] = {}
        self._log: list[Event] = []
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 0x1000

    def close(self) -> None:
        """Forget all leases, so that no timer outlives a test."""
        for lease in self._leases.values():
            lease.timer.cancel()
        self._leases.clear()

    def read(self, key: bytes, end: bytes = b"", revision: int = 0, limit: int = 0) -> RangeResult:
        if revision > self.revision:
            raise InvalidArgument("required revision is a future revision")
        if 0 < revision < self.compacted:
            raise Compacted(f"revision {revision} has been compacted")
        found = self._range(key, end) if revision in (0, self.revision) else self._past(key, end, revision)
        more = 0 < limit < len(found)
        return RangeResult(tuple(found[:limit] if more else found), self.revision, self.cluster_id, more)

    def txn(self, compares: Sequence[Compare], success: Sequence[Request], failure: Sequence[Request]) -> TxnResult:
        self._check_size(compares, success, failure)
        holds = all(self._holds(compare) for compare in compares)
        requests = success if holds else failure
        if self.full and any(isinstance(request, PutKey) for request in (*success, *failure)):
            raise NoSpace("etcd is out of space")
        for request in requests:
            if isinstance(request, PutKey) and request.lease and request.lease not in self._leases:
                raise LeaseGone(f"lease {request.lease:x} not found")
        reads, events = [], []
        for request in requests:
            match request:
                case ReadKeys(key, end):
                    reads.append(tuple(self._range(key, end)))
                case PutKey():
                    events.append(self._put(request))
                case DeleteKeys(key, end):
                    events += [self._delete(kv.key) for kv in self._range(key, end)]
        self._record(events)
        return TxnResult(holds, self.revision, self.cluster_id, tuple(reads))

    def events(self, key: bytes, end: bytes, revision: int) -> list[Event]:
        """History of a range from a revision on. Compacted."""
        if revision <= self.compacted:
            raise Compacted(f"revision {revision} has been compacted")
        first = bisect_left(self._log, revision, key=lambda event: event.mod_revision)
        return [event for event in self._log[first:] if _within(event.key, key, end)]

    def lease_grant(self, ttl_s: int) -> int:
        if self.full:
            raise NoSpace("etcd is out of space")
        self._next_lease += 1
        self._leases[self._next_lease] = _Lease(ttl_s, self._expiry(self._next_lease, ttl_s))
        return self._next_lease

    def lease_renew(self, ident: int) -> None:
        lease = self._leases.get(ident)
        if lease is None:
            raise LeaseGone(f"lease {ident:x} not found")
        lease.timer.cancel()
        lease.timer = self._expiry(ident, lease.ttl_s)

    def lease_revoke(self, ident: int) -> None:
        lease = self._leases.pop(ident, None)
        if lease is not None:
            lease.timer.cancel()
            self._record([self._delete(key) for key in sorted(lease.keys)])

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise InvalidArgument("required revision is a future revision")
        if revision <= self.compacted:
            raise Compacted(f"revision {revision} has been compacted")
        for event in self._log:
            if event.mod_revision <= revision:
                _replay(self._base, event)
        self._log = [event for event in self._log if event.mod_revision > revision]
        self.compacted = revision
        self._wake()

    def status(self) -> KvStatus:
        size = sum(len(kv.key) + len(kv.value) for kv in self._kvs.values())
        return KvStatus("memory", size, size, self.revision, ("NOSPACE",) if self.full else ())

    def backup(self) -> tuple[int, dict[bytes, KeyValue]]:
        return self.revision, dict(self._kvs)

    def restore(self, backup: tuple[int, dict[bytes, KeyValue]], cluster_id: int) -> None:
        """Become the cluster that was backed up, as `etcdctl snapshot restore` makes it: same revisions, no
        history, another cluster id. Leases start anew."""
        self.close()
        self.revision, kvs = backup
        self.cluster_id, self.compacted = cluster_id, self.revision
        self._kvs, self._base, self._log = dict(kvs), dict(kvs), []
        self._order = sorted(kvs)
        for kv in kvs.values():
            if kv.lease:
                if kv.lease not in self._leases:
                    self._leases[kv.lease] = _Lease(3, self._expiry(kv.lease, 3))
                self._leases[kv.lease].keys.add(kv.key)
        self._wake()

    def _range(self, key: bytes, end: bytes) -> list[KeyValue]:
        if not end:
            return [self._kvs[key]] if key in self._kvs else []
        first = bisect_left(self._order, key)
        last = len(self._order) if end == _LAST else bisect_left(self._order, end)
        return [self._kvs[name] for name in self._order[first:last]]

    def _past(self, key: bytes, end: bytes, revision: int) -> list[KeyValue]:
        kvs = dict(self._base)
        for event in self._log:
            if event.mod_revision <= revision:
                _replay(kvs, event)
        return [kvs[name] for name in sorted(kvs) if _within(name, key, end)]

    def _holds(self, compare: Compare) -> bool:
        kv = self._kvs.get(compare.key)
        match compare:
            case CreatedAt(_, revision):
                return (kv.create_revision if kv else 0) == revision
            case ModifiedAt(_, revision):
                return (kv.mod_revision if kv else 0) == revision
            case HasValue(_, value):
                return kv is not None and kv.value == value

    def _put(self, request: PutKey) -> Event:
        before = self._kvs.get(request.key)
        now = self.revision + 1
        kv = KeyValue(request.key, request.value, before.create_revision if before else now, now, request.lease)
        if before is None:
            insort(self._order, request.key)
        elif before.lease in self._leases:
            self._leases[before.lease].keys.discard(request.key)
        self._kvs[request.key] = kv
        if request.lease:
            self._leases[request.lease].keys.add(request.key)
        return Event(request.key, now, kv)

    def _delete(self, key: bytes) -> Event:
        kv = self._kvs.pop(key)
        del self._order[bisect_left(self._order, key)]
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(key)
        return Event(key, self.revision + 1, None)

    def _record(self, events: list[Event]) -> None:
        if events:
            self.revision += 1
            self._log += events
            self._wake()

    def _wake(self) -> None:
        for waiting in self.changed:
            waiting.set()

    def _expiry(self, ident: int, ttl_s: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_s, self.lease_revoke, ident)

    def _check_size(self, compares: Sequence[Compare], success: Sequence[Request], failure: Sequence[Request]) -> None:
        if max(len(compares), len(success), len(failure)) > self._max_txn_ops:
            raise TooLarge("too many operations in txn request")
        for branch in (success, failure):
            puts = [request for request in branch if isinstance(request, PutKey)]
            if len({put.key for put in puts}) < len(puts):
                raise InvalidArgument("duplicate key given in txn request")
            if sum(len(put.key) + len(put.value) for put in puts) > self._max_bytes:
                raise TooLarge("request is too large")


@dataclass(slots=True)
class Faults:
    """What goes wrong between one client and its etcd; probabilities in 0..1, delays in seconds each way."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    delay_s: tuple[float, float] = (0.0, 0.0)
    lose_request: float = 0.0
    lose_reply: float = 0.0
    late: float = 0.0
    late_s: tuple[float, float] = (0.0, 6.0)
    cut: bool = False


class MemoryClient:
    """A `KV` on a MemoryEtcd. Change `faults` at any time; after changing `cut` call `nudge`."""

    def __init__(self, server: MemoryEtcd, faults: Faults | None = None) -> None:
        self.server = server
        self.faults = faults or Faults()
        self._watches: list[asyncio.Event] = []

    def nudge(self) -> None:
        """Let watches look again."""
        for waiting in self._watches:
            waiting.set()

    async def read(
        self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0, timeout_s: float = 5.0
    ) -> RangeResult:
        return await self._call(lambda: self.server.read(key, end, revision, limit), timeout_s)

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Request],
        failure: Sequence[Request] = (),
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        return await self._call(lambda: self.server.txn(compares, success, failure), timeout_s)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        return await self._call(lambda: self.server.lease_grant(ttl_s), timeout_s)

    async def lease_renew(self, lease: int, *, timeout_s: float = 1.0) -> None:
        await self._call(lambda: self.server.lease_renew(lease), timeout_s)

    async def lease_revoke(self, lease: int, *, timeout_s: float = 1.0) -> None:
        await self._call(lambda: self.server.lease_revoke(lease), timeout_s)

    async def compact(self, revision: int, *, timeout_s: float = 5.0) -> None:
        await self._call(lambda: self.server.compact(revision), timeout_s)

    async def status(self, *, timeout_s: float = 5.0) -> KvStatus:
        return await self._call(self.server.status, timeout_s)

    async def close(self) -> None:
        """Nothing to close: the server is shared."""

    async def watch(self, key: bytes, end: bytes = b"", *, revision: int) -> AsyncGenerator[WatchBatch, None]:
        server = self.server
        look = asyncio.Event()
        server.changed.append(look)
        self._watches.append(look)
        cluster_id, seen, standing = server.cluster_id, 0, False
        try:
            while True:
                look.clear()
                await self._delay()
                if not self.faults.cut:
                    if server.cluster_id != cluster_id or server.revision < max(seen, revision - 1):
                        raise ClusterChanged("another cluster answers")
                    if not standing:
                        standing = True
                        yield WatchBatch((), server.revision, server.cluster_id)
                        continue  # much may have happened while the reader had the floor
                    seen = server.revision
                    events = tuple(server.events(key, end, revision))
                    if events:
                        revision = events[-1].mod_revision + 1
                        yield WatchBatch(events, seen, server.cluster_id)
                        continue
                await look.wait()
        finally:
            server.changed.remove(look)
            self._watches.remove(look)

    async def _delay(self) -> None:
        low, high = self.faults.delay_s
        await asyncio.sleep(self.faults.rng.uniform(low, high) if high else 0)

    async def _call(self, act: Callable[[], _T], timeout_s: float) -> _T:
        """The request travels, acts, and its answer travels; any of it may fail or take too long."""
        loop, faults = asyncio.get_running_loop(), self.faults
        deadline = loop.time() + timeout_s
        there, back = (faults.rng.uniform(*faults.delay_s) for _ in range(2))
        if faults.cut or faults.rng.random() < faults.lose_request:
            raise await _nothing(deadline)
        if faults.rng.random() < faults.late:
            there += faults.rng.uniform(*faults.late_s)
        if there > timeout_s:
            loop.call_later(there, _act_unheard, act)
            raise await _nothing(deadline)
        await asyncio.sleep(there)
        result = act()
        if faults.cut or faults.rng.random() < faults.lose_reply or there + back > timeout_s:
            raise await _nothing(deadline)
        await asyncio.sleep(back)
        return result


async def _nothing(deadline: float) -> NoAnswer:
    await asyncio.sleep(max(0.0, deadline - asyncio.get_running_loop().time()))
    return NoAnswer("etcd does not answer")


def _act_unheard(act: Callable[[], object]) -> None:
    """A request that lands when nobody waits for its answer any more: a refusal interests no one."""
    try:
        act()
    except (Compacted, InvalidArgument, LeaseGone, NoSpace):
        return


def _replay(kvs: dict[bytes, KeyValue], event: Event) -> None:
    if event.kv is None:
        kvs.pop(event.key, None)
    else:
        kvs[event.key] = event.kv


def _within(name: bytes, key: bytes, end: bytes) -> bool:
    if not end:
        return name == key
    return name >= key and (end == _LAST or name < end)
