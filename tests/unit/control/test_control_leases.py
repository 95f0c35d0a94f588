"""Leases between real managers and real sessions: asked for, stated, given back, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes.control_world import Agent, Manager, cluster, start_manager, until

from swarmlet.errors import Unavailable
from swarmlet.model.network import Ipam, IpamConfig, Lease, NetworkCreate
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk
from swarmlet_agent.session import leasing
from swarmlet_manager.state import Delete


async def make_network(manager: Manager, name: str = "wide", subnet: str = "10.1.0.0/24") -> str:
    ipam = Ipam(config=(IpamConfig(subnet=subnet),))
    spec = NetworkCreate(name=name, driver="overlay", attachable=True, ipam=ipam)
    return (await manager.control.create_network(spec)).id


async def ask(agent: Agent, ident: str, **more: str) -> LeaseAnswer:
    """As the agent's networks do: what is granted is held."""
    assert agent.session is not None
    question = LeaseAsk(id=ident, network="wide", container_id=f"c{ident}", container_name=f"box{ident}", **more)
    answer = await agent.session.leases.ask(question)
    if answer.lease is not None:
        agent.networks.leases[ident] = answer.lease
    return answer


def give_back(agent: Agent, ident: str) -> None:
    assert agent.session is not None
    del agent.networks.leases[ident]
    agent.session.leases.release(ident)


def stored(manager: Manager) -> dict[str, Lease]:
    return dict(manager.store.state.leases)


async def test_a_grant_comes_behind_what_is_told_of_its_network(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, (one, two)):
        network_id = await make_network(manager)
        answer = await ask(one, "1")
        assert answer.lease is not None and answer.network == "wide"
        told = [info.id for news in one.networks.told for info in news.networks]
        assert told == [network_id]
        assert [place.address for news in one.networks.told for place in news.endpoints] == ["10.1.0.2"]
        assert stored(manager) == {"1": manager.store.state.leases["1"]} and answer.lease.address == "10.1.0.2/24"
        assert not any(news.networks for news in two.networks.told)
        give_back(one, "1")
        await until(lambda: stored(manager) == {})
        await until(lambda: any(network_id in news.gone_networks for news in one.networks.told))


async def test_a_refusal_says_why_and_gives_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        nothing = await ask(agent, "1")
        assert nothing.lease is None and nothing.status == 404 and "network wide not found" in nothing.message
        await make_network(manager, subnet="10.1.0.0/30")
        assert (await ask(agent, "2")).status == 0
        full = await ask(agent, "3")
        assert full.status == 500 and "no address is free in network wide" in full.message
        assert set(stored(manager)) == {"2"}


async def test_many_ask_at_once_and_everybody_gets_an_own_address(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as (_, manager, agents):
        await make_network(manager)
        answers = await asyncio.gather(*(ask(agent, f"{n}x{i}") for n, agent in enumerate(agents) for i in range(40)))
        given = {answer.lease.address for answer in answers if answer.lease is not None}
        assert len(given) == 120 == len(stored(manager))


async def test_a_new_session_states_what_is_held_and_the_rest_is_released(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, (one, two)):
        await make_network(manager)
        for ident in ("kept", "forgotten"):
            await ask(one, ident)
        await ask(two, "other")
        await one.stop()
        del one.networks.leases["forgotten"]  # its container ended while no agent ran
        await one.start((manager.address,))
        await until(lambda: set(stored(manager)) == {"kept", "other"})


async def test_who_asks_while_no_manager_leads_is_answered_by_the_next(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (etcd, manager, (agent,)):
        await make_network(manager)
        first = await ask(agent, "1")
        port = int(manager.address.rpartition(":")[2])
        await manager.stop()
        assert agent.session is not None
        await until(lambda: not agent.session.connected.is_set())
        waiting = asyncio.create_task(ask(agent, "2"))
        again = await start_manager(etcd, port, "m2")
        try:
            answer = await waiting
            assert answer.lease is not None and first.lease is not None
            assert stored(again)["1"].address == first.lease.address != answer.lease.address
        finally:
            await agent.stop()
            await again.stop()


async def test_without_an_answer_the_ask_ends_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "ASK_S", 0.2)
    async with cluster(tmp_path, 1) as (etcd, manager, (agent,)):
        await make_network(manager)
        port = int(manager.address.rpartition(":")[2])
        await manager.stop()
        with pytest.raises(Unavailable, match="no manager of the cluster can be reached"):
            await ask(agent, "1")
        again = await start_manager(etcd, port, "m2")
        try:
            await until(lambda: again.dispatcher.connected)
            monkeypatch.setattr(leasing, "ASK_S", 10.0)
            await ask(agent, "2")
            assert set(stored(again)) == {"2"}
        finally:
            await agent.stop()
            await again.stop()


async def test_an_ask_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        await make_network(manager)
        assert agent.session is not None
        for number in range(20):
            waiting = asyncio.create_task(ask(agent, f"{number}"))
            await asyncio.sleep(number * 0.0005)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            agent.networks.leases.pop(f"{number}", None)
            agent.session.leases.release(f"{number}")  # whatever has become of it
        await ask(agent, "last")  # behind all of them on the line
        assert set(stored(manager)) == {"last"}


async def test_an_address_that_somebody_else_got_is_taken_back(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, manager, (one, two)):
        await make_network(manager)
        await ask(one, "1")
        await one.stop()
        # As if the node had been down for too long.
        await manager.store.commit([Delete(manager.store.state.leases["1"])])
        taken = await ask(two, "2", address="10.1.0.2")
        assert taken.status == 0
        await one.start((manager.address,))
        await until(lambda: one.networks.taken_back == ["1"])
        assert set(stored(manager)) == {"2"}


async def test_a_removed_node_leaves_no_lease(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        await make_network(manager)
        await ask(agent, "1")
        await manager.control.remove_node(agent.node_id, force=True)
        await until(lambda: stored(manager) == {} and agent.removed)
