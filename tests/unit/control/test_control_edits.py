"""What commands make of records."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported, OutOfSequence
from swarmlet.model.cluster import (
    CAConfig,
    Cluster,
    DispatcherSpec,
    EncryptionConfig,
    OrchestrationSpec,
    RaftSpec,
    SwarmSpec,
)
from swarmlet.model.node import Node, NodeSpec
from swarmlet.model.service import (
    ContainerSpec,
    EndpointSpec,
    PortConfig,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from swarmlet.model.states import Availability, NodeState, Role
from swarmlet_manager.control import edits


def spec(image: str = "a", replicas: int = 1, force: int = 0) -> ServiceSpec:
    return ServiceSpec(
        name="web", mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)),
        task_template=TaskSpec(container_spec=ContainerSpec(image=image), force_update=force),
    )


def updated(service: Service, new: ServiceSpec, auth: bytes = b"") -> Service:
    return edits.updated_service(service, new, (), auth, 2)


FIRST = edits.new_service("s", spec(), (), b"auth-1", 1)


def test_scaling_keeps_the_version_of_what_tasks_run() -> None:
    scaled = updated(FIRST, spec(replicas=9))
    assert scaled.spec_version == FIRST.spec_version
    assert scaled.previous_spec == FIRST.spec


def test_an_endpoint_that_is_sent_back_as_it_was_shown_replaces_no_task() -> None:
    """The docker command sends "vip" where nothing was said."""
    assert updated(FIRST, replace(spec(), endpoint_spec=EndpointSpec(mode="vip"))).spec_version == FIRST.spec_version
    other = updated(FIRST, replace(spec(), endpoint_spec=EndpointSpec(mode="dnsrr")))
    assert other.spec_version == FIRST.spec_version + 1


@pytest.mark.parametrize(("mode", "replaced"), [("ingress", False), ("host", True)])
def test_how_a_port_is_published_by_labels_replaces_tasks_that_publish_it_themselves(mode: str, replaced: bool) -> None:
    port = PortConfig(target_port=80, published_port=8080, publish_mode=mode)
    service = edits.new_service("s", spec(), (port,), b"", 1)
    after = edits.updated_service(service, spec(), (replace(port, host_ip="192.0.2.1"),), b"", 2)
    assert (after.spec_version != service.spec_version) is replaced


@pytest.mark.parametrize("new", [spec("b"), spec(force=1)])
def test_running_something_else_makes_a_new_version(new: ServiceSpec) -> None:
    assert updated(FIRST, new).spec_version == FIRST.spec_version + 1


def test_a_rollback_goes_back_and_a_second_one_forth_again() -> None:
    second = updated(FIRST, spec("b"), b"auth-2")
    back = edits.rolled_back_service(second, (), 3)
    assert (back.spec, back.spec_version, back.sealed_auth) == (FIRST.spec, FIRST.spec_version, b"auth-1")
    assert back.update_status is not None and back.update_status.state == "rollback_started"
    forth = edits.rolled_back_service(back, (), 4)
    assert (forth.spec, forth.spec_version, forth.sealed_auth) == (second.spec, second.spec_version, b"auth-2")


def test_a_version_is_never_used_for_two_specs_even_after_a_rollback() -> None:
    back = edits.rolled_back_service(updated(FIRST, spec("b")), (), 3)
    third = updated(back, spec("c"))
    assert third.spec_version not in (FIRST.spec_version, FIRST.spec_version + 1)


def test_there_must_be_something_to_go_back_to() -> None:
    with pytest.raises(InvalidArgument, match="does not have a previous spec"):
        edits.rolled_back_service(FIRST, (), 2)


def test_a_node_is_updated_at_its_own_version_and_keeps_its_role() -> None:
    node = Node(id="n", version=5)
    drained = NodeSpec(availability=Availability.DRAIN)
    assert edits.updated_node(node, 5, drained, 1).spec is drained
    with pytest.raises(OutOfSequence):
        edits.updated_node(node, 4, drained, 1)
    with pytest.raises(NotSupported, match="role"):
        edits.updated_node(node, 5, NodeSpec(role=Role.MANAGER), 1)


def test_only_a_worker_that_is_down_may_be_removed_without_force() -> None:
    up = Node(id="n", state=NodeState.READY)
    with pytest.raises(InvalidArgument, match="is not down"):
        edits.check_node_removal(up, False)
    edits.check_node_removal(up, True)
    edits.check_node_removal(replace(up, state=NodeState.DOWN), False)
    with pytest.raises(InvalidArgument, match="is a cluster manager"):
        edits.check_node_removal(replace(up, spec=NodeSpec(role=Role.MANAGER)), True)


@pytest.mark.parametrize(
    ("new", "error"),
    [
        (SwarmSpec(name="other"), InvalidArgument),
        (SwarmSpec(dispatcher=DispatcherSpec(heartbeat_period=0)), InvalidArgument),
        (SwarmSpec(ca_config=CAConfig(node_cert_expiry=1)), InvalidArgument),
        (SwarmSpec(ca_config=CAConfig(force_rotate=1)), NotSupported),
        (SwarmSpec(ca_config=CAConfig(signing_ca_cert="x")), NotSupported),
        (SwarmSpec(encryption_config=EncryptionConfig(auto_lock_managers=True)), NotSupported),
        (SwarmSpec(raft=RaftSpec(election_tick=-3)), InvalidArgument),
    ],
)
def test_a_cluster_spec_that_cannot_be_honoured_is_refused(new: SwarmSpec, error: type[Exception]) -> None:
    with pytest.raises(error):
        edits.updated_cluster(Cluster(id="c", version=1), 1, new, 1)


def test_a_cluster_is_updated_at_its_own_version() -> None:
    new = SwarmSpec(orchestration=OrchestrationSpec(task_history_retention_limit=2))
    assert edits.updated_cluster(Cluster(id="c", version=1), 1, new, 7).spec == new
    with pytest.raises(OutOfSequence):
        edits.updated_cluster(Cluster(id="c", version=2), 1, new, 7)


def test_numbers_of_raft_are_kept_and_zeros_stand_for_the_defaults() -> None:
    new = SwarmSpec(raft=RaftSpec(snapshot_interval=500, keep_old_snapshots=3, election_tick=0, heartbeat_tick=0))
    kept = edits.updated_cluster(Cluster(id="c", version=1), 1, new, 7).spec.raft
    assert kept == RaftSpec(snapshot_interval=500, keep_old_snapshots=3)
