"""The messages of etcd's API (3.4 and later), built at import from a table: no generated code, no protoc.

They live in a descriptor pool of their own, so they meet nobody else's. Only names of messages and numbers
and kinds of fields matter on the wire; enumerations are plain int32, and a oneof of messages needs no
declaration. In Compare an absent number means 0 to etcd, which is what is meant.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TABLE = """
ResponseHeader cluster_id:uint64=1 member_id:uint64=2 revision:int64=3 raft_term:uint64=4
KeyValue key:bytes=1 create_revision:int64=2 mod_revision:int64=3 version:int64=4 value:bytes=5 lease:int64=6
Event type:int32=1 kv:KeyValue=2 prev_kv:KeyValue=3
RangeRequest key:bytes=1 range_end:bytes=2 limit:int64=3 revision:int64=4 serializable:bool=7 keys_only:bool=8
RangeResponse header:ResponseHeader=1 kvs:*KeyValue=2 more:bool=3 count:int64=4
PutRequest key:bytes=1 value:bytes=2 lease:int64=3
PutResponse header:ResponseHeader=1
DeleteRangeRequest key:bytes=1 range_end:bytes=2
DeleteRangeResponse header:ResponseHeader=1 deleted:int64=2
Compare result:int32=1 target:int32=2 key:bytes=3 version:int64=4 create_revision:int64=5 mod_revision:int64=6
  value:bytes=7
RequestOp request_range:RangeRequest=1 request_put:PutRequest=2 request_delete_range:DeleteRangeRequest=3
ResponseOp response_range:RangeResponse=1 response_put:PutResponse=2 response_delete_range:DeleteRangeResponse=3
TxnRequest compare:*Compare=1 success:*RequestOp=2 failure:*RequestOp=3
TxnResponse header:ResponseHeader=1 succeeded:bool=2 responses:*ResponseOp=3
CompactionRequest revision:int64=1 physical:bool=2
CompactionResponse header:ResponseHeader=1
WatchCreateRequest key:bytes=1 range_end:bytes=2 start_revision:int64=3 progress_notify:bool=4
WatchProgressRequest
WatchRequest create_request:WatchCreateRequest=1 progress_request:WatchProgressRequest=3
WatchResponse header:ResponseHeader=1 watch_id:int64=2 created:bool=3 canceled:bool=4 compact_revision:int64=5
  cancel_reason:string=6 fragment:bool=7 events:*Event=11
LeaseGrantRequest TTL:int64=1 ID:int64=2
LeaseGrantResponse header:ResponseHeader=1 ID:int64=2 TTL:int64=3 error:string=4
LeaseRevokeRequest ID:int64=1
LeaseRevokeResponse header:ResponseHeader=1
LeaseKeepAliveRequest ID:int64=1
LeaseKeepAliveResponse header:ResponseHeader=1 ID:int64=2 TTL:int64=3
StatusRequest
StatusResponse header:ResponseHeader=1 version:string=2 dbSize:int64=3 leader:uint64=4 raftIndex:uint64=5
  raftTerm:uint64=6 raftAppliedIndex:uint64=7 errors:*string=8 dbSizeInUse:int64=9 isLearner:bool=10
AlarmRequest action:int32=1 memberID:uint64=2 alarm:int32=3
AlarmMember memberID:uint64=1 alarm:int32=2
AlarmResponse header:ResponseHeader=1 alarms:*AlarmMember=2
DefragmentRequest
DefragmentResponse header:ResponseHeader=1
SnapshotRequest
SnapshotResponse header:ResponseHeader=1 remaining_bytes:uint64=2 blob:bytes=3
Member ID:uint64=1 name:string=2 peerURLs:*string=3 clientURLs:*string=4 isLearner:bool=5
MemberListRequest linearizable:bool=1
MemberListResponse header:ResponseHeader=1 members:*Member=2
MemberAddRequest peerURLs:*string=1 isLearner:bool=2
MemberAddResponse header:ResponseHeader=1 member:Member=2 members:*Member=3
MemberRemoveRequest ID:uint64=1
MemberRemoveResponse header:ResponseHeader=1 members:*Member=2
MemberUpdateRequest ID:uint64=1 peerURLs:*string=2
MemberUpdateResponse header:ResponseHeader=1 members:*Member=2
MemberPromoteRequest ID:uint64=1
MemberPromoteResponse header:ResponseHeader=1 members:*Member=2
"""

#: Compare.target; Compare.result 0 is "equal".
TARGET_CREATE, TARGET_MOD, TARGET_VALUE = 1, 2, 3
#: Event.type
EVENT_DELETE = 1
#: AlarmRequest.action
ALARM_GET, ALARM_DEACTIVATE = 0, 2
#: As they appear in StatusResponse.errors.
ALARM_NAMES = ("NOSPACE", "CORRUPT")

_PACKAGE = "etcdserverpb"
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bytes": _FIELD.TYPE_BYTES,
    "string": _FIELD.TYPE_STRING,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint64": _FIELD.TYPE_UINT64,
}


def _build() -> dict[str, Any]:
    """Message classes by name."""
    file = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package=_PACKAGE, syntax="proto3")
    for line in _TABLE.strip().replace("\n  ", " ").splitlines():  # indented: the line before goes on
        name, *fields = line.split()
        message = file.message_type.add(name=name)
        for text in fields:
            field, _, rest = text.partition(":")
            kind, _, number = rest.partition("=")
            label = _FIELD.LABEL_REPEATED if kind.startswith("*") else _FIELD.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            added = message.field.add(name=field, number=int(number), label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}"))
        for message in file.message_type
    }


_CLASSES = _build()


def message(name: str) -> Any:
    """The class of a message. Typed Any: it is made at run time, and never leaves this package."""
    return _CLASSES[name]
