"""Records, blocks and keys: what goes in comes out, shared where equal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.cluster import Cluster, SwarmSpec
from swarmlet.model.common import HealthConfig, Mount, TmpfsOptions, VolumeOptions
from swarmlet.model.network import NetworkAttachment
from swarmlet.model.node import Node, NodeDescription, NodeResources, NodeSpec
from swarmlet.model.service import (
    ContainerSpec,
    Placement,
    PlacementPreference,
    PortConfig,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskRestartPolicy,
    TaskSpec,
    UpdateStatus,
)
from swarmlet.model.states import Availability, NodeState, Role, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet_manager.store.codec import SpecPool, decode_block, decode_record, encode_block, encode_record, share_spec
from swarmlet_manager.store.keys import HASHED_BLOCKS, SLOTS_PER_BLOCK, BlockKey, Keys, RecordKey, block_of
from swarmlet_manager.store.kv import prefix_end

texts = st.text(max_size=12)
numbers = st.integers(min_value=0, max_value=2**63 - 1)
labels = st.dictionaries(texts, texts, max_size=3)
many_texts = st.lists(texts, max_size=3).map(tuple)
ports = st.lists(
    st.builds(
        PortConfig,
        name=texts,
        protocol=st.sampled_from(["tcp", "udp"]),
        target_port=st.integers(0, 65535),
        published_port=st.integers(0, 65535),
        publish_mode=st.sampled_from(["host", "ingress"]),
    ),
    max_size=2,
).map(tuple)
mounts = st.builds(
    Mount,
    target=texts,
    type=st.sampled_from(["bind", "volume", "tmpfs"]),
    volume_options=st.none() | st.builds(VolumeOptions, labels=labels),
    tmpfs_options=st.none() | st.builds(TmpfsOptions, size_bytes=numbers),
)
specs = st.builds(
    TaskSpec,
    container_spec=st.none()
    | st.builds(
        ContainerSpec,
        image=texts,
        env=many_texts,
        labels=labels,
        args=many_texts,
        mounts=st.lists(mounts, max_size=2).map(tuple),
        stop_grace_period=st.none() | numbers,
        init=st.none() | st.booleans(),
        healthcheck=st.none() | st.builds(HealthConfig, test=many_texts, interval=numbers),
    ),
    plugin_spec=st.none() | st.dictionaries(texts, st.none() | texts | numbers, max_size=2),
    restart_policy=st.none() | st.builds(TaskRestartPolicy, condition=texts, delay=st.none() | numbers),
    placement=st.none()
    | st.builds(
        Placement,
        constraints=many_texts,
        preferences=st.lists(
            st.builds(PlacementPreference, spread=st.builds(SpreadOver, spread_descriptor=texts)), max_size=1
        ).map(tuple),
    ),
    force_update=numbers,
)
statuses = st.builds(
    TaskStatus,
    state=st.sampled_from(TaskState),
    at=numbers,
    message=texts,
    err=texts,
    container_id=texts,
    pid=numbers,
    exit_code=st.integers(-128, 255),
    ports=ports,
    running_at=numbers,
    applied_at=numbers,
)


@st.composite
def blocks(draw: st.DrawFn) -> list[Task]:
    """Tasks of one service, some of which share a spec (as one object or as equal ones)."""
    choices = draw(st.lists(specs, min_size=1, max_size=3))
    tasks = []
    for ident in draw(st.lists(st.text("abcdef", min_size=1, max_size=4), unique=True, max_size=8)):
        spec = draw(st.sampled_from(choices))
        if draw(st.booleans()):
            spec = msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=TaskSpec)
        tasks.append(
            Task(
                id=ident,
                service_id="service",
                service_name=draw(st.sampled_from(["web", "db"])),
                slot=draw(st.integers(0, 63)),
                node_id=draw(texts),
                spec=spec,
                spec_version=draw(st.integers(0, 2)),
                ports=draw(ports),
                desired_state=draw(st.sampled_from(TaskState)),
                status=draw(statuses),
                created_at=draw(numbers),
                updated_at=draw(numbers),
                version=draw(numbers),
                job_iteration=draw(st.integers(0, 2)),
                not_before=draw(numbers),
                by_update=draw(st.booleans()),
            )
        )
    return tasks


@given(blocks())
def test_a_block_comes_back_as_it_was(tasks: list[Task]) -> None:
    assert decode_block("service", encode_block(tasks), SpecPool()) == {task.id: task for task in tasks}


@given(blocks(), st.randoms(use_true_random=False))
def test_a_block_does_not_depend_on_the_order_of_its_tasks(tasks: list[Task], rng: Any) -> None:
    shuffled = list(tasks)
    rng.shuffle(shuffled)
    assert encode_block(shuffled) == encode_block(tasks)


@given(blocks())
def test_equal_specs_are_one_object_after_loading_also_across_blocks(tasks: list[Task]) -> None:
    pool = SpecPool()
    loaded = [
        *decode_block("service", encode_block(tasks), pool).values(),
        *decode_block("service", encode_block(tasks[:2]), pool).values(),
    ]
    encoded = {msgspec.msgpack.encode(task.spec) for task in loaded}
    assert len({id(task.spec) for task in loaded}) == len(encoded)


@given(blocks())
def test_a_known_task_of_the_same_version_is_kept_and_another_is_read(tasks: list[Task]) -> None:
    known = {task.id: task for task in tasks}
    again = decode_block("service", encode_block(tasks), SpecPool(), known)
    assert all(again[ident] is task for ident, task in known.items())
    older = {ident: msgspec.structs.replace(task, version=task.version + 1) for ident, task in known.items()}
    assert decode_block("service", encode_block(tasks), SpecPool(), older) == known


def test_every_field_of_a_task_is_stored() -> None:
    """Blocks name fields one by one: whoever adds one to the model must add it to the codec."""
    stored = decode_block("s", encode_block([_full_task()]), SpecPool())["t"]
    assert stored.networks == _full_task().networks
    for record, default in ((stored, Task(id="", service_id="", spec=TaskSpec())), (stored.status, TaskStatus())):
        for field in record.__struct_fields__:
            assert getattr(record, field) != getattr(default, field), f"{field} is not stored"


def _full_task() -> Task:
    port = (PortConfig(target_port=80),)
    fields = {field.name: field.name for field in msgspec.structs.fields(NetworkAttachment)}
    place = (NetworkAttachment(**fields),)
    values: dict[str, Any] = {
        "spec": TaskSpec(force_update=1), "desired_state": TaskState.SHUTDOWN, "ports": port, "networks": place,
    }
    status_values: dict[str, Any] = {"state": TaskState.FAILED, "ports": port}
    for kind, given_values in ((Task, values), (TaskStatus, status_values)):
        for field in msgspec.structs.fields(kind):
            if field.name not in given_values and field.name != "status":
                given_values[field.name] = {int: 7, str: "x", bool: True}[field.type]
    values |= {"id": "t", "service_id": "s", "status": TaskStatus(**status_values)}
    return Task(**values)


@given(
    st.builds(
        Node,
        id=texts,
        spec=st.builds(NodeSpec, labels=labels, role=st.sampled_from(Role), availability=st.sampled_from(Availability)),
        description=st.builds(
            NodeDescription, hostname=texts, resources=st.builds(NodeResources, nano_cpus=numbers, memory_bytes=numbers)
        ),
        state=st.sampled_from(NodeState),
        version=numbers,
    )
)
def test_a_node_comes_back_as_it_was(node: Node) -> None:
    assert decode_record(Node, encode_record(node)) == node


@given(
    st.builds(
        Service,
        id=texts,
        spec=st.builds(
            ServiceSpec,
            name=texts,
            labels=labels,
            task_template=specs,
            mode=st.builds(
                ServiceMode, replicated=st.none() | st.builds(ReplicatedMode, replicas=st.none() | numbers)
            ),
        ),
        previous_spec=st.none() | st.builds(ServiceSpec, name=texts),
        update_status=st.none() | st.builds(UpdateStatus, state=texts, started_at=numbers),
        pending_delete=st.booleans(),
        ports=ports,
        version=numbers,
    )
)
def test_a_service_comes_back_as_it_was(service: Service) -> None:
    assert decode_record(Service, encode_record(service)) == service


@given(st.builds(Cluster, id=texts, spec=st.builds(SwarmSpec, labels=labels), worker_token=texts, version=numbers))
def test_a_cluster_comes_back_as_it_was(cluster: Cluster) -> None:
    assert decode_record(Cluster, encode_record(cluster)) == cluster


def test_tasks_share_the_spec_of_their_service() -> None:
    service = Service(id="s", spec=ServiceSpec(task_template=TaskSpec(container_spec=ContainerSpec(image="a"))))
    task = Task(id="t", service_id="s", slot=1, spec=TaskSpec(container_spec=ContainerSpec(image="a")))
    pool = SpecPool()
    share_spec(service, pool)
    assert decode_block("s", encode_block([task]), pool)["t"].spec is service.spec.task_template


def test_the_pool_of_specs_stays_small() -> None:
    pool = SpecPool(size=2)
    raws = [msgspec.msgpack.encode(TaskSpec(force_update=number)) for number in range(3)]
    first = pool.get(raws[0])
    assert pool.get(raws[0]) is first
    pool.get(raws[1])
    pool.get(raws[2])
    assert pool.get(raws[0]) is not first
    assert pool.get(raws[0]) == first


@pytest.mark.parametrize("damage", [b"", b"\xc1", msgspec.msgpack.encode([1, [], [["t", 3]]])])
def test_damaged_bytes_are_reported_not_guessed_at(damage: bytes) -> None:
    with pytest.raises(Internal):
        decode_block("s", damage, SpecPool())
    with pytest.raises(Internal):
        decode_record(Node, damage)


def test_a_block_that_points_to_a_missing_head_is_damaged() -> None:
    good = msgspec.msgpack.decode(encode_block([_full_task()]))
    good[2][0][1] = 5
    with pytest.raises(Internal):
        decode_block("s", msgspec.msgpack.encode(good), SpecPool())


@given(st.integers(1, 10**6), st.text("abc019", min_size=1, max_size=25))
def test_a_task_stays_in_its_block_whatever_changes(slot: int, ident: str) -> None:
    for where in (slot, 0):
        task = Task(id=ident, service_id="s", slot=where, spec=TaskSpec())
        later = msgspec.structs.replace(
            task, node_id="n", version=9, desired_state=TaskState.REMOVE, status=TaskStatus(state=TaskState.FAILED)
        )
        assert block_of(task) == block_of(later)


def test_blocks_hold_as_many_slots_as_they_should() -> None:
    tasks = [Task(id=str(slot), service_id="s", slot=slot, spec=TaskSpec()) for slot in range(1, 1001)]
    assert len({block_of(task) for task in tasks}) == -(-1001 // SLOTS_PER_BLOCK)
    everywhere = [Task(id=str(number), service_id="s", spec=TaskSpec()) for number in range(5000)]
    assert len({block_of(task) for task in everywhere}) == HASHED_BLOCKS


@given(st.text("abc019", min_size=1), st.sampled_from([b"/swarmlet/", b"/x/y/"]))
def test_keys_are_read_back_as_what_they_name(ident: str, prefix: bytes) -> None:
    keys = Keys(prefix)
    assert keys.parse(keys.of_record(Node(id=ident))) == RecordKey(Node, ident)
    assert keys.parse(keys.of_record(Service(id=ident, spec=ServiceSpec()))) == RecordKey(Service, ident)
    assert keys.parse(keys.of_record(Cluster(id=ident))) == RecordKey(Cluster, "")
    block = block_of(Task(id=ident, service_id=ident, slot=70, spec=TaskSpec()))
    assert keys.parse(keys.of_block(block)) == block == BlockKey(ident, "s000001")
    assert all(keys.parse(own) is None for own in (keys.schema, keys.leader, keys.wseq, prefix + b"later/x"))


@pytest.mark.parametrize("ident", ["", "a/b", "/"])
def test_an_id_that_would_name_another_key_is_refused(ident: str) -> None:
    with pytest.raises(InvalidArgument):
        Keys().of_record(Node(id=ident))


@given(st.binary(min_size=1, max_size=4), st.binary(max_size=4))
def test_a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: bytes, other: bytes) -> None:
    end = prefix_end(prefix)

    def within(key: bytes) -> bool:
        return key >= prefix and (end == b"\0" or key < end)

    assert within(prefix + other)
    assert within(other) == other.startswith(prefix) or end == b"\0"
