"""Layers of builds on a real image store: what others remove meanwhile, and what a killed build leaves, harms none."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes.images_made import MadeImage, files
from fakes.images_node import Node

from swarmlet.engine_api.filters import Filters
from swarmlet.model.container import ContainerCreate
from swarmlet_agent.builder.builder import Builder
from swarmlet_agent.builder.options import BuildOptions
from swarmlet_agent.builder.pruning import Budget
from swarmlet_agent.engine.container import Container, WaitResult
from swarmlet_agent.images.layers import Layer, LayerStore
from swarmlet_agent.images.reference import parse_reference

pytestmark = pytest.mark.kernel


class Engine:
    """Containers whose program writes its last argument into /made; a removed one's root is gone before the answer,
    the worst that the engine, which removes it in the background, may come to."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._roots: dict[str, Path] = {}
        self._requests: dict[str, ContainerCreate] = {}

    async def create(
        self, name: str, request: ContainerCreate, *, platform: str = ""
    ) -> tuple[Container, list[str]]:
        self._roots[name] = await self._node.store.ensure_rootfs(name, request.image)
        self._requests[name] = request
        return self._container(name), []

    async def attach(self, ref: str) -> Any:
        return _Silence()

    async def start_container(self, ref: str) -> None:
        (self._roots[ref] / "made").write_text((self._requests[ref].cmd or ("",))[-1])

    def register_wait(self, ref: str, condition: str = "not-running") -> _Ended:
        return _Ended()

    async def settle(self, ref: str) -> Container:
        return self._container(ref)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        await self._node.store.remove_rootfs(ref)

    def _container(self, name: str) -> Container:
        return cast(Container, SimpleNamespace(id=name, mounts=()))


class _Silence:
    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return
        yield

    async def close(self) -> None: ...


class _Ended:
    async def result(self) -> WaitResult:
        return WaitResult(exit_code=0)

    def close(self) -> None: ...


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path / "node")
    await made.start()
    await made.store.load(chunks(MadeImage([files({"base": b"1"})]).docker_archive("base:1")))
    yield made
    assert made.leftovers() == []
    await made.stop()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def build(
    node: Node, builder: Builder, dockerfile: str, tag: str, *, no_cache: bool = False, **given: bytes
) -> list[str]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in {"Dockerfile": dockerfile.encode(), **given}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    said: list[str] = []

    async def listen(message: dict[str, Any]) -> None:
        said.append(message.get("stream", ""))

    options = BuildOptions(tags=(parse_reference(tag).with_default_tag(),), no_cache=no_cache)
    await builder.build(options, chunks(packed.getvalue()), listen)
    await builder.close()
    return said


def builder_of(node: Node) -> Builder:
    return Builder(node.store, node.store.workshop, Engine(node), node.journal, data_dir=node.data)


async def test_a_steps_layer_stays_though_its_container_is_removed_at_once(node: Node) -> None:
    builder = builder_of(node)
    await build(node, builder, "FROM base:1\nRUN one\nRUN two\n", "made")

    layers = node.store.get("made").layers
    assert len(layers) == 3
    root = await node.store.ensure_rootfs("c", "made")
    assert (root / "made").read_text() == "two" and (root / "base").read_text() == "1"
    await node.store.remove_rootfs("c")
    assert {f"sha256:{name}" for name in node.layer_folders()} == set(layers)


async def test_equal_layers_of_builds_side_by_side_are_nobodys_to_remove(node: Node) -> None:
    builder = builder_of(node)
    await asyncio.gather(*(
        build(node, builder, f"FROM base:1\nCOPY f /f\nENV N={number}\nCOPY g /g\n", f"made:{number}", f=b"f", g=b"g")
        for number in range(8)
    ))

    assert len({node.store.get(f"made:{number}").layers for number in range(8)}) == 1
    await node.restart()
    assert len({node.store.get(f"made:{number}").id for number in range(8)}) == 8


async def test_a_layer_made_again_while_it_goes_is_there_after_a_restart(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep forgets what went only after all of it is gone; by then another build may have promised it again."""
    builder = builder_of(node)
    await build(node, builder, "FROM base:1\nCOPY f /f\n", "first", f=b"f")
    await node.store.remove("first")
    removed, go_on = asyncio.Event(), asyncio.Event()
    sweep = LayerStore.sweep

    async def slow(self: LayerStore, needed: Callable[[], frozenset[str]], chains: Iterable[str]) -> list[Layer]:
        gone = await sweep(self, needed, chains)
        if gone and not removed.is_set():
            removed.set()
            await go_on.wait()
        return gone

    monkeypatch.setattr(LayerStore, "sweep", slow)
    pruning = asyncio.create_task(builder.prune(Filters({}), everything=True, budget=Budget()))
    await removed.wait()
    await build(node, builder, "FROM base:1\nCOPY f /f\n", "second", f=b"f")
    go_on.set()
    await pruning
    await node.restart()

    assert len(node.store.get("second").layers) == 2


async def test_a_layer_that_a_killed_build_left_in_a_container_is_in_nobodys_way(node: Node) -> None:
    base = node.store.get("base:1").layers

    async def make(root: str) -> Layer | None:
        place = await node.store.ensure_rootfs(root, "base:1")
        (place / "f").write_text("f")
        os.utime(place / "f", (0, 0))
        os.utime(place, (0, 0))
        with ExitStack() as pins:
            workshop = node.store.workshop
            return await workshop.take(
                root, base, lambda layer: pins.enter_context(workshop.pinned((layer.chain_id,)))
            )

    left = await make("killed")
    assert left is not None
    await node.restart()  # no build has finished, so the journal does not know the layer
    assert await make("next") == left
    await node.store.remove_rootfs("killed")
    assert left.chain_id.removeprefix("sha256:") in node.layer_folders()
    await node.store.remove_rootfs("next")
    assert {f"sha256:{name}" for name in node.layer_folders()} == set(base)


async def test_a_layer_of_a_killed_build_goes_with_its_container(node: Node) -> None:
    base = node.store.get("base:1").layers
    place = await node.store.ensure_rootfs("killed", "base:1")
    (place / "f").write_text("f")
    await node.store.workshop.take("killed", base, lambda _: None)
    await node.restart()
    assert len(node.layer_folders()) == 2
    await node.store.remove_rootfs("killed")

    assert {f"sha256:{name}" for name in node.layer_folders()} == set(base)


async def test_what_a_build_without_cache_replaces_in_the_cache_is_removed(node: Node) -> None:
    builder = builder_of(node)
    await build(node, builder, "FROM base:1\nRUN one\n", "made")
    await build(node, builder, "FROM base:1\nRUN one\n", "made", no_cache=True)
    for image in node.store.all():
        if not image.repo_tags:
            await node.store.remove(image.id)

    kept = {f"sha256:{name}" for name in node.layer_folders()}
    assert kept == set(node.store.get("made").layers)
