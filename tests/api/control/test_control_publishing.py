"""Who publishes a port hears at once of nodes that cannot, as far as they say so within a moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes.control_world import Agent, cluster, service_spec
from msgspec.structs import replace

from swarmlet.model.service import EndpointSpec, PortConfig
from swarmlet.wire.networking import Networking
from swarmlet_manager.dispatch import dispatcher

#: A pause that is not to be waited for.
TOO_LATE_S = 60.0
PORT = PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="ingress")
SPEC = replace(service_spec("web", 0), endpoint_spec=EndpointSpec(ports=(PORT,)))
PROBLEM = "port 8080/tcp of service web is not published on this node: a process of this host has it"


def refuse(agent: Agent, *, after_s: float = 0.0) -> None:
    """As soon as this node is told of a port, it finds that it cannot publish it."""

    async def update(news: Networking, *, node_id: str, underlay: str) -> None:
        if news.mesh_news is not None and news.mesh_news.ports:
            await asyncio.sleep(after_s)
            assert agent.session is not None
            agent.problems = (PROBLEM, "its disk is nearly full")
            agent.session.description_changed()

    agent.networks.update = update  # type: ignore[method-assign]


async def test_a_port_that_a_node_cannot_publish_is_told_with_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "PUBLISH_GRACE_S", TOO_LATE_S)
    monkeypatch.setattr(dispatcher, "LEAVE_GRACE_S", TOO_LATE_S)
    async with cluster(tmp_path, 3) as (_, manager, nodes):
        refuse(nodes[1])
        service = await manager.control.create_service(SPEC)
        async with asyncio.timeout(TOO_LATE_S / 2):  # everybody has answered: nobody is waited for
            assert await manager.dispatcher.port_troubles(service) == [f"node node-1: {PROBLEM}"]
        # What is known already is told again, without a question.
        assert await manager.dispatcher.port_troubles(service) == [f"node node-1: {PROBLEM}"]


async def test_a_node_is_waited_for_also_while_it_is_told_of_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "PUBLISH_GRACE_S", TOO_LATE_S)
    monkeypatch.setattr(dispatcher, "LEAVE_GRACE_S", TOO_LATE_S)
    async with cluster(tmp_path, 2) as (_, manager, nodes):
        for agent in nodes:
            refuse(agent, after_s=0.5)
        service = await manager.control.create_service(replace(SPEC, mode=service_spec("web", 6).mode))
        told = await manager.dispatcher.port_troubles(service)
        assert told == [f"node node-{number}: {PROBLEM}" for number in range(2)]


async def test_a_node_that_does_not_answer_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "PUBLISH_GRACE_S", 0.1)
    async with cluster(tmp_path, 1) as (_, manager, nodes):
        refuse(nodes[0], after_s=60)
        service = await manager.control.create_service(SPEC)
        async with asyncio.timeout(30):
            assert await manager.dispatcher.port_troubles(service) == []
