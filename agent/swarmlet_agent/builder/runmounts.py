"""RUN --mount, and the scripts of here-documents: what is mounted into a step's container, and what of it counts for
the build cache."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import Mount, TmpfsOptions
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.copying import How, copy_sources
from swarmlet_agent.builder.filing import source_state
from swarmlet_agent.builder.mountcaches import Base
from swarmlet_agent.builder.mounts import RunMount, parse_mount, unprovided
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.builder.sources import Found, digest_of_sources, find_sources
from swarmlet_agent.builder.stage import StageRun
from swarmlet_agent.images.layers import stoppable


async def mounts_of(run: StageRun, step: kinds.Run, stack: AsyncExitStack) -> tuple[list[Mount], list[str]]:
    """Of files that the step depends on; and what they and all others are to the cache."""
    mounts: list[Mount] = []
    marks: list[str] = []
    for wish in _wishes(run, step):
        mark = repr(wish)
        if wish.type == "bind":
            mount, digest = await _bind(run, wish, stack)
            mounts.append(mount)
            mark += digest
        elif wish.type == "cache" and wish.stage:
            mark += (await source_state(run, wish.stage)).id
        marks.append(mark)
    return mounts, marks


async def private_mounts(run: StageRun, step: kinds.Run, stack: AsyncExitStack) -> list[Mount]:
    """Caches and tmpfs: nothing that the result may depend on."""
    wishes = _wishes(run, step)
    folders: dict[RunMount, Path] = {}
    # Always in the same order: steps that wait for each other's caches would wait for ever.
    for wish in sorted({wish for wish in wishes if wish.type == "cache"}, key=lambda wish: (wish.id, wish.target)):
        base = await _base(run, wish) if wish.stage else None
        folders[wish] = await run.build.mount_caches.take(wish, stack, base)
    mounts = []
    for wish in wishes:
        if wish.type == "tmpfs":
            mounts.append(Mount(type="tmpfs", target=wish.target, tmpfs_options=TmpfsOptions(size_bytes=wish.size)))
        elif wish.type == "cache":
            mounts.append(
                Mount(type="bind", source=str(folders[wish]), target=wish.target, read_only=wish.read_only)
            )
    return mounts


async def _base(run: StageRun, wish: RunMount) -> Base:
    """What a new cache has of a stage or an image. InvalidArgument if it has no such folder."""
    state = await source_state(run, wish.stage)

    async def fill(place: Path) -> None:
        async with run.build.workshop.bench(state.chains) as bench:
            with Root(bench.path) as root:
                source = wish.source.replace("*", "\\*") or "."
                [found] = await asyncio.to_thread(find_sources, root, [source], what="RUN --mount", of_context=False)
                if not found.is_folder:
                    raise InvalidArgument(f"RUN --mount=type=cache: {wish.source} is no folder of {wish.stage}")
                await stoppable(lambda stopped: _copy_into(found, place, stopped))

    return Base(f"{state.id} {wish.source}", fill)


async def script_mount(run: StageRun, target: str, content: str) -> Mount:
    """A here-document that is a program of its own."""
    place = run.build.folder / f"script-{run.build.serial()}"
    await asyncio.to_thread(_write_script, place, content)
    return Mount(type="bind", source=str(place), target=target, read_only=True)


def _write_script(place: Path, content: str) -> None:
    place.write_text(content)
    place.chmod(0o755)


def _wishes(run: StageRun, step: kinds.Run) -> list[RunMount]:
    """With variables replaced and targets absolute, but for what only a client could give. ValueError."""
    working_dir = run.config.working_dir or "/"
    return [
        replace(wish, target=posixpath.join("/", working_dir, wish.target))
        for wish in _all_wishes(run, step) if wish.type not in ("secret", "ssh")
    ]


def _all_wishes(run: StageRun, step: kinds.Run) -> list[RunMount]:
    return [parse_mount(mount.text, run.scope.text) for mount in step.mounts]


def check_given(run: StageRun, step: kinds.Run) -> None:
    """InvalidArgument for a secret or an SSH agent that the step requires; others are left out, there are none."""
    for wish in _all_wishes(run, step):
        if missing := unprovided(wish):
            raise InvalidArgument(missing)


async def _bind(run: StageRun, wish: RunMount, stack: AsyncExitStack) -> tuple[Mount, str]:
    """A file or folder of the context, a stage or an image; and the digest of what is in it.

    What is written there is lost, as the Dockerfile reference has it: a stage's root is the step's own anyway, of the
    context it gets a copy.
    """
    folder = run.build.context
    if wish.stage:
        state = await source_state(run, wish.stage)
        folder = (await stack.enter_async_context(run.build.workshop.bench(state.chains))).path
    root = stack.enter_context(Root(folder))
    found = await asyncio.to_thread(
        find_sources, root, [wish.source.replace("*", "\\*") or "."], what="RUN --mount", of_context=not wish.stage
    )
    digest = await stoppable(lambda stopped: digest_of_sources(found, owners=True, stopped=stopped))
    source = folder / found[0].path
    if not wish.read_only and not wish.stage:
        place = run.build.folder / f"writable-{run.build.serial()}"
        await stoppable(lambda stopped: _copy(found[0], place, stopped))
        source = place if found[0].is_folder else place / found[0].name
    return Mount(type="bind", source=str(source), target=wish.target, read_only=wish.read_only), digest


def _copy_into(found: Found, place: Path, stopped: Callable[[], bool]) -> None:
    with Root(place) as root:
        copy_sources([found], root, "/", False, How(owner=None), stopped)


def _copy(found: Found, place: Path, stopped: Callable[[], bool]) -> None:
    place.mkdir()
    with Root(place) as root:
        copy_sources([found], root, "/", not found.is_folder, How(owner=None), stopped)
