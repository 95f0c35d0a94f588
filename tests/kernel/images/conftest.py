"""A node's image store on a temporary folder, and registries to pull from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes.images_node import Node
from fakes.images_registry import FakeRegistry, RealRegistry, real_registry


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path / "node")
    await made.start()
    yield made
    assert made.leftovers() == []
    await made.stop()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    with real_registry(tmp_path_factory.mktemp("docker-registry")) as running:
        yield running
