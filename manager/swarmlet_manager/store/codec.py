"""Records to bytes and back: MessagePack by msgspec.

Cluster, node and service records are maps by field name, so a field may be added with a default. Tasks are
packed: a block is an array of tasks, each an array of its own values, that point into a table of what they
share (spec, spec version, service name, ports). Arrays only ever grow at the end; SCHEMA counts changes that
an older program would misread.

Loading shares what is equal: tasks of one spec hold one TaskSpec object, also across blocks, and node ids and
messages are interned. That keeps 100,000 tasks near 1 kB each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from sys import intern
from typing import TypeVar

import msgspec

from swarmlet.errors import Internal
from swarmlet.model.cluster import Cluster
from swarmlet.model.dependency import Config, Secret
from swarmlet.model.network import Lease, Network, NetworkAttachment
from swarmlet.model.node import Node
from swarmlet.model.service import PortConfig, Service, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus

#: The number of this layout. A store with a higher one is refused.
SCHEMA = 1

Whole = Cluster | Config | Lease | Network | Node | Secret | Service
_Whole = TypeVar("_Whole", Cluster, Config, Lease, Network, Node, Secret, Service)


class _Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What tasks made from one version of a service share."""

    service_name: str
    spec_version: int
    spec: msgspec.Raw
    ports: tuple[PortConfig, ...] = ()
    job_iteration: int = 0


