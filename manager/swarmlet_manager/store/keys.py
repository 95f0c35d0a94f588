"""Where each record lives in etcd. Everything stands under one prefix, which one watch covers.

    <prefix>schema                        the number of this layout
    <prefix>leader                        held by the elected manager through its lease
    <prefix>wseq                          the leader's write sequence: changed by every transaction
    <prefix>cluster                       the cluster record
    <prefix>nodes/<id>, services/<id>     one record per key; networks/<id>, leases/<id>,
                                          secrets/<id> and configs/<id> as well
    <prefix>tasks/<service id>/<block>    up to 64 slots of a service in one key

A task's block follows from what never changes about it, so it stays where it is for life: replicated tasks by
their slot, tasks without a slot (global services) by a hash of their id. Packed blocks are an order of
magnitude quicker to write than a key per task, and three times smaller in etcd.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise

from swarmlet.errors import InvalidArgument
from swarmlet.model.cluster import Cluster
from swarmlet.model.dependency import Config, Secret
from swarmlet.model.network import Lease, Network
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.task import Task
from swarmlet_manager.state import StoredRecord
from swarmlet_manager.store.kv import prefix_end

SLOTS_PER_BLOCK = 64
HASHED_BLOCKS = 64

#: Records with a key of their own, by folder; the cluster's is single.
Foldered = Config | Lease | Network | Node | Secret | Service
_KINDS: dict[str, type[Foldered]] = {
    "configs": Config, "leases": Lease, "networks": Network, "nodes": Node, "secrets": Secret, "services": Service,
}
_FOLDERS: dict[type, str] = {kind: folder for folder, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class BlockKey:
    """The place of some tasks of one service: `name` is s<hex> for slots, g<hex> for hashed ids."""

    service_id: str
    name: str


@dataclass(frozen=True, slots=True)
class RecordKey:
    """A record that has a key of its own."""

    kind: type[Cluster | Foldered]
    id: str


class Keys:
    """Names keys under a prefix and reads them back."""

    def __init__(self, prefix: bytes = b"/swarmlet/") -> None:
        self.prefix = prefix
        self.end = prefix_end(prefix)
        self.schema = prefix + b"schema"
        self.leader = prefix + b"leader"
        self.wseq = prefix + b"wseq"
        self._cluster = prefix + b"cluster"

    def sections(self) -> list[tuple[bytes, bytes]]:
        """Ranges [start, end) that together are everything under the prefix, with no more than one kind in each."""
        folders = [self.prefix + f"{folder}/".encode() for folder in sorted((*_KINDS, "tasks"))]
        return list(pairwise([self.prefix, *folders, self.end]))

    def of_record(self, record: Cluster | Foldered) -> bytes:
        if isinstance(record, Cluster):
            return self._cluster
        return self.prefix + f"{_FOLDERS[type(record)]}/{_checked(record.id)}".encode()

    def of_block(self, block: BlockKey) -> bytes:
        return self.prefix + f"tasks/{_checked(block.service_id)}/{block.name}".encode()

    def check_id(self, record: StoredRecord) -> None:
        """InvalidArgument if the record's ids cannot be part of a key."""
        if not isinstance(record, Cluster):
            _checked(record.id)
        if isinstance(record, Task):
            _checked(record.service_id)

    def parse(self, key: bytes) -> BlockKey | RecordKey | None:
        """What a key holds; None for the store's own keys and those of a later layout."""
        match key.removeprefix(self.prefix).decode(errors="replace").split("/"):
            case ["cluster"]:
                return RecordKey(Cluster, "")
            case [folder, ident] if folder in _KINDS:
                return RecordKey(_KINDS[folder], ident)
            case ["tasks", service_id, name]:
                return BlockKey(service_id, name)
            case _:
                return None


def block_of(task: Task) -> BlockKey:
    if task.slot > 0:
        return BlockKey(task.service_id, f"s{task.slot // SLOTS_PER_BLOCK:06x}")
    return BlockKey(task.service_id, f"g{zlib.crc32(task.id.encode()) % HASHED_BLOCKS:02x}")


def identity(record: StoredRecord) -> tuple[type, str]:
    """Kind and id; there is one cluster record, whatever its id."""
    return (Cluster, "") if isinstance(record, Cluster) else (type(record), record.id)


def _checked(ident: str) -> str:
    if not ident or "/" in ident:
        raise InvalidArgument(f"{ident!r} cannot be an id")
    return ident
