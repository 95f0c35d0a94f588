"""The engine on a make-believe machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_node import AtOnce, Node
from fakes.engine_world import World


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    asyncio.get_running_loop().set_default_executor(AtOnce())
    node = Node(World(tmp_path))
    await node.engine.start()
    yield node
    await node.engine.close()
