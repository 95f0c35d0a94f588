"""The task worker on an engine that only pretends: orders, failures, and coming back after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes.control_world import FakeEngine, FakeImages, until
from fakes.networks_made import FakeNetworks
from msgspec.structs import replace

from swarmlet.errors import Internal, NotFound
from swarmlet.model.common import HealthConfig
from swarmlet.model.service import ContainerSpec, TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.template import NodeFacts
from swarmlet.model.times import NS
from swarmlet_agent.journal import Journal
from swarmlet_agent.worker.worker import TaskWorker


def task(ident: str = "t1", desired: TaskState = TaskState.RUNNING, **more: object) -> Task:
    spec = TaskSpec(container_spec=ContainerSpec(**{"image": "busybox", **more}))  # type: ignore[arg-type]
    return Task(
        id=ident, service_id="s1", service_name="web", slot=1, node_id="n1", spec=spec, desired_state=desired,
        status=TaskStatus(state=TaskState.ASSIGNED),
    )


class Node:
    """What outlives a worker: engine, images, the journal's file; and everything that was reported."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.images = FakeEngine(), FakeImages()
        self.path = folder / "journal.db"
        self.reports: dict[str, list[TaskStatus]] = {}

    @asynccontextmanager
    async def worker(self, starts: int = 4) -> AsyncIterator[TaskWorker]:
        journal = Journal(self.path)
        worker = TaskWorker(
            self.engine, self.images, journal, node=lambda: NodeFacts("n1", "host"),
            report=lambda ident, status: self.reports.setdefault(ident, []).append(status),
            forget=lambda ident: self.reports.pop(ident, None), starts=starts,
            networks=FakeNetworks(),
        )
        await worker.start()
        try:
            yield worker
        finally:
            await worker.close()
            journal.close()

    def state(self, ident: str = "t1") -> TaskState | None:
        told = self.reports.get(ident)
        return told[-1].state if told else None


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def order(worker: TaskWorker, *tasks: Task, full: bool = False, removed: tuple[str, ...] = ()) -> None:
    await worker.assign(full=full, tasks=tasks, removed=removed, registry_auth={})


async def test_a_task_runs_and_its_states_are_told_in_order(node: Node) -> None:
    async with node.worker() as worker:
        await order(worker, task())
        await until(lambda: node.state() is TaskState.RUNNING)
        states = [status.state for status in node.reports["t1"]]
        assert states == sorted(states)
        assert node.engine.get("web.1.t1").is_running


async def test_a_task_wanted_ready_is_made_and_started_when_promoted(node: Node) -> None:
    async with node.worker() as worker:
        await order(worker, task(desired=TaskState.READY))
        await until(lambda: node.state() is TaskState.READY)
        assert node.engine.get("web.1.t1").state.status == "created"
        await order(worker, task())
        await until(lambda: node.state() is TaskState.RUNNING)


async def test_a_stop_uses_the_tasks_own_grace_period(node: Node) -> None:
    async with node.worker() as worker:
        await order(worker, task(stop_grace_period=3 * NS))
        await until(lambda: node.state() is TaskState.RUNNING)
        await order(worker, task(desired=TaskState.SHUTDOWN, stop_grace_period=3 * NS))
        await until(lambda: node.state() is TaskState.SHUTDOWN)
        assert node.engine.stops == [("web.1.t1", 3)]
        assert node.engine.list()  # kept, for its logs, as long as the task has a record


async def test_a_task_whose_record_is_gone_leaves_nothing(node: Node) -> None:
    async with node.worker() as worker:
        await order(worker, task())
        await until(lambda: node.state() is TaskState.RUNNING)
        await order(worker, removed=("t1",))
        await until(lambda: not worker.tasks)
        assert not node.engine.list()
        assert "t1" not in node.reports
    async with node.worker() as worker:
        assert not worker.tasks


async def test_a_full_set_releases_what_it_does_not_list_and_removes_strangers(node: Node) -> None:
    async with node.worker() as worker:
        await order(worker, task("t1"), task("t2"))
        await until(lambda: node.state("t1") is node.state("t2") is TaskState.RUNNING)
        stray, _ = await node.engine.create("web.9.stray", node.engine.list()[0].request)
        node.engine.containers["web.9.stray"] = replace(
            stray, request=replace(stray.request, labels={"com.docker.swarm.task.id": "stray"})
        )
        await order(worker, task("t2"), full=True)
        await until(lambda: [container.name for container in node.engine.list()] == ["web.1.t2"])


