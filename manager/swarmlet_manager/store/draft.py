"""What one transaction of the leader will do: callers' operations, checked and encoded. Pure.

Versions are checked here, against the state and against what earlier callers of the same draft change: the
leader is the only writer, so what it holds in memory is what etcd holds. All records of a draft get one and
the same version, the state's revision plus one. Without being stored anywhere that grows from draft to draft
and from leader to leader: the revision that etcd then gives the transaction is as high or higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from swarmlet.errors import InvalidArgument, StaleView
from swarmlet.model.task import Task
from swarmlet_manager.state import Delete, Op, Put, State, StoredRecord
from swarmlet_manager.store import codec
from swarmlet_manager.store.keys import BlockKey, Keys, block_of, identity
from swarmlet_manager.store.kv import DeleteKeys, PutKey

Blocks = dict[BlockKey, dict[str, Task]]


@dataclass(frozen=True, slots=True)
class Draft:
    """results: for each caller, its records as written (deleted ones as they were handed in), in its order."""

    results: tuple[tuple[StoredRecord, ...], ...]
    ops: tuple[Op, ...]
    requests: tuple[PutKey | DeleteKeys, ...]
    size_bytes: int


class Drafting:
    """One draft in the making; short-lived, on a state that does not change meanwhile."""

    def __init__(self, state: State, blocks: Blocks, keys: Keys) -> None:
        self._state = state
        self._blocks = blocks
        self._keys = keys
        self._version = state.revision + 1
        self._ops: dict[tuple[type, str], Op] = {}
        self._places: set[object] = set()
        self._results: list[tuple[StoredRecord, ...]] = []

    def __len__(self) -> int:
        return len(self._ops)

    def places(self, ops: Sequence[Op]) -> int:
        """How many keys it would be with these as well."""
        return len(self._places.union(_place(op.record) for op in ops))

    def add(self, ops: Sequence[Op]) -> None:
        """One caller's operations, all or none. StaleView if one was decided on a record that has changed."""
        mine: dict[tuple[type, str], Op] = {}
        for op in ops:
            ident = identity(op.record)
            # The same record twice from one caller: it knows what it wrote first, so the last one wins.
            if ident not in mine:
                self._check(op, self._current(ident, op.record))
                self._keys.check_id(op.record)
            mine[ident] = self._stamped(op)
        self._ops.update(mine)
        self._places.update(_place(op.record) for op in ops)
        self._results.append(tuple(mine[identity(op.record)].record for op in ops))

    def finish(self) -> Draft:
        """Encode: each touched block of tasks is written whole."""
        ops = tuple(op for op in self._ops.values() if isinstance(op, Put) or self._state.get(op.record))
        requests: list[PutKey | DeleteKeys] = []
        blocks: Blocks = {}
        for op in ops:
            record = op.record
            if isinstance(record, Task):
                place = block_of(record)
                block = blocks.setdefault(place, dict(self._blocks.get(place, {})))
                if isinstance(op, Put):
                    block[record.id] = record
                else:
                    block.pop(record.id, None)
            elif isinstance(op, Put):
                requests.append(PutKey(self._keys.of_record(record), codec.encode_record(record)))
            else:
                requests.append(DeleteKeys(self._keys.of_record(record)))
        for place, block in blocks.items():
            key = self._keys.of_block(place)
            requests.append(PutKey(key, codec.encode_block(block.values())) if block else DeleteKeys(key))
        size = sum(len(r.key) + (len(r.value) if isinstance(r, PutKey) else 0) for r in requests)
        return Draft(tuple(self._results), ops, tuple(requests), size)

    def _current(self, ident: tuple[type, str], record: StoredRecord) -> StoredRecord | None:
        earlier = self._ops.get(ident)
        if earlier is None:
            return self._state.get(record)
        return earlier.record if isinstance(earlier, Put) else None

    @staticmethod
    def _check(op: Op, current: StoredRecord | None) -> None:
        record = op.record
        kind = type(record).__name__.lower()
        if current is None:
            if isinstance(op, Delete) or record.version:
                raise StaleView(f"{kind} {record.id} has been removed meanwhile")
        elif current.version != record.version:
            raise StaleView(f"{kind} {record.id} has changed: version {record.version} is not {current.version}")
        elif isinstance(record, Task) and block_of(record) != _place(current):
            raise InvalidArgument(f"task {record.id} cannot be moved to another service or slot")

    def _stamped(self, op: Op) -> Op:
        if isinstance(op, Delete):
            return op
        return Put(msgspec.structs.replace(op.record, version=self._version))


def _place(record: StoredRecord) -> object:
    return block_of(record) if isinstance(record, Task) else identity(record)
