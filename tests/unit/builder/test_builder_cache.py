"""The build cache: what it finds, what it holds, what a restart and pruning leave of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from swarmlet.model.container import ImageConfig
from swarmlet_agent.builder import cache as caches
from swarmlet_agent.builder.cache import BuildCache, CacheEntry, key_of
from swarmlet_agent.builder.state import State, advance, empty_state
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import chain_ids, digest_of
from swarmlet_agent.images.platforms import Platform
from swarmlet_agent.journal import Journal


class Workshop:
    """Layers by chain id; those that nobody holds go when they are swept."""

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.synced: set[str] = set()
        self.held: Callable[[], frozenset[str]] = frozenset

    def hold(self, layers: Callable[[], frozenset[str]]) -> None:
        self.held = layers

    def layer(self, chain_id: str) -> Layer | None:
        return self.layers.get(chain_id)

    async def sync(self, chains: Iterable[str]) -> None:
        self.synced |= set(chains)

    async def sweep(self, chains: Iterable[str]) -> list[Layer]:
        gone = [self.layers.pop(chain) for chain in chains if chain in self.layers and chain not in self.held()]
        return list(reversed(gone))


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


def opened(folder: Path, workshop: Workshop) -> tuple[Journal, BuildCache]:
    journal = Journal(folder / "journal.db")
    cache = BuildCache(journal, workshop)  # type: ignore[arg-type]
    cache.load()
    return journal, cache


def step(workshop: Workshop, before: State, name: str, *, used_at: int = 1) -> tuple[State, CacheEntry]:
    """A step that adds a layer of 100 bytes."""
    diff_id = digest_of(name.encode())
    chain = chain_ids([*before.diff_ids, diff_id])[-1]
    layer = Layer(chain_id=chain, diff_id=diff_id, parent=before.chains[-1] if before.chains else "", size_bytes=100)
    workshop.layers[chain] = layer
    state = advance(before, ImageConfig(), name, now=1, layer=layer)
    key = key_of(before, name)
    return state, CacheEntry(
        key=key, parent=before.id, raw=state.raw, layer=chain, description=name, created_at=1, used_at=used_at,
    )


START = empty_state(Platform("amd64", "linux"))


async def test_what_was_built_is_found_again_after_a_restart(tmp_path: Path, workshop: Workshop) -> None:
    journal, cache = opened(tmp_path, workshop)
    one, first = step(workshop, START, "a")
    two, second = step(workshop, one, "b")
    await cache.finish("x", [first, second], [])
    assert workshop.synced == set(two.chains) and workshop.held() == frozenset(two.chains)
    journal.close()
    journal, again = opened(tmp_path, workshop)
    await again.check()
    assert again.find(key_of(START, "a")) == one and again.find(key_of(one, "b")) == two
    assert again.find(key_of(START, "b")) is None
    journal.close()


async def test_entries_without_their_layers_are_forgotten_at_start(tmp_path: Path, workshop: Workshop) -> None:
    journal, cache = opened(tmp_path, workshop)
    _, first = step(workshop, START, "a")
    await cache.finish("x", [first], [])
    journal.close()
    workshop.layers.clear()
    for _ in range(2):
        journal, cache = opened(tmp_path, workshop)
        await cache.check()
        assert cache.find(first.key) is None and cache.items(frozenset()) == []
        journal.close()


async def test_builds_that_did_not_finish_are_remembered(tmp_path: Path, workshop: Workshop) -> None:
    journal, cache = opened(tmp_path, workshop)
    await cache.begin("dead")
    await cache.begin("done")
    await cache.finish("done", [], [])
    journal.close()
    journal, again = opened(tmp_path, workshop)
    assert again.unfinished == {"dead"}
    await again.finish("dead", [], [])
    assert not again.unfinished
    journal.close()


async def test_what_is_forgotten_frees_layers_that_nothing_else_needs(tmp_path: Path, workshop: Workshop) -> None:
    journal, cache = opened(tmp_path, workshop)
    one, first = step(workshop, START, "a")
    two, second = step(workshop, one, "b")
    _, third = step(workshop, START, "c")
    await cache.finish("x", [first, second, third], [])
    shown = {item.description: (item.shared, item.needed) for item in cache.items(frozenset(two.chains))}
    assert shown == {"a": (True, True), "b": (True, True), "c": (False, False)}
    assert {item.description for item in cache.items(frozenset(one.chains)) if item.needed} == {"a"}

    assert await cache.remove([first.key]) == 0  # its layer is b's too
    assert await cache.remove([third.key]) == 100
    assert {item.description for item in cache.items(frozenset())} == {"b"}
    assert await cache.remove([second.key]) == 200
    assert not workshop.layers and workshop.held() == frozenset()
    journal.close()


async def test_the_cache_keeps_within_its_bounds(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "MAX_BYTES", 250)
    journal, cache = opened(tmp_path, workshop)
    for number in range(4):
        _, entry = step(workshop, START, f"step {number}", used_at=number)
        await cache.finish("x", [entry], [])
    assert {item.description for item in cache.items(frozenset())} == {"step 2", "step 3"}
    assert len(workshop.layers) == 2
    journal.close()


def test_keys_tell_parents_and_parts_apart() -> None:
    other = advance(START, ImageConfig(), "x", now=1)
    keys = [key_of(START), key_of(START, "a"), key_of(START, "a", "b"), key_of(START, "ab"), key_of(other, "a")]
    assert len(set(keys)) == len(keys)