class _PackedTask(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A task's own fields, then its status's. A new one goes to the end, with a default."""

    id: str
    head: int
    slot: int
    node_id: str
    desired_state: int
    created_at: int
    updated_at: int
    version: int
    state: int
    at: int
    message: str
    err: str
    container_id: str
    pid: int
    exit_code: int
    status_ports: tuple[PortConfig, ...]
    running_at: int
    applied_at: int
    not_before: int
    by_update: bool
    networks: tuple[tuple[str, ...], ...] = ()  # network, address; then, "" or left out, MAC and IPv6 address
    unhealthy: bool = False


class _Block(msgspec.Struct, array_like=True, frozen=True, gc=False):
    schema: int
    heads: list[_Head]
    tasks: list[_PackedTask]


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[Whole]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Cluster, Config, Lease, Network, Node, Secret, Service)
}
_block_decoder = msgspec.msgpack.Decoder(_Block)
_spec_decoder = msgspec.msgpack.Decoder(TaskSpec)
_STATES = {int(state): state for state in TaskState}


class SpecPool:
    """Task specs by their bytes, the latest `size` of them: equal specs become one object.

    Bounded, so that years of updates do not pile up here; a spec that fell out costs memory, not truth.
    """

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._specs: OrderedDict[bytes, TaskSpec] = OrderedDict()

    def get(self, raw: bytes) -> TaskSpec:
        spec = self._specs.get(raw)
        if spec is None:
            spec = _spec_decoder.decode(raw)
            self.add(raw, spec)
        else:
            self._specs.move_to_end(raw)
        return spec

    def add(self, raw: bytes, spec: TaskSpec) -> None:
        self._specs[raw] = spec
        if len(self._specs) > self._size:
            self._specs.popitem(last=False)


def encode_record(record: Whole) -> bytes:
    return _encoder.encode(record)


def decode_record(kind: type[_Whole], value: bytes) -> _Whole:
    """Internal if the bytes are not such a record: the store is damaged or from another program."""
    try:
        record = _decoders[kind].decode(value)
    except msgspec.MsgspecError as err:
        raise Internal(f"a stored {kind.__name__.lower()} record cannot be read: {err}") from err
    assert isinstance(record, kind)
    return record


def share_spec(service: Service, pool: SpecPool) -> None:
    """Let tasks that are decoded later hold the spec object of this service record."""
    spec = service.spec.task_template
    pool.add(_encoder.encode(spec), spec)


def encode_block(tasks: Iterable[Task]) -> bytes:
    """Tasks of one service, ordered by slot and id so that equal blocks are equal bytes."""
    heads: list[_Head] = []
    by_object: dict[tuple[object, ...], int] = {}
    by_bytes: dict[tuple[object, ...], int] = {}
    packed = []
    for task in sorted(tasks, key=_order):
        # Comparing specs by identity spares encoding one per task; equal specs of different identity meet below.
        key = (id(task.spec), task.spec_version, task.service_name, task.ports, task.job_iteration)
        head = by_object.get(key)
        if head is None:
            spec = _encoder.encode(task.spec)
            head = by_bytes.setdefault((spec, *key[1:]), len(heads))
            if head == len(heads):
                raw = msgspec.Raw(spec)
                heads.append(_Head(task.service_name, task.spec_version, raw, task.ports, task.job_iteration))
            by_object[key] = head
        packed.append(_pack(task, head))
    return _encoder.encode(_Block(SCHEMA, heads, packed))


def decode_block(
    service_id: str, value: bytes, pool: SpecPool, known: Mapping[str, Task] | None = None
) -> dict[str, Task]:
    """Tasks by id. Those in `known` that have the same version are taken from there instead of built anew."""
    try:
        block = _block_decoder.decode(value)
        specs = [pool.get(bytes(head.spec)) for head in block.heads]
        return _unpack_block(intern(service_id), block, specs, known or {})
    except (msgspec.MsgspecError, LookupError) as err:
        raise Internal(f"stored tasks of service {service_id} cannot be read: {err!r}") from err


def _unpack_block(
    service_id: str, block: _Block, specs: list[TaskSpec], known: Mapping[str, Task]
) -> dict[str, Task]:
    tasks = {}
    for packed in block.tasks:
        old = known.get(packed.id)
        if old is not None and old.version == packed.version:
            tasks[old.id] = old
        else:
            tasks[packed.id] = _unpack(service_id, packed, block.heads[packed.head], specs[packed.head])
    return tasks


def _order(task: Task) -> tuple[int, str]:
    return task.slot, task.id


def _pack(task: Task, head: int) -> _PackedTask:
    status = task.status
    return _PackedTask(
        task.id,
        head,
        task.slot,
        task.node_id,
        task.desired_state,
        task.created_at,
        task.updated_at,
        task.version,
        status.state,
        status.at,
        status.message,
        status.err,
        status.container_id,
        status.pid,
        status.exit_code,
        status.ports,
        status.running_at,
        status.applied_at,
        task.not_before,
        task.by_update,
        tuple(_packed_place(place) for place in task.networks),
        status.unhealthy,
    )


def _unpack(service_id: str, packed: _PackedTask, head: _Head, spec: TaskSpec) -> Task:
    status = TaskStatus(
        state=_STATES[packed.state],
        at=packed.at,
        message=intern(packed.message),
        err=intern(packed.err),
        container_id=packed.container_id,
        pid=packed.pid,
        exit_code=packed.exit_code,
        ports=packed.status_ports,
        running_at=packed.running_at,
        applied_at=packed.applied_at,
        unhealthy=packed.unhealthy,
    )
    return Task(
        id=packed.id,
        service_id=service_id,
        service_name=intern(head.service_name),
        slot=packed.slot,
        node_id=intern(packed.node_id),
        spec=spec,
        spec_version=head.spec_version,
        ports=head.ports,
        desired_state=_STATES[packed.desired_state],
        status=status,
        created_at=packed.created_at,
        updated_at=packed.updated_at,
        version=packed.version,
        job_iteration=head.job_iteration,
        not_before=packed.not_before,
        by_update=packed.by_update,
        networks=tuple(_place(*packed_place) for packed_place in packed.networks),
    )


def _packed_place(place: NetworkAttachment) -> tuple[str, ...]:
    if place.address6:
        return place.network_id, place.address, place.mac, place.address6
    return (place.network_id, place.address, place.mac) if place.mac else (place.network_id, place.address)


def _place(network_id: str, address: str, mac: str = "", address6: str = "") -> NetworkAttachment:
    return NetworkAttachment(network_id=intern(network_id), address=address, mac=mac, address6=address6)
