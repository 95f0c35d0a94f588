"""The little of etcd that the store is written against: values, errors and one Protocol.

Two things speak it: `etcd.client.EtcdClient` (a real etcd) and `memory.MemoryClient` (a fake for tests and
simulations); one contract suite runs against both. Keys and values are bytes; revisions, leases and cluster
ids are etcd's. A range is [start, end); an empty end means the single key `start`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarmlet.errors import InvalidArgument, SwarmletError, Unavailable


class NoAnswer(Unavailable):
    """No member of etcd answered in time. A write may or may not have been made."""


class NoSpace(Unavailable):
    """etcd has reached its space quota and refuses writes until it is compacted and defragmented."""


class TooLarge(InvalidArgument):
    """More operations or bytes in one transaction than this etcd accepts. Nothing was written."""


class Compacted(SwarmletError):
    """The wanted revision is gone (or may be): read everything anew instead."""


class ClusterChanged(SwarmletError):
    """The answers come from another etcd cluster or an older history (a restored backup): resynchronize."""


class LeaseGone(SwarmletError):
    """The lease has expired or was revoked."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a key, in revision order. `kv` is None for a removal."""

    key: bytes
    mod_revision: int
    kv: KeyValue | None


@dataclass(frozen=True, slots=True)
class CreatedAt:
    """Holds if the key's create revision is this one; 0 = the key does not exist."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class HasValue:
    """Holds if the key exists with this value."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ModifiedAt:
    """Holds if the key was last written at this revision; 0 = it does not exist."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class PutKey:
    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class DeleteKeys:
    key: bytes
    end: bytes = b""


@dataclass(frozen=True, slots=True)
class ReadKeys:
    key: bytes
    end: bytes = b""


Compare = CreatedAt | HasValue | ModifiedAt
Request = PutKey | DeleteKeys | ReadKeys


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys in order. `revision` is the store's when it was read; more: the limit cut the answer short."""

    kvs: tuple[KeyValue, ...]
    revision: int
    cluster_id: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class TxnResult:
    """reads: one tuple per ReadKeys of the branch that ran, in its order."""

    succeeded: bool
    revision: int
    cluster_id: int
    reads: tuple[tuple[KeyValue, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """What one watch message brought; never part of a revision. No events: a sign of life, whose revision
    must not be taken as a place to resume from (etcd issue 15220)."""

    events: tuple[Event, ...]
    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class KvStatus:
    version: str
    size_bytes: int
    in_use_bytes: int
    revision: int
    alarms: tuple[str, ...] = ()


class KV(Protocol):
    """All calls raise NoAnswer within timeout_s (plus little) if etcd does not answer."""

    async def read(
        self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0, timeout_s: float = 5.0
    ) -> RangeResult:
        """Linearizable; at a past revision if one is given. Compacted if that is gone."""
        ...

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Request],
        failure: Sequence[Request] = (),
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        """All of success if every compare holds, else all of failure. May be sent more than once until it is
        answered: the compares must make a second arrival harmless. TooLarge, NoSpace, LeaseGone."""
        ...

    def watch(self, key: bytes, end: bytes = b"", *, revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Changes from `revision` on, without gap or repetition, over reconnects; close it with aclose().
        The first batch is empty and says that the watch stands. Compacted, ClusterChanged end it."""
        ...

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = 5.0) -> int: ...

    async def lease_renew(self, lease: int, *, timeout_s: float = 1.0) -> None:
        """LeaseGone if it does not exist any more."""
        ...

    async def lease_revoke(self, lease: int, *, timeout_s: float = 1.0) -> None:
        """Removes the lease and its keys; one that is gone already is fine."""
        ...

    async def compact(self, revision: int, *, timeout_s: float = 5.0) -> None:
        """Forget superseded values older than the revision; doing so twice is fine."""
        ...

    async def status(self, *, timeout_s: float = 5.0) -> KvStatus: ...

    async def close(self) -> None: ...


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with prefix: the next key that does not.

    Trailing 0xff bytes cannot be counted up and fall away; a prefix of nothing else has no end but b"\\0",
    which is etcd's word for "to the last key".
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
