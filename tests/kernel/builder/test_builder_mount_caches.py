"""Folders of RUN --mount=type=cache: who gets which, what is known of them, and how they go."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.mountcaches import Base, MountCaches
from swarmlet_agent.builder.mounts import parse_mount
from swarmlet_agent.builder.pruning import CACHE_MOUNT

pytestmark = pytest.mark.kernel


async def test_a_cache_is_kept_counted_and_shown(tmp_path: Path) -> None:
    caches = MountCaches(tmp_path / "caches")
    wish = parse_mount("type=cache,target=/pip,mode=0750,uid=7,gid=8")
    assert await caches.items() == []
    async with AsyncExitStack() as stack:
        folder = await caches.take(wish, stack)
        (folder / "wheel").write_bytes(b"x" * 1000)
        assert (folder.stat().st_mode & 0o777, folder.stat().st_uid, folder.stat().st_gid) == (0o750, 7, 8)
        [item] = await caches.items()
        assert item.in_use
        await caches.remove([item.key])
        assert (folder / "wheel").exists()
    async with AsyncExitStack() as stack:
        assert (await caches.take(wish, stack) / "wheel").exists()

    [item] = await MountCaches(tmp_path / "caches").items()
    assert (item.kind, item.size_bytes, item.uses, item.in_use) == (CACHE_MOUNT, 1000, 2, False)
    assert "/pip" in item.description and 0 < item.created_at < item.used_at
    await caches.remove([item.key])
    assert await caches.items() == [] and list((tmp_path / "caches").iterdir()) == []


async def test_a_new_cache_begins_with_its_base_or_not_at_all(tmp_path: Path) -> None:
    caches = MountCaches(tmp_path / "caches")
    wish = parse_mount("type=cache,target=/c,from=base,mode=0711")

    async def seed(place: Path) -> None:
        (place / "seed").write_text("s")

    async def fail(place: Path) -> None:
        (place / "half").write_text("h")
        raise InvalidArgument("no such folder")

    async with AsyncExitStack() as stack:
        with pytest.raises(InvalidArgument):
            await caches.take(wish, stack, Base("x", fail))
        assert list((tmp_path / "caches").iterdir()) == []
        folder = await caches.take(wish, stack, Base("x", seed))
        assert [each.name for each in folder.iterdir()] == ["seed"] and folder.stat().st_mode & 0o777 == 0o711
        (folder / "more").touch()
        assert await caches.take(wish, stack, Base("x", fail)) == folder  # it is there
        other = await caches.take(wish, stack, Base("y", seed))
        assert other != folder and await caches.take(wish, stack) not in (folder, other)
    assert len(await caches.items()) == 3


async def test_a_locked_cache_has_one_user_and_a_private_one_a_folder_for_each(tmp_path: Path) -> None:
    caches = MountCaches(tmp_path / "caches")
    locked, private = parse_mount("type=cache,target=/l,sharing=locked"), parse_mount(
        "type=cache,target=/p,sharing=private"
    )
    second = AsyncExitStack()
    async with AsyncExitStack() as first:
        place = await caches.take(locked, first)
        waiting = asyncio.create_task(caches.take(locked, second))
        one, two = await caches.take(private, first), await caches.take(private, first)
        assert one != two
        shared = parse_mount("type=cache,target=/s")
        assert await caches.take(shared, first) == await caches.take(shared, first)
        assert not waiting.done()
    assert await waiting == place
    await second.aclose()
    async with AsyncExitStack() as stack:
        assert await caches.take(private, stack) == one


async def test_a_removal_that_was_cut_is_finished_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".removed-x" / "deep").mkdir(parents=True)
    caches = MountCaches(tmp_path)
    assert await caches.items() == []
    await caches.recover()

    assert list(tmp_path.iterdir()) == []
