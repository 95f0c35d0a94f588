"""The state in memory together with how it is laid out in etcd: pure, no I/O.

One owner (the store) feeds it in three ways, each in revision order: `load` (everything, at one revision),
`follow` (what the watch brought) and `write` (the leader's own transaction, once it is acknowledged). Each
returns the changes it made, in an order in which they may be applied again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarmlet.model.dependency import Config, Secret
from swarmlet.model.network import Lease, Network
from swarmlet.model.service import Service
from swarmlet.model.task import Task
from swarmlet_manager.state import Change, Delete, Put, State, StoredRecord
from swarmlet_manager.store import codec
from swarmlet_manager.store.draft import Blocks, Draft
from swarmlet_manager.store.keys import BlockKey, Keys, RecordKey, block_of, identity
from swarmlet_manager.store.kv import Event, KeyValue


class Resync(tuple[Change, ...]):
    """Changes that bring a subscriber from the state before to one that was read anew (first load, lost
    history, restored backup). They are complete as always; what lay between is not shown, and versions
    may have gone back. Anything derived from elsewhere than State should be thought through again."""

    __slots__ = ()


class Mirror:
    def __init__(self, keys: Keys, state: State | None = None) -> None:
        self.keys = keys
        self.state = state if state is not None else State()
        self.blocks: Blocks = {}
        self.specs = codec.SpecPool()

    def decode(self, kvs: Iterable[KeyValue]) -> list[StoredRecord]:
        """All records of a listing; may be called page by page, as pages come in key order: services
        before their tasks, which then share the services' specs."""
        records: list[StoredRecord] = []
        for kv in kvs:
            match self.keys.parse(kv.key):
                case RecordKey(kind):
                    record = self._record(kind, kv.value)
                    records.append(record)
                case BlockKey(service_id):
                    records.extend(codec.decode_block(service_id, kv.value, self.specs).values())
                case None:
                    pass
        return records

    def load(self, records: Sequence[StoredRecord], revision: int) -> Resync:
        """Replace everything. Equal records stay the objects they are: nothing changed for them."""
        state, changes = self.state, []
        if existing := self._everything():
            wanted = {identity(record) for record in records}
            changes = [state.apply(Delete(record)) for record in existing if identity(record) not in wanted]
            records = [record for record in records if state.get(record) != record]
        changes += [state.apply(Put(record)) for record in records]
        self.blocks = {}
        for task in self.state.tasks.values():
            self.blocks.setdefault(block_of(task), {})[task.id] = task
        self.state.revision = revision
        return Resync(changes)

    def follow(self, events: Iterable[Event]) -> list[Change]:
        """Apply what is newer than the state; a message's events are of whole revisions."""
        changes: list[Change] = []
        reached = known = self.state.revision
        for event in events:
            if event.mod_revision > known:
                reached = max(reached, event.mod_revision)
                changes += self._follow(event)
        self.state.revision = reached
        return changes

    def write(self, draft: Draft, revision: int) -> list[Change]:
        """Apply a draft that etcd has accepted, unless the watch was first."""
        if revision <= self.state.revision:
            return []
        changes = []
        for op in draft.ops:
            if isinstance(op.record, Task):
                self._index(op.record, present=isinstance(op, Put))
            changes.append(self.state.apply(op))
        self.state.revision = revision
        return changes

    def _record(self, kind: type, value: bytes) -> StoredRecord:
        record: StoredRecord = codec.decode_record(kind, value)
        if isinstance(record, Service):
            codec.share_spec(record, self.specs)
        return record

    def _everything(self) -> list[StoredRecord]:
        state = self.state
        cluster = [state.cluster] if state.cluster else []
        # Tasks last when putting, first when removing: no task without its service in between.
        return [
            *state.tasks.values(), *state.leases.values(), *state.services.values(), *state.networks.values(),
            *state.secrets.values(), *state.configs.values(), *state.nodes.values(), *cluster,
        ]

    def _follow(self, event: Event) -> list[Change]:
        match self.keys.parse(event.key):
            case RecordKey(kind, ident):
                if event.kv is not None:
                    return [self.state.apply(Put(self._record(kind, event.kv.value)))]
                before = self._by_key(kind, ident)
                return [] if before is None else [self.state.apply(Delete(before))]
            case BlockKey() as key:
                return self._follow_block(key, event.kv)
            case None:
                return []

    def _by_key(self, kind: type, ident: str) -> StoredRecord | None:
        state = self.state
        match kind:
            case _ if kind is Service:
                return state.services.get(ident)
            case _ if kind is Network:
                return state.networks.get(ident)
            case _ if kind is Lease:
                return state.leases.get(ident)
            case _ if kind is Secret:
                return state.secrets.get(ident)
            case _ if kind is Config:
                return state.configs.get(ident)
            case _:
                return state.nodes.get(ident) if ident else state.cluster

    def _follow_block(self, key: BlockKey, kv: KeyValue | None) -> list[Change]:
        before = self.blocks.get(key, {})
        after = {} if kv is None else codec.decode_block(key.service_id, kv.value, self.specs, before)
        changes = [self.state.apply(Delete(task)) for task in before.values() if task.id not in after]
        changes += [self.state.apply(Put(task)) for task in after.values() if before.get(task.id) is not task]
        if after:
            self.blocks[key] = after
        else:
            self.blocks.pop(key, None)
        return changes

    def _index(self, task: Task, present: bool) -> None:
        key = block_of(task)
        if present:
            self.blocks.setdefault(key, {})[task.id] = task
        elif key in self.blocks:
            self.blocks[key].pop(task.id, None)
            if not self.blocks[key]:
                del self.blocks[key]
