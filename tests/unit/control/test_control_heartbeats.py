"""Who lives is not taken for dead: not while the heartbeat period is changed, nor while something is being written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fakes.control_world import Agent, Manager, cluster, service_spec, start_manager, until
from msgspec.structs import replace

from swarmlet.model.cluster import DispatcherSpec
from swarmlet.model.states import NodeState
from swarmlet_manager.dispatch import heartbeats

LONG_S, SHORT_S = 3.0, 0.4
#: After which a silent node is down where the period is the short one, with time for a busy machine.
WATCH_S = 3 * SHORT_S + 1.0


async def beat_every(manager: Manager, seconds: float) -> None:
    before = manager.store.state.cluster
    assert before is not None
    dispatcher = DispatcherSpec(heartbeat_period=int(seconds * 1e9))
    await manager.control.update_cluster(before.version, replace(before.spec, dispatcher=dispatcher))


async def kept(agents: list[Agent], seconds: float) -> None:
    """Every agent knows of the period."""
    await until(lambda: all(period_of(agent) == int(seconds * 1e9) for agent in agents))


def period_of(agent: Agent) -> int:
    assert agent.session is not None
    return 0 if agent.session.welcome is None else agent.session.welcome.heartbeat_period_ns


def state_of(manager: Manager, agent: Agent) -> NodeState:
    return manager.store.state.nodes[agent.node_id].state


async def test_no_node_is_down_because_the_period_becomes_shorter(tmp_path: Path) -> None:
    """Agents that would beat next in a while say that they live as soon as they hear of it."""
    async with cluster(tmp_path, 2) as (_, manager, agents):
        await beat_every(manager, LONG_S)
        await kept(agents, LONG_S)
        await asyncio.sleep(3 * SHORT_S + 0.1)  # past the grace of the short one, if it were counted from the last beat
        seen: set[NodeState] = set()
        manager.store.subscribe(lambda _: seen.update(state_of(manager, agent) for agent in agents))
        await beat_every(manager, SHORT_S)
        await asyncio.sleep(WATCH_S)
        assert seen == {NodeState.READY} == {state_of(manager, agent) for agent in agents}
        assert manager.dispatcher.connected == {agent.node_id for agent in agents}


async def test_a_node_that_is_busy_with_its_orders_is_measured_by_the_period_it_knows(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        await beat_every(manager, LONG_S)
        await kept([agent], LONG_S)
        assert agent.worker is not None
        assign, may_go, busy = agent.worker.assign, asyncio.Event(), asyncio.Event()

        async def slow(**orders: Any) -> None:
            busy.set()
            await may_go.wait()
            await assign(**orders)

        agent.worker.assign = slow  # type: ignore[method-assign]
        await manager.control.create_service(service_spec())
        await busy.wait()
        await beat_every(manager, SHORT_S)
        await asyncio.sleep(WATCH_S)
        assert period_of(agent) == int(LONG_S * 1e9) and state_of(manager, agent) is NodeState.READY
        may_go.set()
        await kept([agent], SHORT_S)
        await asyncio.sleep(WATCH_S)
        assert state_of(manager, agent) is NodeState.READY


async def test_a_dead_node_is_found_by_the_shorter_period_as_soon_as_the_node_knew_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, (dead, alive)):
        await beat_every(manager, 600.0)
        await kept([dead, alive], 600.0)
        await asyncio.sleep(0.3)  # whoever looks for silent nodes has begun to wait by the long one
        await beat_every(manager, SHORT_S)
        await kept([dead, alive], SHORT_S)
        await asyncio.sleep(0.1)
        await dead.stop()
        await until(lambda: state_of(manager, dead) is NodeState.DOWN)
        assert state_of(manager, alive) is NodeState.READY


async def test_a_longer_period_holds_at_once_for_a_node_that_never_hears_of_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        await beat_every(manager, SHORT_S)
        await kept([agent], SHORT_S)
        await agent.stop()
        await beat_every(manager, LONG_S)
        await asyncio.sleep(WATCH_S)
        assert state_of(manager, agent) is not NodeState.DOWN


async def test_a_node_whose_agent_said_that_it_restarts_has_more_time_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "RESTART_S", WATCH_S + 1)
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        await beat_every(manager, SHORT_S)
        await kept([agent], SHORT_S)
        for comes_back in (True, False):
            assert agent.session is not None
            agent.session.back_soon()
            await agent.stop()
            await asyncio.sleep(WATCH_S)
            assert state_of(manager, agent) is not NodeState.DOWN
            if comes_back:
                await agent.start((manager.address,))
                await until(lambda: agent.node_id in manager.dispatcher.connected)
                await kept([agent], SHORT_S)
        await until(lambda: state_of(manager, agent) is NodeState.DOWN)


async def test_a_new_leader_gives_agents_the_time_to_dial_however_short_the_period_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "DIAL_S", 2 * WATCH_S + 2)
    async with cluster(tmp_path, 1) as (etcd, manager, (agent,)):
        await beat_every(manager, SHORT_S)
        await kept([agent], SHORT_S)
        await agent.stop()
        await manager.stop()
        successor = await start_manager(etcd, name="m2")
        try:
            await asyncio.sleep(2 * WATCH_S)
            assert state_of(successor, agent) is not NodeState.DOWN
            await until(lambda: state_of(successor, agent) is NodeState.DOWN, 10.0)
        finally:
            await successor.stop()


async def test_a_node_that_returns_is_not_taken_for_silent_again_while_its_return_is_written(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        await beat_every(manager, SHORT_S)
        await kept([agent], SHORT_S)
        await agent.stop()
        await until(lambda: state_of(manager, agent) is NodeState.DOWN)
        commit = manager.store.commit

        async def told_late(*args: Any, **more: Any) -> Any:
            done = await commit(*args, **more)
            await asyncio.sleep(2 * SHORT_S)
            return done

        manager.store.commit = told_late  # type: ignore[method-assign]
        seen: list[NodeState] = []
        manager.store.subscribe(lambda _: seen.append(state_of(manager, agent)))
        await agent.start((manager.address,))
        await until(lambda: agent.session is not None and agent.session.connected.is_set())
        await asyncio.sleep(WATCH_S)
        assert NodeState.DOWN not in seen and state_of(manager, agent) is NodeState.READY


async def test_a_node_heard_of_while_another_is_written_down_stays(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as (_, manager, agents):
        await beat_every(manager, SHORT_S)
        await kept(agents, SHORT_S)
        commit, may_go, waiting = manager.store.commit, asyncio.Event(), asyncio.Event()

        async def slow(*args: Any, **more: Any) -> Any:
            waiting.set()
            await may_go.wait()
            return await commit(*args, **more)

        manager.store.commit = slow  # type: ignore[method-assign]
        for agent in agents:
            await agent.stop()
        await waiting.wait()  # all three have been silent for too long, and the first is being written down
        await asyncio.sleep(2 * SHORT_S)
        await agents[1].start((manager.address,))
        await agents[2].start((manager.address,))
        await asyncio.sleep(2 * SHORT_S)
        down: set[str] = set()
        manager.store.subscribe(
            lambda _: down.update(one.id for one in manager.store.state.nodes.values() if one.state is NodeState.DOWN)
        )
        may_go.set()
        await until(lambda: len(manager.dispatcher.connected) == 2)
        await asyncio.sleep(WATCH_S)
        assert down <= {agents[0].node_id}
