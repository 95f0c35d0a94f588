"""The agent's session against a manager that says what the test wants: what is obeyed, what ends the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from fakes.control_world import describe, until
from fakes.networks_made import FakeNetworks

from swarmlet.errors import Internal, SwarmletError
from swarmlet.issuing import issue, new_ca
from swarmlet.model.service import TaskSpec
from swarmlet.model.states import Role, TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.pki import Identity
from swarmlet.tls import TlsIdentity, server_context
from swarmlet.wire import messages
from swarmlet.wire.contents import Content
from swarmlet.wire.joining import SESSION_PATH
from swarmlet.wire.messages import (
    Assignments,
    Heartbeat,
    Hello,
    Inventory,
    StatusAck,
    StatusUpdate,
    Welcome,
)
from swarmlet_agent.journal import Journal
from swarmlet_agent.session.buffer import StatusBuffer
from swarmlet_agent.session.identity import NodeIdentity
from swarmlet_agent.session.managers import ManagerList
from swarmlet_agent.session.session import AgentSession, NodePlace, NodeRemoved

CA = new_ca("c1")
NS = 1_000_000_000
Script = Callable[["Line"], Awaitable[None]]


def pair(name: str, role: Role) -> TlsIdentity:
    return TlsIdentity(issue(CA, Identity(name, role, "c1"), ["127.0.0.1"], timedelta(days=9)), CA.cert_pem)


class Line:
    """One session as the manager sees it."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket

    async def hear(self) -> messages.AgentMessage:
        return messages.decode_from_agent(await self.socket.receive_bytes(timeout=30))

    async def hear_kind(self, kind: type) -> messages.AgentMessage:
        while not isinstance(message := await self.hear(), kind):
            pass
        return message

    async def say(self, message: messages.ManagerMessage) -> None:
        await self.socket.send_bytes(messages.encode(message))

    async def welcome(self, term: int = 5, cluster: str = "c1", **more: object) -> None:
        assert isinstance(await self.hear(), Hello)
        await self.say(
            Welcome(cluster_id=cluster, term=term, heartbeat_period_ns=NS // 5, **more)  # type: ignore[arg-type]
        )

    async def over(self) -> bool:
        """True once the agent has ended it."""
        try:
            while True:
                frame = await self.socket.receive(timeout=3)
                if frame.type is not web.WSMsgType.BINARY:
                    return True
        except TimeoutError:
            return False


class Orders:
    def __init__(self) -> None:
        self.given: list[tuple[bool, list[str], list[str]]] = []
        self.trouble: list[SwarmletError] = []
        self.contents: list[Content] = []

    def supplied(self, items: Sequence[Content]) -> None:
        self.contents += items

    async def assign(
        self, *, full: bool, tasks: Sequence[Task], removed: Sequence[str], registry_auth: Mapping[str, str],
        unneeded: Sequence[str] = (),
    ) -> None:
        if self.trouble:
            raise self.trouble.pop()
        self.given.append((full, [task.id for task in tasks], list(removed)))


class World:
    """A fake manager that plays one script per session (the last one again and again), and an agent's session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scripts: list[Script] = []
        self.failures: list[BaseException] = []
        self.sessions = 0
        self.orders = Orders()
        self.statuses = StatusBuffer()
        self.address = ""

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=1.0)
        await socket.prepare(request)
        script = self.scripts[min(self.sessions, len(self.scripts) - 1)]
        self.sessions += 1
        try:
            await script(Line(socket))
        except AssertionError as err:
            self.failures.append(err)
        await socket.close()
        return socket

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get(SESSION_PATH, self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        tls = server_context(pair("m1", Role.MANAGER), require_client=False)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.address = f"127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()
            assert not self.failures

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[tuple[AgentSession, asyncio.Task[None]]]:
        journal = Journal(self.folder / "journal.db")
        session = AgentSession(
            NodeIdentity("n1", Role.WORKER, "c1", pair("n1", Role.WORKER)), data_dir=self.folder, journal=journal,
            managers=ManagerList(journal, [self.address]), place=NodePlace("127.0.0.1", 1),
            describe=lambda: describe("host"), containers=list, statuses=self.statuses, orders=self.orders,
            networks=FakeNetworks(),
        )
        task = asyncio.create_task(session.run())
        try:
            yield session, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            journal.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def orders(seq: int, *, term: int = 5, full: bool | None = None, tasks: tuple[str, ...] = ()) -> Assignments:
    made = tuple(Task(id=ident, service_id="s", spec=TaskSpec()) for ident in tasks)
    return Assignments(term=term, seq=seq, full=seq == 1 if full is None else full, tasks=made)


async def stay(line: Line) -> None:
    await line.over()


async def test_orders_in_sequence_are_obeyed_and_heartbeats_come(world: World) -> None:
    async def script(line: Line) -> None:
        await line.welcome()
        assert isinstance(await line.hear_kind(Inventory), Inventory)
        await line.say(orders(1, tasks=("a",)))
        await line.say(orders(2, tasks=("b",)))
        for _ in range(3):
            await line.hear_kind(Heartbeat)
        await stay(line)

    world.scripts = [script]
    async with world.manager(), world.agent() as (session, _):
        await until(lambda: world.orders.given == [(True, ["a"], []), (False, ["b"], [])])
        assert session.connected.is_set()


async def test_another_heartbeat_period_holds_at_once_and_the_manager_is_told(world: World) -> None:
    done = asyncio.Event()

    async def script(line: Line) -> None:
        await line.welcome()
        for period_ns in (600 * NS, NS // 5):
            await line.say(Welcome(cluster_id="c1", term=5, heartbeat_period_ns=period_ns))
            while (await line.hear_kind(Heartbeat)) != Heartbeat(period_ns=period_ns):
                pass
        await line.hear_kind(Heartbeat)
        done.set()
        await stay(line)

    world.scripts = [script]
    async with world.manager(), world.agent():
        await asyncio.wait_for(done.wait(), 30)


async def test_orders_that_cannot_be_kept_cost_the_session_and_come_again_with_the_next(world: World) -> None:
    async def script(line: Line) -> None:
        await line.welcome()
        await line.say(orders(1, tasks=("a",)))
        await stay(line)

    world.scripts = [script]
    world.orders.trouble = [Internal("the node's journal cannot be written: database or disk is full")]
    async with world.manager(), world.agent():
        await until(lambda: world.orders.given == [(True, ["a"], [])])
        assert world.sessions == 2


@pytest.mark.parametrize(
    "bad", [orders(3), orders(1), orders(2, full=True), orders(2, term=4)], ids=["gap", "repeat", "full", "old term"]
)
async def test_orders_out_of_order_end_the_session_unobeyed(world: World, bad: Assignments) -> None:
    ended = asyncio.Event()

    async def script(line: Line) -> None:
        await line.welcome()
        await line.say(orders(1, tasks=("a",)))
        await line.say(bad)
        if await line.over():
            ended.set()

    world.scripts = [script, stay]
    async with world.manager(), world.agent():
        await asyncio.wait_for(ended.wait(), 30)
        assert world.orders.given == [(True, ["a"], [])]


async def test_a_deposed_leader_is_refused_even_by_a_new_process(world: World) -> None:
    refused = asyncio.Event()

    async def newer(line: Line) -> None:
        await line.welcome(term=9)
        await line.say(orders(1, term=9))
        await stay(line)

    async def older(line: Line) -> None:
        await line.welcome(term=8)
        await line.socket.send_bytes(messages.encode(orders(1, term=8, tasks=("stale",))))
        if await line.over():
            refused.set()

    world.scripts = [newer, older]
    async with world.manager():
        async with world.agent():
            await until(lambda: world.orders.given)
        async with world.agent():
            await asyncio.wait_for(refused.wait(), 30)
    assert world.orders.given == [(True, [], [])]


async def test_another_clusters_manager_is_not_obeyed(world: World) -> None:
    refused = asyncio.Event()

    async def script(line: Line) -> None:
        await line.welcome(cluster="c2")
        if await line.over():
            refused.set()

    world.scripts = [script]
    async with world.manager(), world.agent():
        await asyncio.wait_for(refused.wait(), 30)
        assert not world.orders.given


async def test_a_report_is_sent_again_until_it_is_acknowledged(world: World) -> None:
    seen: list[StatusUpdate] = []

    async def silent(line: Line) -> None:
        await line.welcome()
        update = await line.hear_kind(StatusUpdate)
        assert isinstance(update, StatusUpdate)
        seen.append(update)

    async def answering(line: Line) -> None:
        await silent(line)
        await line.say(StatusAck(seq=seen[-1].seq))
        await stay(line)

    world.scripts = [silent, silent, answering]
    world.statuses.report("t", TaskStatus(state=TaskState.RUNNING))
    async with world.manager(), world.agent():
        await until(lambda: len(seen) == 3 and len(world.statuses) == 0)
        assert {report.task_id for update in seen for report in update.reports} == {"t"}


async def test_managers_the_cluster_names_are_remembered_on_disk(world: World) -> None:
    async def script(line: Line) -> None:
        await line.welcome(managers=("10.9.9.9:2377", world.address))
        await stay(line)

    world.scripts = [script]
    async with world.manager(), world.agent() as (session, _):
        await until(lambda: len(session.managers.in_order()) == 2)
    journal = Journal(world.folder / "journal.db")
    assert ManagerList(journal).in_order() == [world.address, "10.9.9.9:2377"]
    journal.close()


async def test_a_removed_node_gives_its_tasks_up_and_stops_dialling(world: World) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.socket.close(code=messages.CLOSE_REMOVED, message=b"gone")

    world.scripts = [script]
    async with world.manager(), world.agent() as (_, task):
        with pytest.raises(NodeRemoved):
            await asyncio.wait_for(task, 30)
        assert world.orders.given == [(True, [], [])]


async def test_frames_that_mean_nothing_end_the_session_and_it_dials_again(world: World) -> None:
    async def nonsense(line: Line) -> None:
        await line.welcome()
        await line.socket.send_bytes(b"\xc1\xc1")
        assert await line.over()

    async def script(line: Line) -> None:
        await line.welcome()
        await line.say(orders(1))
        await stay(line)

    world.scripts = [nonsense, script]
    async with world.manager(), world.agent():
        await until(lambda: world.orders.given == [(True, [], [])])
