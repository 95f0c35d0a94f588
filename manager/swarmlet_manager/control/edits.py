"""What a user's command makes of a record: pure, so that each rule can be tested by itself.

Rules and words are SwarmKit's control API (manager/controlapi): which version an update must name, what a
rollback swaps, what may not be changed.
"""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported, OutOfSequence, rpc_words
from swarmlet.model.cluster import Cluster, SwarmSpec
from swarmlet.model.node import Node, NodeSpec
from swarmlet.model.service import EndpointSpec, PortConfig, Service, ServiceSpec, UpdateStatus
from swarmlet.model.states import NodeState, Role
from swarmlet.swarm_spec import check_swarm_spec, raft_of


def new_service(
    service_id: str, spec: ServiceSpec, ports: tuple[PortConfig, ...], sealed_auth: bytes, now: int
) -> Service:
    """ports: the spec's, with numbers chosen where it left them open (`allocate.plan_ports`)."""
    return Service(id=service_id, spec=spec, ports=ports, created_at=now, updated_at=now, sealed_auth=sealed_auth)


def updated_service(
    service: Service, spec: ServiceSpec, ports: tuple[PortConfig, ...], sealed_auth: bytes, now: int
) -> Service:
    """The service with a new spec. The one it had becomes the previous one; an update's status starts anew.

    spec_version grows only if what tasks run differs, so scaling replaces no task. A job runs again with every
    update of its template (`docker service update --force`).
    """
    runs_differently = (_runs(spec), _on_hosts(ports)) != (_runs(service.spec), _on_hosts(service.ports))
    newest = max(service.spec_version, service.previous_spec_version)
    is_job = spec.mode.replicated_job is not None or spec.mode.global_job is not None
    return replace(
        service,
        spec=spec,
        ports=ports,
        spec_version=newest + 1 if runs_differently else service.spec_version,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        update_status=None,
        sealed_auth=sealed_auth,
        previous_sealed_auth=service.sealed_auth,
        job_iteration=service.job_iteration + (1 if is_job and runs_differently else 0),
        updated_at=now,
    )


def previous_spec(service: Service) -> ServiceSpec:
    """What a rollback goes back to. InvalidArgument if there is nothing."""
    if service.previous_spec is None:
        raise InvalidArgument(
            f"rpc error: code = FailedPrecondition desc = service {service.id} does not have a previous spec"
        )
    return service.previous_spec


def rolled_back_service(service: Service, ports: tuple[PortConfig, ...], now: int) -> Service:
    """The service with its previous spec, whose ports are given; a second rollback toggles back."""
    return replace(
        service,
        spec=previous_spec(service),
        ports=ports,
        spec_version=service.previous_spec_version,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        sealed_auth=service.previous_sealed_auth,
        previous_sealed_auth=service.sealed_auth,
        update_status=UpdateStatus(
            state="rollback_started", started_at=now, message="manually requested rollback"
        ),
        updated_at=now,
    )


def updated_node(node: Node, version: int, spec: NodeSpec, now: int, *, is_last_manager: bool = False) -> Node:
    """OutOfSequence for another version; NotSupported for a change of role, which needs a growing etcd."""
    if version != node.version:
        raise OutOfSequence
    if spec.role is not node.spec.role:
        if is_last_manager:
            words = "attempting to demote the last manager of the swarm"
            raise InvalidArgument(rpc_words(words, "FailedPrecondition"))
        raise NotSupported(
            f"node {node.id}: changing a node's role is not supported: join the host again with the token of the "
            f"role it should have"
        )
    return replace(node, spec=spec, updated_at=now)


def check_node_removal(node: Node, force: bool) -> None:
    """InvalidArgument unless the node is down (or force), and for a manager."""
    if node.spec.role is Role.MANAGER:
        raise InvalidArgument(
            f"rpc error: code = FailedPrecondition desc = node {node.id} is a cluster manager and is a member of the "
            "raft cluster. It must be demoted to worker before removal"
        )
    if not force and node.state is NodeState.READY:
        raise InvalidArgument(
            f"rpc error: code = FailedPrecondition desc = node {node.id} is not down and can't be removed"
        )


def updated_cluster(cluster: Cluster, version: int, spec: SwarmSpec, now: int) -> Cluster:
    """OutOfSequence for another version; InvalidArgument, NotSupported for a spec that cannot be honoured."""
    check_swarm_spec(spec)
    if version != cluster.version:
        raise OutOfSequence
    return replace(cluster, spec=replace(spec, raft=raft_of(spec.raft)), updated_at=now)


def _on_hosts(ports: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
    """Those that the tasks themselves publish: a label may have changed how."""
    return tuple(port for port in ports if port.publish_mode == "host")


def _runs(spec: ServiceSpec) -> object:
    """What a spec makes its tasks run: two equal values mean no task needs replacing."""
    endpoint = spec.endpoint_spec or EndpointSpec()
    # Clients send back what they were shown: the default by its name.
    return spec.task_template, spec.networks, replace(endpoint, mode=endpoint.mode or "vip")