async def test_a_start_that_fails_fails_the_task(node: Node) -> None:
    node.engine.start_error = Internal("exec: no such file")
    async with node.worker() as worker:
        await order(worker, task())
        await until(lambda: node.state() is TaskState.FAILED)
        assert node.reports["t1"][-1].err == "starting container failed: exec: no such file"


async def test_tasks_share_one_pull_and_a_failed_pull_rejects_them(node: Node) -> None:
    node.images.error = NotFound("image", "nope", "manifest unknown")
    node.images.gate = asyncio.Event()
    async with node.worker() as worker:
        await order(worker, *(task(f"t{number}", image="nope") for number in range(3)))
        await until(lambda: node.images.pulls)
        node.images.gate.set()
        await until(lambda: all(node.state(f"t{number}") is TaskState.REJECTED for number in range(3)))
        assert len(node.images.pulls) == 1
        assert node.reports["t0"][-1].err == "No such image: nope: manifest unknown"


async def test_shutting_down_does_not_wait_for_a_pull(node: Node) -> None:
    node.images.gate = asyncio.Event()
    async with node.worker() as worker:
        await order(worker, task(image="slow"))
        await until(lambda: node.images.pulls)
        await order(worker, task(image="slow", desired=TaskState.SHUTDOWN))
        await until(lambda: node.state() is TaskState.SHUTDOWN)
        assert not node.engine.created


async def test_a_health_check_decides_when_it_runs_and_when_it_fails(node: Node) -> None:
    node.engine.healthy_at_once = False
    async with node.worker() as worker:
        await order(worker, task(healthcheck=HealthConfig(test=("CMD", "true"))))
        await until(lambda: node.state() is TaskState.STARTING and node.engine.list()[0].is_running)
        node.engine.set_health("web.1.t1", "healthy")
        await until(lambda: node.state() is TaskState.RUNNING)
        node.engine.set_health("web.1.t1", "unhealthy")
        await until(lambda: node.state() is TaskState.FAILED)
        assert "unhealthy container" in node.reports["t1"][-1].err


@pytest.mark.parametrize("state", ["before", "created", "running", "exited"])
async def test_a_new_worker_goes_on_where_the_last_one_died(node: Node, state: str) -> None:
    node.images.gate = asyncio.Event()
    async with node.worker() as worker:
        desired = TaskState.READY if state == "created" else TaskState.RUNNING
        await order(worker, task(desired=desired, image="slow" if state == "before" else "busybox"))
        if state == "before":
            await until(lambda: node.images.pulls)
        else:
            wanted = TaskState.READY if state == "created" else TaskState.RUNNING
            await until(lambda: node.state() is wanted)
    if state == "exited":
        node.engine.exit("web.1.t1", 9)
    node.images.gate.set()
    node.reports.clear()
    async with node.worker() as worker:  # with no manager to tell it anything
        wanted = {"created": TaskState.READY, "exited": TaskState.FAILED}.get(state, TaskState.RUNNING)
        await until(lambda: node.state() is wanted)
        assert node.engine.created == ["web.1.t1"]
        if state == "exited":
            assert node.reports["t1"][-1].exit_code == 9


async def test_what_has_failed_never_runs_again_after_a_crash(node: Node) -> None:
    node.images.error = NotFound("image", "nope")
    async with node.worker() as worker:
        await order(worker, task(image="nope"))
        await until(lambda: node.state() is TaskState.REJECTED)
    node.images.error = None
    async with node.worker() as worker:
        await order(worker, task(image="nope"), full=True)
        await asyncio.sleep(0.05)
        assert worker.tasks["t1"].state is TaskState.REJECTED
        assert not node.engine.created


async def test_many_tasks_are_made_a_few_at_a_time(node: Node) -> None:
    busy, most = 0, 0
    create = node.engine.create

    async def counted(*args: object, **more: object) -> object:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.002)
        busy -= 1
        return await create(*args, **more)  # type: ignore[arg-type]

    node.engine.create = counted  # type: ignore[assignment, method-assign]
    async with node.worker(starts=3) as worker:
        await order(worker, *(task(f"t{number}") for number in range(30)))
        await until(lambda: all(node.state(f"t{number}") is TaskState.RUNNING for number in range(30)))
    assert most == 3


async def test_a_report_that_got_lost_is_told_again_when_the_manager_shows_it_knows_less(node: Node) -> None:
    async with node.worker() as worker:
        await order(worker, task())
        await until(lambda: node.state() is TaskState.RUNNING)
        node.reports.clear()
        await order(worker, task(), full=True)
        assert node.state() is TaskState.RUNNING
