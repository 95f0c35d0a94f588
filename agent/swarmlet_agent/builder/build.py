"""What the stages of one build share: its options, its folders, what it has made so far, the images it starts from."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Protocol

from swarmlet.errors import NotFound
from swarmlet.model.container import ContainerCreate
from swarmlet_agent.builder.cache import BuildCache, CacheEntry
from swarmlet_agent.builder.mountcaches import MountCaches
from swarmlet_agent.builder.options import BuildOptions
from swarmlet_agent.builder.output import Lane
from swarmlet_agent.builder.plan import Plan
from swarmlet_agent.builder.state import State, empty_state, state_of
from swarmlet_agent.engine.container import Container, WaitResult
from swarmlet_agent.engine.ports import Streams
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.platforms import Platform, check_system, matches, parse_platform
from swarmlet_agent.images.progress import Listener
from swarmlet_agent.images.reference import is_image_id, parse_reference
from swarmlet_agent.images.registry import Download
from swarmlet_agent.images.types import Image, RegistryAuth
from swarmlet_agent.images.workshop import Workshop

SCRATCH = "scratch"


class Waiting(Protocol):
    async def result(self) -> WaitResult: ...
    def close(self) -> None: ...


class Containers(Protocol):
    """What is used of the engine."""

    async def create(
        self, name: str, request: ContainerCreate, *, platform: str = ""
    ) -> tuple[Container, list[str]]: ...
    async def attach(self, ref: str) -> Streams: ...
    async def start_container(self, ref: str) -> None: ...
    def register_wait(self, ref: str, condition: str = "not-running") -> Waiting: ...
    async def settle(self, ref: str) -> Container: ...
    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None: ...


class ImageSource(Protocol):
    """What is used of the image store besides its workshop."""

    def get(self, ref: str) -> Image: ...
    async def pull(
        self, ref: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> Image: ...
    def fetch_url(self, url: str) -> AsyncIterator[bytes]: ...
    def open_url(self, url: str) -> AbstractAsyncContextManager[Download]: ...


class Build:
    """One build. Its stages' results are futures, so that each begins as soon as those it needs are done."""

    def __init__(
        self, options: BuildOptions, plan: Plan, folder: Path, context: Path, *, images: ImageSource,
        workshop: Workshop, containers: Containers, cache: BuildCache, mount_caches: MountCaches, pins: ExitStack,
    ) -> None:
        self.options, self.plan, self.folder, self.context = options, plan, folder, context
        self.images, self.workshop, self.containers, self.cache = images, workshop, containers, cache
        self.mount_caches = mount_caches
        self.id = secrets.token_hex(16)
        loop = asyncio.get_running_loop()
        self.results: dict[int, asyncio.Future[State]] = {
            stage.number: loop.create_future() for stage in plan.stages
        }
        #: Of each stage that has begun: the id of the image at its bottom, "" for scratch.
        self.bases: dict[int, str] = {}
        self.entries: list[CacheEntry] = []
        self.cache_hits: list[str] = []
        self.used_args: set[str] = set(plan.used)
        self.kept_containers: list[str] = []
        self.touched: dict[str, None] = {}
        self._pins = pins
        self._serial = 0

    def pin(self, state: State) -> State:
        """Its layers stay until the build is over."""
        self._pins.enter_context(self.workshop.pinned(state.chains))
        self.touched.update(dict.fromkeys(state.chains))
        return state

    def keep_layer(self, layer: Layer) -> None:
        """A layer that was made just now stays, too, before any state has it."""
        self._pins.enter_context(self.workshop.pinned((layer.chain_id,)))
        self.touched[layer.chain_id] = None

    def serial(self) -> int:
        """For names that are used once."""
        self._serial += 1
        return self._serial

    def now(self) -> int:
        return time.time_ns()

    async def image(self, name: str, platform: str, lane: Lane) -> State:
        """What an image's name means, pulled if it has to be. NotFound and what pulling raises."""
        platform = platform or self.options.platform
        wanted = parse_platform(platform)
        if name == SCRATCH:
            check_system(base := wanted or self.workshop.host)
            return empty_state(base)
        found = None if self.options.pull and not is_image_id(name) else self._local(name, wanted)
        if found is None:
            ref = parse_reference(name)
            found = await self.images.pull(
                ref.with_default_tag().full, auth=self.options.auth_for(ref), platform=platform, progress=lane.put
            )
        return self.pin(state_of(self.workshop.configuration(found.id)))

    def _local(self, name: str, wanted: Platform | None) -> Image | None:
        try:
            image = self.images.get(name)
        except NotFound:
            if is_image_id(name):
                raise
            return None
        have = Platform(image.architecture, image.os, image.variant)
        return image if wanted is None or matches(have, wanted) else None

    def cache_sources(self) -> list[State]:
        """The images of --cache-from that are here."""
        found = []
        for name in self.options.cache_from:
            try:
                image = self.images.get(name)
            except NotFound:
                continue
            found.append(self.pin(state_of(self.workshop.configuration(image.id))))
        return found
