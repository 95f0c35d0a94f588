"""The manager's list of a node's containers stays right, also when events were lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarmlet.errors import NotFound
from swarmlet.wire.messages import ContainerRef
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.session.inventory import follow_containers


class Node:
    """An engine with names only, and a session that keeps the list as it is told."""

    def __init__(self) -> None:
        self.events = EventBus(queue_size=3)
        self.names: dict[str, str] = {}
        self.told: dict[str, str] = {}
        self.whole = 0

    def get(self, ref: str) -> Any:
        if ref not in self.names:
            raise NotFound("container", ref)
        return SimpleNamespace(id=ref, name=self.names[ref])

    def create(self, ident: str, name: str) -> None:
        self.names[ident] = name
        self.events.publish("container", "create", ident)

    def destroy(self, ident: str) -> None:
        del self.names[ident]
        self.events.publish("container", "destroy", ident)

    def container_changed(self, ref: ContainerRef) -> None:
        self.told[ref.id] = ref.name

    def container_removed(self, ident: str) -> None:
        self.told.pop(ident, None)

    def inventory_lost(self) -> None:
        self.whole += 1
        self.told = dict(self.names)


@pytest.mark.parametrize("burst", [2, 3, 4, 50])
async def test_the_list_is_right_after_any_burst_of_changes(burst: int) -> None:
    node = Node()
    node.names["old"] = "o"
    following = asyncio.create_task(follow_containers(node, node))
    await asyncio.sleep(0)
    for number in range(burst):  # nobody can read in between: beyond the queue's size events are lost
        node.create(f"c{number}", f"n{number}")
    node.destroy("c0")
    for _ in range(100):
        await asyncio.sleep(0)

    assert node.told == node.names
    assert (node.whole > 1) == (burst + 1 > 3)
    node.events.close()
    await asyncio.wait_for(following, 30)


async def test_a_container_that_was_gone_at_once_is_not_told_of() -> None:
    node = Node()
    following = asyncio.create_task(follow_containers(node, node))
    await asyncio.sleep(0)
    node.create("c", "n")
    node.destroy("c")
    for _ in range(10):
        await asyncio.sleep(0)

    assert node.told == {}
    node.events.close()
    await asyncio.wait_for(following, 30)
