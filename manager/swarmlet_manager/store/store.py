"""The cluster's state: read from memory, written to etcd by the elected manager.

    store = Store(kv, Candidate(id=node_id, addr="10.0.0.1:2377"))
    await store.start()                        # loaded; follows etcd; campaigns
    store.subscribe(lambda changes: ...)       # called with every applied batch, in order
    [service] = await store.commit([Put(service)])
    ...
    await store.stop()                         # resigns: a successor is elected at once

Every manager holds everything. Followers apply what the watch brings; the leader applies its own writes as
etcd acknowledges them and ignores their echoes. Nothing here is read from etcd again unless history was lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

from swarmlet.errors import Internal, Unavailable
from swarmlet.log import get_logger
from swarmlet_manager.state import Change, Op, State, StoredRecord
from swarmlet_manager.store.codec import SCHEMA
from swarmlet_manager.store.election import LEASE_TTL_S, Candidate, Election, Leader, Leadership, NotLeader
from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.kv import KV, ClusterChanged, Compacted, PutKey, WatchBatch
from swarmlet_manager.store.maintenance import Schedule, maintain
from swarmlet_manager.store.mirror import Mirror
from swarmlet_manager.store.pages import Pages
from swarmlet_manager.store.readindex import ReadIndex
from swarmlet_manager.store.writer import Limits, Writer

log = get_logger(__name__)

#: A new leader that has not seen all earlier writes by then gives up and lets another try.
CATCH_UP_S = 10.0
#: A read waits so long, at most, for etcd to say how far the state is, and for the watch to bring it.
READ_S = 5.0
#: Without a sign of life from etcd for so long, the store calls itself unhealthy.
HEALTHY_S = 5.0

Subscriber = Callable[[Sequence[Change]], None]
LeadershipSubscriber = Callable[[int | None], None]


class Store:
    """One per manager process. All methods belong to the loop that called `start`."""

    def __init__(
        self,
        kv: KV,
        candidate: Candidate,
        *,
        prefix: bytes = b"/swarmlet/",
        limits: Limits | None = None,
        schedule: Schedule | None = None,
        ttl_s: int = LEASE_TTL_S,
        rng: random.Random | None = None,
    ) -> None:
        self._kv = kv
        self._keys = Keys(prefix)
        self._mirror = Mirror(self._keys)
        self._limits = limits or Limits()
        self._schedule = schedule or Schedule()
        self._id = candidate.id
        self._election = Election(kv, self._keys, candidate, self._reign, ttl_s=ttl_s, rng=rng)
        self._writer: Writer | None = None
        self._index = ReadIndex(self._last_write)
        self._subscribers: list[Subscriber] = []
        self._leadership_subscribers: list[LeadershipSubscriber] = []
        self._moved = asyncio.Event()
        self._leading = asyncio.Event()
        self._cluster_id = 0
        #: Of the leader key in `state`'s revision, 0 without one. No two leaderships have the same, in any history.
        self._leading_lease = 0
        self._has_schema = False
        self._contact = float("-inf")
        self._running: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """The live view: the same object for the store's whole life."""
        return self._mirror.state

    @property
    def leader(self) -> bool:
        """True while this manager may write and has seen everything its predecessors wrote."""
        return self._writer is not None and self._election.leadership is not None

    @property
    def term(self) -> int:
        """The term of the current leader, whoever it is; 0 = none is known."""
        leader = self._election.leader
        return leader.term if leader else 0

    @property
    def leader_info(self) -> Leader | None:
        """Who leads, as last seen: for passing requests on."""
        return self._election.leader

    @property
    def other_leader(self) -> Leader | None:
        """The manager that leads instead of this one. None, too, if the last leader was this very one, which has lost
        etcd: it is no one to turn to."""
        leader = self._election.leader
        return None if leader is not None and leader.id == self._id else leader

    def healthy(self) -> bool:
        """True if etcd has given a sign of life within the last seconds."""
        return asyncio.get_running_loop().time() - self._contact < HEALTHY_S

    async def start(self, timeout_s: float = 30.0) -> None:
        """Load everything, then follow and campaign in the background. Unavailable; Internal if what is
        stored was written by a later version of this program."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._load()
        except TimeoutError:
            raise Unavailable(f"the state could not be read from etcd within {timeout_s:g} s") from None
        self._running = asyncio.create_task(self._run(), name="store")

    async def wait(self) -> None:
        """Until the store is stopped; raises if one of its loops has failed. For the process's task group."""
        assert self._running is not None
        await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Resign and end all loops. The connection to etcd stays the caller's to close."""
        await self._index.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def commit(self, ops: Sequence[Op], *, timeout_s: float = 5.0) -> tuple[StoredRecord, ...]:
        """Write all ops or none, and return their records with the new versions, in their order.

        A record's version must be the current one (0: the record must not exist), else StaleView. On
        return everything is in etcd and in `state`. NotLeader; Unavailable if etcd does not confirm in
        time, when the write may still be made; TooLarge if it is more than one transaction can hold.
        """
        writer = self._writer
        if writer is None or not self.leader:
            raise NotLeader(self.other_leader)
        return await writer.commit(ops, timeout_s) if ops else ()

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call with each applied batch, after `state` holds it. Returns what ends the subscription.

        Callbacks run one after the other and must not block or await. A batch that is a `Resync` came
        from a full read.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def subscribe_leadership(self, callback: LeadershipSubscriber) -> Callable[[], None]:
        """Call with the term when this manager begins to lead, and with None when it has ended."""
        self._leadership_subscribers.append(callback)
        return lambda: self._leadership_subscribers.remove(callback)

    async def catch_up(self, timeout_s: float = READ_S) -> None:
        """Until `state` has everything that any manager had acknowledged before the call (a linearizable read).

        The leader has it. A follower asks etcd, where a majority answers, for the revision of the last write, and waits
        for the watch to bring it: no leader is needed for that. Unavailable if it takes longer.
        """
        if self.leader:
            return
        try:
            async with asyncio.timeout(timeout_s):
                revision = await self._index.read()
                while self.state.revision < revision:
                    await self._applied()
        except TimeoutError:
            raise Unavailable(
                f"this manager cannot tell whether it knows the cluster's present state: etcd has not brought it up to "
                f"date within {timeout_s:g} s"
            ) from None

    def leadership_moved(self) -> Awaitable[object]:
        """Ends when another manager (or none) leads than at the call, or when this one has become able to write."""
        return self._election.moved()

    async def wait_for_leadership(self) -> int:
        """Until this manager leads; returns the term."""
        while not self.leader:
            await self._leading.wait()
            if not self.leader:  # over already
                await asyncio.sleep(0.01)
        return self.term

    def step_down(self) -> None:
        """Give the leadership up, if held; another manager (or this one, later) is elected."""
        self._election.step_down()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="store-watch")
            group.create_task(self._election.run(), name="store-election")

    async def _load(self) -> None:
        while True:
            try:
                await self._read_everything()
                return
            except Compacted:
                log.info("history was compacted during a full read; reading again")

    async def _read_everything(self) -> None:
        """One revision, page by page; the loop breathes between pages."""
        keys, records = self._keys, list[StoredRecord]()
        pages, revision = Pages(keys.sections()), 0
        leader = None
        has_schema = False
        cluster_id = 0
        while (wanted := pages.wanted()) is not None:
            page = await self._kv.read(wanted.start, wanted.end, revision=revision, limit=wanted.limit)
            if not revision:
                revision, cluster_id = page.revision, page.cluster_id
            elif page.cluster_id != cluster_id:
                raise Compacted("the cluster changed during a full read")
            for kv in page.kvs:
                if kv.key == keys.schema:
                    has_schema = True
                    _check_schema(kv.value)
                elif kv.key == keys.leader:
                    leader = kv
            records += self._mirror.decode(page.kvs)
            pages.arrived(page)
        self._cluster_id, self._has_schema = cluster_id, has_schema
        self._leading_lease = leader.lease if leader is not None else 0
        self._touch()
        self._apply(self._mirror.load(records, revision))
        self._election.observe(leader, revision)

    async def _follow(self) -> None:
        while True:
            try:
                await self._watch()
            except Compacted:
                log.info("the watch fell behind; reading everything again")
            except ClusterChanged as err:
                log.warning("etcd has another history now; reading everything again", reason=err)
                self._election.step_down()
            await self._reload()

    async def _reload(self) -> None:
        while True:
            try:
                await self._load()
                return
            except Unavailable as err:
                log.warning("full read failed", reason=err)
                await asyncio.sleep(0.5)

    async def _watch(self) -> None:
        keys = self._keys
        async with aclosing(self._kv.watch(keys.prefix, keys.end, revision=self.state.revision + 1)) as batches:
            async for batch in batches:
                if batch.cluster_id != self._cluster_id:
                    raise ClusterChanged(f"cluster {batch.cluster_id:x} instead of {self._cluster_id:x}")
                self._touch()
                if batch.events:
                    self._receive(batch)

    def _receive(self, batch: WatchBatch) -> None:
        for event in batch.events:
            if event.key == self._keys.leader:
                self._leading_lease = event.kv.lease if event.kv is not None else 0
                self._election.observe(event.kv, event.mod_revision)
            elif event.key == self._keys.schema and event.kv is not None:
                _check_schema(event.kv.value)
                self._has_schema = True
        self._apply(self._mirror.follow(batch.events))

    async def _applied(self) -> None:
        """Until the next batch."""
        self._moved.clear()
        await self._moved.wait()

    async def _last_write(self) -> int:
        """The revision of the last write of any leader: each moves the write sequence."""
        found = (await self._kv.read(self._keys.wseq, timeout_s=READ_S)).kvs
        return found[0].mod_revision if found else 0

    def _touch(self) -> None:
        self._contact = asyncio.get_running_loop().time()

    def _apply(self, changes: Sequence[Change]) -> None:
        self._moved.set()
        if not changes:
            return
        for callback in tuple(self._subscribers):
            try:
                callback(changes)
            except Exception:  # a subscriber's trouble is its own: state and the others go on
                log.exception("a subscriber failed")

    async def _reign(self, leadership: Leadership) -> None:
        # Until the watch has brought our own key, and so all that predecessors wrote. A revision would not tell: in an
        # etcd restored from a backup the term may be lower than what this manager knows of the history before.
        async with asyncio.timeout(CATCH_UP_S):
            while self._leading_lease != leadership.lease:
                await self._applied()
        writer = Writer(self._kv, self._mirror, leadership, self._limits, self._written)
        if not self._has_schema:
            writer.first = (PutKey(self._keys.schema, b"%d" % SCHEMA),)
        self._writer = writer
        self._announce(leadership.term)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(writer.run(), name="store-writer")
                group.create_task(maintain(self._kv, writer, self._schedule), name="store-maintenance")
        finally:
            self._writer = None
            writer.close()
            self._announce(None)

    def _written(self, changes: Sequence[Change]) -> None:
        self._touch()
        self._apply(changes)

    def _announce(self, term: int | None) -> None:
        if term is None:
            self._leading.clear()
        else:
            self._leading.set()
        self._election.tell()
        for callback in tuple(self._leadership_subscribers):
            try:
                callback(term)
            except Exception:  # as above
                log.exception("a leadership subscriber failed")


def _check_schema(value: bytes) -> None:
    try:
        found = int(value)
    except ValueError as err:
        raise Internal("the schema number in etcd is not a number: is this prefix used by something else?") from err
    if found > SCHEMA:
        raise Internal(
            f"the state in etcd has schema {found}, this program knows up to {SCHEMA}: "
            "it was written by a later version; install that one"
        )
