"""Lending a container's root: who may do what meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from engine_node import Node

from swarmlet.errors import Conflict, NotFound


async def test_a_running_container_goes_on_while_its_root_is_lent(node: Node) -> None:
    ident = await node.run("sleep", name="web")

    async with node.engine.lend_root("web", "export") as root:
        assert root.record.id == ident
        await node.engine.kill("web")
        await node.engine.remove("web", force=True)

    with pytest.raises(NotFound):
        node.engine.get("web")


async def test_a_stopped_container_neither_starts_nor_goes_while_its_root_is_lent(node: Node) -> None:
    ident = await node.run("sleep", name="web")
    await node.engine.kill("web")
    await node.engine.wait("web")
    marker = node.world.root / "run/engine" / ident

    async with node.engine.lend_root("web", "export"):
        start = asyncio.ensure_future(node.engine.start_container("web"))
        await node.settle()
        assert not start.done() and marker.exists()
    await start

    assert node.engine.get("web").state.status == "running"


async def test_a_lent_root_is_given_back_when_the_borrower_is_cancelled(node: Node) -> None:
    ident = await node.run("sleep", name="web")
    await node.engine.kill("web")
    await node.engine.wait("web")
    borrowed = asyncio.Event()

    async def borrow() -> None:
        async with node.engine.lend_root("web", "export"):
            borrowed.set()
            await asyncio.Event().wait()

    borrower = asyncio.ensure_future(borrow())
    await borrowed.wait()
    borrower.cancel()
    await asyncio.wait([borrower])

    assert not (node.world.root / "run/engine" / ident).exists()
    await node.engine.remove("web")


async def test_what_an_agent_that_was_killed_had_mounted_is_cleared_by_the_next(node: Node) -> None:
    ident = await node.run("sleep", name="web")
    await node.engine.kill("web")
    await node.engine.wait("web")
    loan = node.engine.lend_root("web", "export")
    await loan.__aenter__()

    engine = await node.again()

    assert not (node.world.root / "run/engine" / ident).exists()
    assert engine.get("web").state.status == "exited"


async def test_no_root_of_nothing(node: Node) -> None:
    with pytest.raises(NotFound):
        async with node.engine.lend_root("none", "export"):
            pass


async def test_a_container_that_is_being_removed_lends_nothing(node: Node) -> None:
    await node.run("sleep", name="web")
    await node.engine.kill("web")
    await node.engine.wait("web")
    async with node.engine.lend_root("web", "export"):
        removal = asyncio.ensure_future(node.engine.remove("web"))
        await node.settle()
        late = asyncio.ensure_future(_lend(node))
        await node.settle()
    await removal
    with pytest.raises((Conflict, NotFound)):
        await late


async def _lend(node: Node) -> None:
    async with node.engine.lend_root("web", "export"):
        pass
