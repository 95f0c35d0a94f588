"""Whole clusters in virtual time: whatever happens on the way, services become what was asked for.

A failing seed is in the test's id; `pytest -k "seed-17"` repeats it exactly.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from decide_cluster import GIB, Cluster
from msgspec.structs import replace

from swarmlet.model.service import (
    ContainerSpec,
    EndpointSpec,
    GlobalMode,
    Placement,
    PlacementPreference,
    PortConfig,
    ReplicatedMode,
    Reservation,
    ResourceRequirements,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskRestartPolicy,
    TaskSpec,
    UpdateConfig,
)
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.model.times import NS

SEEDS = range(60)


def spec(
    name: str = "web",
    image: str = "good:1",
    count: int | None = 3,
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
    **template: object,
) -> ServiceSpec:
    """count None = global."""
    replicated = ServiceMode(replicated=ReplicatedMode(replicas=count))
    mode = ServiceMode(global_=GlobalMode()) if count is None else replicated
    return ServiceSpec(
        name=name,
        mode=mode,
        update_config=update,
        rollback_config=rollback,
        task_template=TaskSpec(container_spec=ContainerSpec(image=image), **template),
    )


def with_image(before: ServiceSpec, image: str) -> ServiceSpec:
    return replace(before, task_template=replace(before.task_template, container_spec=ContainerSpec(image=image)))


def with_count(before: ServiceSpec, count: int) -> ServiceSpec:
    return replace(before, mode=ServiceMode(replicated=ReplicatedMode(replicas=count)))


def random_spec(rng: random.Random, name: str) -> ServiceSpec:
    reserve = ResourceRequirements(reservations=Reservation(nano_cpus=NS // 4, memory_bytes=GIB // 4))
    placement = rng.choice(
        (
            None,
            Placement(constraints=("node.labels.zone == z0",)),
            Placement(preferences=(PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone")),)),
            Placement(constraints=("node.hostname != n2",)),
        )
    )
    return spec(
        name,
        count=rng.choice((None, 0, 1, 2, 3, 5)),
        update=rng.choice(
            (
                None,
                UpdateConfig(parallelism=0),
                UpdateConfig(parallelism=2, order="start-first"),
                UpdateConfig(parallelism=1, delay=NS, failure_action="continue"),
            )
        ),
        resources=rng.choice((None, reserve)),
        placement=placement,
        restart_policy=rng.choice((None, TaskRestartPolicy(condition="any", delay=NS // 2))),
    )


def something_happens(cluster: Cluster, rng: random.Random, step: int) -> None:
    """One thing that users or fate may do."""
    services = sorted(cluster.state.services)
    running = sorted(name for name, agent in cluster.agents.items() if agent.up and agent.linked)
    gone = sorted(set(cluster.agents) - set(running))
    service_id = rng.choice(services) if services else ""
    pending = service_id and cluster.state.services[service_id].pending_delete
    match rng.randrange(14):
        case 0 | 1:
            cluster.create(random_spec(rng, f"svc{step}"))
        case 2 | 3 if service_id and not pending:
            before = cluster.state.services[service_id].spec
            cluster.update(service_id, with_image(before, f"good:{rng.randrange(4)}"))
        case 4 | 5 if service_id and not pending:
            before = cluster.state.services[service_id].spec
            if before.mode.global_ is None:
                cluster.update(service_id, with_count(before, rng.randrange(6)))
        case 6 if service_id and not pending:
            cluster.remove(service_id)
        case 7 | 8:
            cluster.crash_one()
        case 9 if len(running) > 1:
            rng.choice((cluster.power_off, cluster.cut))(rng.choice(running))
        case 10 if gone:
            name = rng.choice(gone)
            cluster.power_on(name) if not cluster.agents[name].up else cluster.heal(name)
        case 11:
            name = rng.choice(sorted(cluster.agents))
            cluster.set_availability(name, rng.choice(list(Availability)))
        case 12:
            cluster.set_labels(rng.choice(sorted(cluster.agents)), {"zone": rng.choice(("z0", "z1"))})
        case 13:
            cluster.new_leader()


def all_is_well_again(cluster: Cluster) -> None:
    """Hosts up, linked and active, labels such that every constraint can be met, updates that had paused taken up."""
    for name, agent in sorted(cluster.agents.items()):
        if not agent.up:
            agent.linked = True
            cluster.power_on(name)
        elif not agent.linked:
            cluster.heal(name)
        cluster.set_availability(name, Availability.ACTIVE)
    cluster.set_labels("n0", {"zone": "z0"})
    cluster.run(0)
    for service in list(cluster.state.services.values()):
        if service.update_status is not None and service.update_status.state == "paused":
            cluster.update(service.id, service.spec)


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in SEEDS])
def test_a_cluster_becomes_what_was_asked_for_once_fate_leaves_it_alone(seed: int) -> None:
    cluster, rng = Cluster(seed, hosts=4), random.Random(~seed)
    for step in range(25):
        something_happens(cluster, rng, step)
        cluster.run(rng.choice((0.0, 0.05, 0.7, 4.0)))

    all_is_well_again(cluster)
    cluster.run(400)

    cluster.check_settled()


def test_tasks_of_a_lost_host_run_elsewhere_as_soon_as_it_is_known_to_be_down() -> None:
    cluster = Cluster(1)
    service = cluster.create(spec(count=6))
    cluster.run(10)
    cluster.power_off("n1")
    cluster.run(3.0)  # until then nobody knows
    assert cluster.state.nodes["n1"].state is NodeState.DOWN
    cluster.run(1.5)

    assert sorted(task.slot for task in cluster.serving(service)) == [1, 2, 3, 4, 5, 6]
    assert {task.node_id for task in cluster.serving(service)} == {"n0", "n2"}


def test_a_host_that_returns_is_rid_of_its_stale_tasks_and_gets_no_old_one_back() -> None:
    cluster = Cluster(2)
    service = cluster.create(spec(count=6))
    cluster.run(10)
    before = {task.id for task in cluster.serving(service)}
    cluster.cut("n1")
    cluster.run(20)
    assert any(container.alive for container in cluster.agents["n1"].containers.values())
    cluster.heal("n1")
    cluster.run(20)

    assert not any(container.alive for container in cluster.agents["n1"].containers.values())
    cluster.check_settled()
    assert len({task.id for task in cluster.serving(service)} - before) == 2


def test_a_stop_first_update_never_stops_more_than_its_parallelism() -> None:
    cluster = Cluster(3)
    service = cluster.create(spec(count=6, update=UpdateConfig(parallelism=2, delay=NS)))
    cluster.run(10)
    cluster.update(service, with_image(cluster.state.services[service].spec, "good:2"))
    least = 6
    for _ in range(400):
        cluster.run(0.05)
        least = min(least, len(cluster.serving(service)))

    assert least == 4
    cluster.check_settled()
    assert cluster.state.services[service].update_status.state == "completed"


def test_a_start_first_update_never_serves_with_less_than_all_replicas() -> None:
    cluster = Cluster(4)
    service = cluster.create(spec(count=4, update=UpdateConfig(parallelism=2, order="start-first")))
    cluster.run(10)
    cluster.update(service, with_image(cluster.state.services[service].spec, "good:2"))
    for _ in range(400):
        cluster.run(0.05)
        assert len(cluster.serving(service)) >= 4

    assert cluster.peak_active[service] == 6
    cluster.check_settled()


def test_a_broken_image_pauses_the_update_after_one_slot_and_the_rest_serves_on() -> None:
    cluster = Cluster(5)
    service = cluster.create(spec(count=4))
    cluster.run(10)
    cluster.update(service, with_image(cluster.state.services[service].spec, "missing:2"))
    cluster.run(60)

    status = cluster.state.services[service].update_status
    assert status.state == "paused" and status.message.startswith("update paused due to failure or early termination")
    assert len(cluster.serving(service)) == 3


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_a_crashing_image_is_rolled_back_to_where_it_was(order: str) -> None:
    cluster = Cluster(6)
    config = UpdateConfig(parallelism=1, failure_action="rollback", order=order, max_failure_ratio=0.3)
    first = spec(count=4, update=config, rollback=UpdateConfig(parallelism=0, order=order))
    service = cluster.create(first)
    cluster.run(10)
    cluster.update(service, with_image(first, "crash:2"))
    cluster.run(120)

    record = cluster.state.services[service]
    assert record.spec == first and record.update_status.state == "rollback_completed"
    assert record.update_status.message == "rollback completed"
    cluster.check_settled()


def test_a_service_on_a_lost_host_can_be_removed_and_its_containers_go_when_the_host_returns() -> None:
    cluster = Cluster(7)
    service = cluster.create(spec(count=3))
    cluster.run(10)
    cluster.cut("n1")
    cluster.run(10)
    cluster.remove(service)
    cluster.run(10)
    assert not cluster.state.services
    cluster.heal("n1")
    cluster.run(10)

    assert not cluster.state.tasks
    assert not any(agent.containers for agent in cluster.agents.values())


def test_a_host_port_lets_one_task_on_each_host_and_says_so_of_the_others() -> None:
    cluster = Cluster(8)
    ports = (PortConfig(target_port=80, published_port=8080, publish_mode="host"),)
    service = cluster.create(replace(spec(count=5), endpoint_spec=EndpointSpec(ports=ports)))
    cluster.run(10)

    waiting = [task for task in cluster.state.tasks.values() if task.status.state == TaskState.PENDING]
    assert len(cluster.serving(service)) == 3
    assert {task.status.err for task in waiting} == {"no suitable node (host-mode port already in use on 3 nodes)"}

    cluster.add_host("n9")
    cluster.run(10)
    assert len(cluster.serving(service)) == 4
    cluster.update(service, with_count(cluster.state.services[service].spec, 4))
    cluster.update(service, with_image(cluster.state.services[service].spec, "good:2"))
    cluster.run(120)
    serving = cluster.serving(service)
    assert len(serving) == 4 and {task.spec.container_spec.image for task in serving} == {"good:2"}


def test_a_crash_looping_task_comes_back_after_its_delay_and_no_more_often_than_allowed() -> None:
    cluster = Cluster(9)
    policy = TaskRestartPolicy(condition="on-failure", delay=2 * NS, max_attempts=3)
    service = cluster.create(spec(image="crash:1", count=1, restart_policy=policy))
    cluster.run(200)

    tasks = sorted(cluster.state.tasks_of_service(service), key=lambda task: task.created_at)
    assert len(tasks) == 4 and all(task.status.state == TaskState.FAILED for task in tasks)
    for before, after in pairwise(tasks):
        assert after.status.running_at - before.status.applied_at >= 2 * NS


def test_finished_work_is_not_done_twice_until_its_service_changes() -> None:
    cluster = Cluster(10)
    service = cluster.create(spec(image="once:1", count=2, restart_policy=TaskRestartPolicy(condition="on-failure")))
    cluster.run(60)
    assert [task.status.state for task in cluster.state.tasks_of_service(service)] == [TaskState.COMPLETE] * 2

    cluster.update(service, with_image(cluster.state.services[service].spec, "once:2"))
    cluster.run(120)

    done = [task for task in cluster.state.tasks_of_service(service) if "once:2" in task.spec.container_spec.image]
    assert done and all(task.status.state == TaskState.COMPLETE for task in done)
