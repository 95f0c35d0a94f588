"""A manager and three agents in one process, over real TLS WebSockets: what a cluster must do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes.control_world import (
    by_node,
    cluster,
    join_agent,
    running,
    service_spec,
    start_manager,
    tasks_in,
    until,
)
from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound, OutOfSequence
from swarmlet.model.container import ContainerCreate
from swarmlet.model.service import ReplicatedMode, ServiceMode, TaskRestartPolicy
from swarmlet.model.states import Availability, NodeState, TaskState
from swarmlet.wire.messages import ContainerRef
from swarmlet_agent.session.identity import join


async def test_a_service_runs_spread_over_all_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, manager, agents):
        await manager.control.create_service(service_spec(replicas=6))
        await until(lambda: len(running(manager)) == 6)
        assert set(by_node(running(manager)).values()) == {2}
        assert all(len(agent.engine.list()) == 2 for agent in agents)
        task = running(manager)[0]
        assert task.status.container_id and task.status.running_at and task.status.pid == 4711


async def test_scaling_down_removes_containers_and_task_records(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, manager, agents):
        service = await manager.control.create_service(service_spec(replicas=6))
        await until(lambda: len(running(manager)) == 6)
        service = manager.control.service(service.id)
        smaller = replace(service.spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=2)))
        await manager.control.update_service("web", service.version, smaller)
        await until(lambda: len(manager.store.state.tasks) == 2)
        await until(lambda: sum(len(agent.engine.list()) for agent in agents) == 2)


async def test_a_removed_service_leaves_nothing_and_its_name_is_free_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, manager, agents):
        await manager.control.create_service(service_spec(replicas=3))
        await until(lambda: len(running(manager)) == 3)
        await manager.control.remove_service("web")
        with pytest.raises(NotFound):
            manager.control.service("web")
        again = await manager.control.create_service(service_spec(replicas=1))
        await until(lambda: [task.service_id for task in manager.store.state.tasks.values()] == [again.id])
        await until(lambda: len(manager.store.state.services) == 1 and len(running(manager)) == 1)
        await until(lambda: sum(len(agent.engine.list()) for agent in agents) == 1)


async def test_a_container_that_exits_is_replaced_and_its_exit_code_kept(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, [agent]):
        spec = service_spec()
        template = replace(spec.task_template, restart_policy=_restart_at_once())
        await manager.control.create_service(replace(spec, task_template=template))
        await until(lambda: running(manager))
        agent.engine.exit(agent.engine.list()[0].name, 3)
        await until(lambda: tasks_in(manager, TaskState.FAILED))
        [failed] = tasks_in(manager, TaskState.FAILED)
        assert (failed.status.exit_code, failed.status.err) == (3, "task: non-zero exit (3)")
        await until(lambda: running(manager))


async def test_a_lost_nodes_tasks_run_elsewhere_and_it_cleans_up_when_it_returns(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, manager, agents):
        await manager.control.create_service(service_spec(replicas=6))
        await until(lambda: len(running(manager)) == 6)
        lost = agents[0]
        await lost.stop()
        # By the period of this cluster: by the default one it would be known after 15 s.
        await until(lambda: manager.control.node(lost.node_id).state is NodeState.DOWN, 10)
        await until(lambda: sum(task.node_id != lost.node_id for task in running(manager)) == 6)
        assert len(lost.engine.list()) == 2
        await lost.start((manager.address,))
        await until(lambda: not any(container.is_running for container in lost.engine.list()))
        await until(lambda: manager.control.node(lost.node_id).state is NodeState.READY)


async def test_a_new_manager_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (etcd, manager, agents):
        await manager.control.create_service(service_spec(replicas=3))
        await until(lambda: len(running(manager)) == 3)
        created = [name for agent in agents for name in agent.engine.created]
        port = int(manager.address.rpartition(":")[2])
        await manager.stop()
        finished = agents[0].engine.list()[0].name
        agents[0].engine.exit(finished, 0)  # while nobody is there to hear of it
        successor = await start_manager(etcd, port, "m2")
        try:
            await until(lambda: len(successor.dispatcher.connected) == 3)
            await until(lambda: tasks_in(successor, TaskState.COMPLETE))
            now = [name for agent in agents for name in agent.engine.created]
            assert {now.count(name) for name in created} == {1}  # nothing was made anew
            assert all(node.state is NodeState.READY for node in successor.control.nodes())
            others = [name for name in created if name != finished]
            assert {task.name for task in running(successor)} >= set(others)
        finally:
            await successor.stop()


async def test_draining_a_node_moves_its_tasks(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, manager, agents):
        await manager.control.create_service(service_spec(replicas=3))
        await until(lambda: len(running(manager)) == 3)
        node = manager.control.node(agents[0].node_id)
        await manager.control.update_node(node.id, node.version, replace(node.spec, availability=Availability.DRAIN))
        await until(lambda: len(running(manager)) == 3 and node.id not in by_node(running(manager)))
        assert not any(container.is_running for container in agents[0].engine.list())


async def test_an_agent_restart_adopts_containers_and_reports_what_it_missed(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, agents):
        await manager.control.create_service(service_spec(replicas=2))
        await until(lambda: len(running(manager)) == 2)
        agent = agents[0]
        await agent.stop()
        name = agent.engine.list()[0].name
        agent.engine.exit(name, 7)
        await agent.start((manager.address,))
        await until(lambda: any(task.status.exit_code == 7 for task in manager.store.state.tasks.values()))
        assert agent.engine.created.count(name) == 1


async def test_an_image_that_cannot_be_pulled_is_said_in_the_tasks_error(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, [agent]):
        agent.images.error = NotFound("image", "nope:1", "manifest unknown")
        await manager.control.create_service(service_spec(image="nope:1"))
        await until(lambda: tasks_in(manager, TaskState.REJECTED))
        assert "No such image: nope:1" in tasks_in(manager, TaskState.REJECTED)[0].status.err


async def test_registry_credentials_reach_the_agent_and_are_sealed_in_the_record(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, [agent]):
        encoded = "eyJ1c2VybmFtZSI6ImFubmEiLCJwYXNzd29yZCI6InNlc2FtZSJ9"
        service = await manager.control.create_service(service_spec(image="private:1"), encoded)
        await until(lambda: running(manager))
        [(ref, auth)] = agent.images.pulls
        assert ref == "private:1" and auth is not None
        assert (auth.username, auth.password) == ("anna", "sesame")
        assert encoded not in repr(service) and "sesame" not in repr(service)
        assert encoded.encode() not in service.sealed_auth


async def test_containers_are_located_by_name_and_id_as_they_come_and_go(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, agents):
        agent = agents[1]
        container, _ = await agent.engine.create("lonely", ContainerCreate(image="busybox"))
        assert agent.session is not None
        agent.session.container_changed(ContainerRef(id=container.id, name="lonely"))
        await until(lambda: manager.dispatcher.container_count(agent.node_id) == 1)
        for ref in ("lonely", "/lonely", container.id, container.id[:5]):
            assert manager.control.locate_container(ref) == agent.node_id
        await agent.engine.remove("lonely")
        agent.session.container_removed(container.id)
        await until(lambda: manager.dispatcher.container_count(agent.node_id) == 0)
        with pytest.raises(NotFound):
            manager.control.locate_container("lonely")


async def test_a_removed_node_is_cut_off_and_ends_its_tasks(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, agents):
        await manager.control.create_service(service_spec(replicas=2))
        await until(lambda: len(running(manager)) == 2)
        gone = agents[0]
        with pytest.raises(InvalidArgument, match="is not down"):
            await manager.control.remove_node(gone.node_id)
        await manager.control.remove_node(gone.node_id, force=True)
        await until(lambda: gone.removed)
        await until(lambda: not gone.engine.list())
        await until(lambda: by_node(running(manager)) == {agents[1].node_id: 2})


async def test_names_and_versions_are_guarded(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        service = await manager.control.create_service(service_spec())
        with pytest.raises(Conflict, match="service web already exists"):
            await manager.control.create_service(service_spec())
        with pytest.raises(OutOfSequence, match="update out of sequence"):
            await manager.control.update_service("web", service.version + 1, service.spec)
        answers = await asyncio.gather(
            *(manager.control.create_service(service_spec("twin")) for _ in range(4)), return_exceptions=True
        )
        assert sum(isinstance(answer, Conflict) for answer in answers) == 3
        unnamed = await manager.control.create_service(service_spec(""))
        assert manager.control.service(unnamed.spec.name).id == unnamed.id


async def test_only_a_valid_token_of_the_very_cluster_joins(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        token = manager.control.join_tokens().worker
        wrong_secret = token[:-25] + "0" * 25
        with pytest.raises(Forbidden):
            await join(tmp_path / "a", [manager.address], wrong_secret, hostname="a", addr="127.0.0.1")
        other_ca = f"SWMTKN-1-{'0' * 50}-{token[-25:]}"
        with pytest.raises(Forbidden, match="does not match fingerprint"):
            await join(tmp_path / "a", [manager.address], other_ca, hostname="a", addr="127.0.0.1")
        with pytest.raises(InvalidArgument, match="valid join token"):
            await join(tmp_path / "a", [manager.address], "nonsense", hostname="a", addr="127.0.0.1")
        assert not manager.control.nodes()
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_rotating_a_token_ends_the_old_one(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        old = manager.control.join_tokens()
        record = manager.control.cluster()
        await manager.control.update_cluster(record.version, record.spec, rotate_worker_token=True)
        assert manager.control.join_tokens().manager == old.manager
        with pytest.raises(Forbidden):
            await join(tmp_path / "a", [manager.address], old.worker, hostname="a", addr="127.0.0.1")
        agent = await join_agent(manager, tmp_path / "b", "b")
        assert manager.control.node(agent.node_id).description.hostname == "b"


def _restart_at_once() -> TaskRestartPolicy:
    return TaskRestartPolicy(delay=0)
