"""A join whose answer was lost is done again: it is one node, whoever of the two sides did not hear the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.control_world import Manager, cluster

from swarmlet.errors import Unavailable
from swarmlet.issuing import new_request
from swarmlet.model.states import Role
from swarmlet.wire.joining import JOIN_PATH, Founding
from swarmlet_agent.session import identity
from swarmlet_agent.session.identity import forget_identity, forget_request, join, load_identity


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The answers that were given and have not arrived: that to the first request to join."""
    call, answers = identity._call, []

    async def losing(method: str, url: str, *args: Any, **more: Any) -> bytes:
        answer = await call(method, url, *args, **more)
        if url.endswith(JOIN_PATH) and not answers:
            answers.append(answer)
            raise Unavailable("the connection broke")
        return answer

    monkeypatch.setattr(identity, "_call", losing)
    yield answers
    assert len(answers) == 1


def names(manager: Manager) -> list[str]:
    return [node.description.hostname for node in manager.control.nodes()]


async def test_a_join_whose_answer_was_lost_is_the_same_node_when_it_is_done_again(
    tmp_path: Path, lost: list[bytes]
) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        token = manager.control.join_tokens().worker
        with pytest.raises(Unavailable):
            await join(tmp_path / "a", [manager.address], token, hostname="a", addr="127.0.0.1")
        assert names(manager) == ["a"] and load_identity(tmp_path / "a") is None
        [first] = manager.control.nodes()
        again = await join(tmp_path / "a", [manager.address], token, hostname="a", addr="127.0.0.1")
        assert names(manager) == ["a"] and again.node_id == first.id


async def test_a_join_that_asks_another_manager_for_the_lost_answer_is_one_node(
    tmp_path: Path, lost: list[bytes]
) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        token = manager.control.join_tokens().worker
        both = [manager.address, manager.address]
        joined = await join(tmp_path / "a", both, token, hostname="a", addr="127.0.0.1")
        assert [node.id for node in manager.control.nodes()] == [joined.node_id]


async def test_who_has_joined_and_left_is_another_node_when_it_joins_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        async def joined() -> str:
            token = manager.control.join_tokens().worker
            return (await join(tmp_path / "a", [manager.address], token, hostname="a", addr="127.0.0.1")).node_id

        first = await joined()
        assert await joined() == first  # the agent has ended before it noted that it had joined
        forget_request(tmp_path / "a")
        second = await joined()
        forget_identity(tmp_path / "a")
        assert list((tmp_path / "a/tls").iterdir()) == []
        assert len({first, second, await joined()}) == len(manager.control.nodes()) == 3


async def test_requests_of_one_key_at_the_same_time_are_one_node(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        csr, _ = new_request()
        token = manager.control.join_tokens().worker
        asked = [manager.authority.join(token, csr, "a", ["127.0.0.1"]) for _ in range(5)]
        answers = await asyncio.gather(*asked)
        assert len({answer.node_id for answer in answers}) == len(manager.control.nodes()) == 1


async def test_keys_and_the_roles_they_ask_for_are_told_apart(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        tokens, (csr, _), (other, _) = manager.control.join_tokens(), new_request(), new_request()
        worker = await manager.authority.join(tokens.worker, csr, "a", [])
        as_manager = await manager.authority.join(tokens.manager, csr, "a", [])
        another = await manager.authority.join(tokens.worker, other, "b", [])
        assert len({worker.node_id, as_manager.node_id, another.node_id}) == 3
        assert (worker.role, as_manager.role) == (Role.WORKER, Role.MANAGER)


async def test_an_init_whose_answer_was_lost_founds_one_cluster(tmp_path: Path) -> None:
    async with cluster(tmp_path, 0) as (_, manager, _):
        (csr, _), wanted = new_request(), Founding(address_pools=("10.99.0.0/16",))
        first = await manager.authority.admit(Role.MANAGER, csr, "a", [], founding=wanted)
        again = await manager.authority.admit(Role.MANAGER, csr, "a", [], founding=wanted)
        assert first.node_id == again.node_id and names(manager) == ["a"]
        assert manager.control.cluster().address_pools == ("10.99.0.0/16",)
