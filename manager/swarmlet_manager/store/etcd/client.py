"""A thin asyncio client of etcd's gRPC API: the store's `KV`, and what running a cluster of members needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from swarmlet_manager.store.etcd import watch as watching
from swarmlet_manager.store.etcd.channels import Channels, Tls, method
from swarmlet_manager.store.etcd.messages import (
    ALARM_DEACTIVATE,
    ALARM_GET,
    ALARM_NAMES,
    TARGET_CREATE,
    TARGET_MOD,
    TARGET_VALUE,
    message,
)
from swarmlet_manager.store.kv import (
    Compare,
    CreatedAt,
    DeleteKeys,
    HasValue,
    KvStatus,
    LeaseGone,
    ModifiedAt,
    NoAnswer,
    PutKey,
    RangeResult,
    ReadKeys,
    Request,
    TxnResult,
    WatchBatch,
)

_RANGE = method("KV", "Range")
_TXN = method("KV", "Txn")
_COMPACT = method("KV", "Compact", "Compaction")
_GRANT = method("Lease", "LeaseGrant")
_REVOKE = method("Lease", "LeaseRevoke")
_KEEP_ALIVE = method("Lease", "LeaseKeepAlive")
_STATUS = method("Maintenance", "Status")
_ALARM = method("Maintenance", "Alarm")
_DEFRAGMENT = method("Maintenance", "Defragment")
_SNAPSHOT = method("Maintenance", "Snapshot")
_MEMBER_LIST = method("Cluster", "MemberList")
_MEMBER_ADD = method("Cluster", "MemberAdd")
_MEMBER_REMOVE = method("Cluster", "MemberRemove")
_MEMBER_UPDATE = method("Cluster", "MemberUpdate")
_MEMBER_PROMOTE = method("Cluster", "MemberPromote")

_COMPARE = message("Compare")
_OP = message("RequestOp")


@dataclass(frozen=True, slots=True)
class Member:
    """One etcd of the cluster; name "" until it has started for the first time."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class EtcdClient:
    """Endpoints: https://host:port (needs `tls`), http://host:port, or unix:/path. Make and close it in the
    loop that uses it."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None) -> None:
        self.endpoints = tuple(endpoints)
        self._channels = Channels(endpoints, tls)

    async def close(self) -> None:
        await self._channels.close()

    async def read(
        self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0, timeout_s: float = 5.0
    ) -> RangeResult:
        request = _RANGE.request(key=key, range_end=end, revision=revision, limit=limit)
        answer = await self._channels.call(_RANGE, request, timeout_s)
        kvs = tuple(watching.key_value(kv) for kv in answer.kvs)
        return RangeResult(kvs, answer.header.revision, answer.header.cluster_id, answer.more)

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Request],
        failure: Sequence[Request] = (),
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        request = _TXN.request(
            compare=[_compare(compare) for compare in compares],
            success=[_op(request) for request in success],
            failure=[_op(request) for request in failure],
        )
        answer = await self._channels.call(_TXN, request, timeout_s)
        reads = tuple(
            tuple(watching.key_value(kv) for kv in response.response_range.kvs)
            for response in answer.responses
            if response.HasField("response_range")
        )
        return TxnResult(answer.succeeded, answer.header.revision, answer.header.cluster_id, reads)

    def watch(self, key: bytes, end: bytes = b"", *, revision: int) -> AsyncGenerator[WatchBatch, None]:
        return watching.watch(self._channels, key, end, revision)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = 5.0) -> int:
        answer = await self._channels.call(_GRANT, _GRANT.request(TTL=ttl_s), timeout_s)
        ident: int = answer.ID
        return ident

    async def lease_renew(self, lease: int, *, timeout_s: float = 1.0) -> None:
        """The API has only a stream for this; each renewal opens one, so none can go stale unnoticed."""

        async def attempt(channel: Any, left_s: float) -> Any:
            open_stream = channel.stream_stream(
                _KEEP_ALIVE.path,
                request_serializer=_KEEP_ALIVE.request.SerializeToString,
                response_deserializer=_KEEP_ALIVE.response.FromString,
            )
            call = open_stream(timeout=left_s)
            try:
                await call.write(_KEEP_ALIVE.request(ID=lease))
                await call.done_writing()
                return await call.read()
            except asyncio.InvalidStateError as err:  # the stream ended while we wrote
                raise NoAnswer("the stream was closed") from err
            finally:
                call.cancel()

        import grpc

        answer = await self._channels.attempts(attempt, timeout_s)
        if answer is grpc.aio.EOF:
            raise NoAnswer("etcd closed the stream without an answer")
        if answer.TTL <= 0:
            raise LeaseGone(f"lease {lease:x} does not exist any more")

    async def lease_revoke(self, lease: int, *, timeout_s: float = 1.0) -> None:
        try:
            await self._channels.call(_REVOKE, _REVOKE.request(ID=lease), timeout_s)
        except LeaseGone:
            return

    async def compact(self, revision: int, *, timeout_s: float = 5.0) -> None:
        await self._channels.call(_COMPACT, _COMPACT.request(revision=revision), timeout_s)

    async def status(self, *, timeout_s: float = 5.0) -> KvStatus:
        """Of the member that answers. Succeeds only once it serves requests."""
        answer = await self._channels.call(_STATUS, _STATUS.request(), timeout_s)
        if not answer.leader:
            raise NoAnswer("etcd has no leader")
        # Not asked for by the Alarm call, which a learner refuses.
        names = tuple(name for name in ALARM_NAMES if any(name in error for error in answer.errors))
        return KvStatus(answer.version, answer.dbSize, answer.dbSizeInUse, answer.header.revision, names)

    async def disarm(self) -> None:
        """Clear all alarms, once their cause is gone."""
        alarms = await self._channels.call(_ALARM, _ALARM.request(action=ALARM_GET), 5.0)
        for alarm in alarms.alarms:
            request = _ALARM.request(action=ALARM_DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            await self._channels.call(_ALARM, request, 5.0)

    async def defragment(self, *, timeout_s: float = 60.0) -> None:
        """Give the free pages of the member that answers back to the disk; it serves nothing meanwhile."""
        await self._channels.call(_DEFRAGMENT, _DEFRAGMENT.request(), timeout_s)

    async def snapshot(self, *, timeout_s: float = 300.0) -> AsyncIterator[bytes]:
        """A backup in pieces, for `etcdctl snapshot restore`. Read it to the end or close it."""
        import grpc

        _, channel = self._channels.current()
        open_stream = channel.unary_stream(
            _SNAPSHOT.path,
            request_serializer=_SNAPSHOT.request.SerializeToString,
            response_deserializer=_SNAPSHOT.response.FromString,
        )
        call = open_stream(_SNAPSHOT.request(), timeout=timeout_s)
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                yield response.blob
        except grpc.aio.AioRpcError as err:
            raise NoAnswer(f"the backup broke off: {err.details()}") from err
        finally:
            call.cancel()

    async def members(self) -> tuple[Member, ...]:
        return _members(await self._channels.call(_MEMBER_LIST, _MEMBER_LIST.request(), 5.0))

    async def member_add(self, peer_url: str, *, learner: bool = True) -> Member:
        request = _MEMBER_ADD.request(peerURLs=[peer_url], isLearner=learner)
        return _member((await self._channels.call(_MEMBER_ADD, request, 5.0)).member)

    async def member_update(self, member_id: int, peer_url: str) -> None:
        request = _MEMBER_UPDATE.request(ID=member_id, peerURLs=[peer_url])
        await self._channels.call(_MEMBER_UPDATE, request, 5.0)

    async def member_promote(self, member_id: int) -> None:
        """Make a learner a voter. Internal or InvalidArgument until it is in sync: ask again."""
        await self._channels.call(_MEMBER_PROMOTE, _MEMBER_PROMOTE.request(ID=member_id), 5.0)

    async def member_remove(self, member_id: int) -> None:
        await self._channels.call(_MEMBER_REMOVE, _MEMBER_REMOVE.request(ID=member_id), 5.0)


def _compare(compare: Compare) -> Any:
    match compare:
        case CreatedAt(key, revision):
            return _COMPARE(target=TARGET_CREATE, key=key, create_revision=revision)
        case ModifiedAt(key, revision):
            return _COMPARE(target=TARGET_MOD, key=key, mod_revision=revision)
        case HasValue(key, value):
            return _COMPARE(target=TARGET_VALUE, key=key, value=value)


def _op(request: Request) -> Any:
    match request:
        case PutKey(key, value, lease):
            return _OP(request_put={"key": key, "value": value, "lease": lease})
        case DeleteKeys(key, end):
            return _OP(request_delete_range={"key": key, "range_end": end})
        case ReadKeys(key, end):
            return _OP(request_range={"key": key, "range_end": end})


def _members(answer: Any) -> tuple[Member, ...]:
    return tuple(_member(member) for member in answer.members)


def _member(member: Any) -> Member:
    return Member(member.ID, member.name, tuple(member.peerURLs), tuple(member.clientURLs), member.isLearner)
