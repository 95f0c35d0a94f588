"""`docker build`, the classic way: a Dockerfile and its context in, an image and the story of its making out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from shutil import disk_usage
from typing import Any

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Conflict, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.build import Build, Containers, ImageSource
from swarmlet_agent.builder.cache import BuildCache
from swarmlet_agent.builder.context import WorkFolders, read_dockerfile, receive
from swarmlet_agent.builder.dockerfile import BadDockerfile
from swarmlet_agent.builder.filing import do_copy, do_workdir
from swarmlet_agent.builder.mountcaches import MountCaches
from swarmlet_agent.builder.options import BuildOptions
from swarmlet_agent.builder.output import BuildCancelled, Lane
from swarmlet_agent.builder.plan import Plan, Stage, plan_build
from swarmlet_agent.builder.pruning import CACHE_MOUNT, REGULAR, Budget, Item, plan_pruning, shown
from swarmlet_agent.builder.remote import KEEP_GIT_DIR, fetch_remote
from swarmlet_agent.builder.running import do_run
from swarmlet_agent.builder.stage import PREDEFINED, StageRun, Steps
from swarmlet_agent.builder.state import State
from swarmlet_agent.images.platforms import Platform, parse_platform
from swarmlet_agent.images.progress import Listener
from swarmlet_agent.images.workshop import Workshop, to_the_end
from swarmlet_agent.journal import Journal

log = get_logger(__name__)
_STEPS: Steps = {kinds.Copy: do_copy, kinds.Workdir: do_workdir, kinds.Run: do_run}


class Builder:
    """One per agent. `load` before the image store starts, `start` once the engine has."""

    def __init__(
        self, images: ImageSource, workshop: Workshop, containers: Containers, journal: Journal, *, data_dir: Path,
        on_prune: Callable[[int], None] | None = None,
    ) -> None:
        """on_prune: told how many bytes a pruning has freed."""
        self._on_prune = on_prune
        self._images, self._workshop, self._containers = images, workshop, containers
        self._cache = BuildCache(journal, workshop)
        self._folders = WorkFolders(workshop.tmp)
        self._mount_caches = MountCaches(data_dir / "build-caches")
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._cancelled: set[str] = set()

    def load(self) -> None:
        """What the journal has of earlier builds."""
        self._cache.load()

    async def start(self, names: Mapping[str, str]) -> None:
        """Remove what killed builds have left. names: of all containers, with their ids."""
        await self._mount_caches.recover()
        await self._cache.check()
        for build in self._cache.unfinished:
            for name, ident in names.items():
                if name.startswith(f"build-{build}-"):
                    try:
                        await self._containers.remove(ident, force=True, volumes=True)
                    except SwarmletError as err:
                        log.warning("a build's container stays behind", container=name, error=str(err))
            await self._cache.finish(build, (), ())

    async def close(self) -> None:
        """Once no build is under way: finish clearing up."""
        await self._folders.close()

    async def build(self, options: BuildOptions, chunks: AsyncIterator[bytes], listener: Listener) -> str:
        """The id of the image. What it says goes to the listener, the last words included.

        BadDockerfile and InvalidArgument for what cannot be meant, BuildFailed for a step, and what pulling, running
        and storing raise; BuildCancelled if `cancel` was called. Cancelling it ends its containers and leaves nothing.
        """
        task = None
        if options.build_id:
            if options.build_id in self._under_way:
                raise Conflict(f"build ID {options.build_id} is in use")
            task = asyncio.current_task()
            if task is not None:
                self._under_way[options.build_id] = task
        try:
            return await self._build(options, chunks, listener)
        except asyncio.CancelledError:
            # Only if nobody else has cancelled it, too.
            if options.build_id in self._cancelled and task is not None and not task.uncancel():
                raise BuildCancelled from None
            raise
        finally:
            self._under_way.pop(options.build_id, None)
            self._cancelled.discard(options.build_id)

    async def _build(self, options: BuildOptions, chunks: AsyncIterator[bytes], listener: Listener) -> str:
        async with self._folders.one() as folder:
            if options.remote:
                context, dockerfile = await fetch_remote(options, folder, self._images.fetch_url)
            else:
                context, dockerfile = await receive(chunks, folder), options.dockerfile
            text = await asyncio.to_thread(read_dockerfile, context, dockerfile)
            plan = plan_build(
                text, build_args=options.build_args, target=options.target, labels=options.labels,
                builtin=_builtin_args(self._workshop.host, options),
            )
            return await self._make(options, plan, folder, context, listener)

    def cancel(self, build_id: str) -> None:
        """End a build that was given this id. None of that id is fine, as with dockerd."""
        task = self._under_way.get(build_id)
        if task is not None and build_id not in self._cancelled:
            self._cancelled.add(build_id)
            task.cancel()

    async def prune(self, filters: Filters, *, everything: bool, budget: Budget) -> tuple[list[str], int]:
        """The cache entries that went, and the bytes that freed. everything: also those that images have layers of."""
        items = await self._items()
        keep = budget.keep_bytes(sum(item.size_bytes for item in items), disk_usage(self._workshop.tmp).free)
        doomed = plan_pruning(items, filters, everything=everything, keep_bytes=keep, now=time.time_ns())
        caches = [item for item in doomed if item.kind == CACHE_MOUNT]
        freed = await self._cache.remove([item.key for item in doomed if item.kind == REGULAR])
        await self._mount_caches.remove(item.key for item in caches)
        freed += sum(item.size_bytes for item in caches)
        if self._on_prune is not None:
            self._on_prune(freed)
        return [item.id for item in doomed], freed

    async def disk_usage(self) -> list[dict[str, Any]]:
        """BuildCache of GET /system/df."""
        return [shown(item) for item in await self._items()]

    async def _items(self) -> list[Item]:
        return [*self._cache.items(self._workshop.in_images()), *await self._mount_caches.items()]

    async def _make(
        self, options: BuildOptions, plan: Plan, folder: Path, context: Path, listener: Listener
    ) -> str:
        with ExitStack() as pins:
            build = Build(
                options, plan, folder, context, images=self._images, workshop=self._workshop,
                containers=self._containers, cache=self._cache, mount_caches=self._mount_caches, pins=pins,
            )
            try:
                await self._run_stages(build, listener)
                return await self._finish(build, build.results[plan.target].result(), listener)
            finally:
                await to_the_end(self._cache.finish(build.id, build.entries, build.cache_hits))
                pins.close()
                await to_the_end(self._sweep(build))

    async def _sweep(self, build: Build) -> None:
        await self._workshop.sweep(build.touched)

    async def _run_stages(self, build: Build, listener: Listener) -> None:
        """Side by side, as far as they do not need each other; told one after another."""
        telling = asyncio.Lock()

        async def tell(message: dict[str, Any]) -> None:
            async with telling:
                await listener(message)

        lanes = {stage.number: Lane(tell) for stage in build.plan.stages}
        sources = build.cache_sources()
        failures: list[BaseException] = []

        async def one(stage: Stage) -> None:
            lane = lanes[stage.number]
            try:
                build.results[stage.number].set_result(await StageRun(build, stage, lane, sources, _STEPS).run())
            except Exception as err:
                failures.append(err)
                raise
            await lane.end()

        for number, arg in enumerate(build.plan.meta, 1):
            await listener({"stream": f"Step {number}/{build.plan.steps} : {arg.code}"})
            await listener({"stream": "\n"})
        told = 0
        lane_order = [lanes[stage.number] for stage in build.plan.stages]
        try:
            async with asyncio.TaskGroup() as group:
                for stage in build.plan.stages:
                    group.create_task(one(stage), name=f"build stage {stage.number}")
                for lane in lane_order:
                    await lane.drain()
                    told += 1
        except BaseExceptionGroup as errors:  # a stage that was cancelled is in it, too
            for lane in lane_order[told:]:
                await lane.flush()
            raise (failures[0] if failures else errors.exceptions[0]) from None

    async def _finish(self, build: Build, state: State, listener: Listener) -> str:
        """The image, its names, and the last words."""
        options = build.options
        if not state.short_id:
            raise BadDockerfile("No image was generated. Is your Dockerfile empty?")
        unused = sorted(set(options.build_args) - build.used_args - PREDEFINED - {KEEP_GIT_DIR})
        if unused:
            await listener({"stream": f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n"})
        await self._workshop.add(state.configuration, options.tags, build.bases[build.plan.target])
        await listener({"stream": f"Successfully built {state.short_id}\n"})
        for name in options.tags:
            await listener({"stream": f"Successfully tagged {name.familiar}\n"})
        return state.id


def _builtin_args(host: Platform, options: BuildOptions) -> dict[str, str]:
    """Variables that every FROM may use, and a stage with ARG."""
    target = parse_platform(options.platform) or host
    values = {"TARGETSTAGE": options.target or "default"}
    for prefix, platform in (("TARGET", target), ("BUILD", host)):
        values |= {
            f"{prefix}PLATFORM": str(platform), f"{prefix}OS": platform.os, f"{prefix}ARCH": platform.architecture,
            f"{prefix}VARIANT": platform.variant,
        }
    return values
