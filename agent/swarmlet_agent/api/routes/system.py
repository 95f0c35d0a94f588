"""Engine API routes about the node itself: _ping, version, info, disk usage, and registry login."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer, json_bytes, ping_answer, ready_answer
from swarmlet.engine_api.quick import QuickAnswer, QuickCall
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.versions import ApiVersion
from swarmlet.errors import InvalidArgument
from swarmlet.model.times import ZERO_TIME, rfc3339
from swarmlet_agent.api.backends import EventSource
from swarmlet_agent.api.shapes.info import HostFacts, NodeFacts, RuntimeFacts, system_info, system_version
from swarmlet_agent.api.shapes.summary import container_summary
from swarmlet_agent.api.summaries import names_by_links
from swarmlet_agent.engine.container import Container

DISK_USAGE_TYPES = ("container", "image", "volume", "build-cache")


class SwarmMembership(Protocol):
    """The node's place in a cluster."""

    def ping_state(self) -> str:
        """The `Swarm` header: inactive, active/worker or active/manager (Engine API SystemPing)."""
        ...

    def info(self) -> Mapping[str, Any]:
        """Engine API SwarmInfo, from memory."""
        ...

    def good(self) -> bool:
        """Whether `info` is fresh enough to be shown."""
        ...

    async def refresh(self) -> None:
        """Make it so."""
        ...


class DiskUsage(Protocol):
    """What takes the disk. All of it may take a while and is asked for only by `docker system df`."""

    async def images(self, version: ApiVersion) -> tuple[int, Sequence[Mapping[str, Any]]]:
        """(bytes of all layers, each counted once; Engine API ImageSummary with Containers and SharedSize)."""
        ...

    async def volumes(self) -> Sequence[Mapping[str, Any]]:
        """Engine API Volume with UsageData."""
        ...

    async def build_cache(self) -> Sequence[Mapping[str, Any]]:
        """Engine API BuildCache."""
        ...


class SystemBackend(Protocol):
    def list(self) -> Sequence[Container]: ...

    async def size(self, ref: str) -> int: ...


class ImageCount(Protocol):
    def count(self) -> int: ...

    def size(self, image_id: str) -> int:
        """Bytes; 0 for an image that was removed by force."""
        ...


class RuntimeSource(Protocol):
    def supports(self) -> RuntimeFacts: ...


@dataclass(frozen=True, slots=True)
class _Told:
    """What changes in /info, the time aside."""

    version: ApiVersion
    containers: Sequence[Container]
    images: int
    listeners: int
    swarm: dict[str, Any]
    runtime: RuntimeFacts


class SystemRoutes:
    def __init__(
        self,
        backend: SystemBackend,
        events: EventSource,
        runtime: RuntimeSource,
        images: ImageCount,
        usage: DiskUsage,
        swarm: SwarmMembership,
        *,
        host: HostFacts,
        node: NodeFacts,
    ) -> None:
        self._backend = backend
        self._events = events
        self._runtime = runtime
        self._images = images
        self._usage = usage
        self._swarm = swarm
        self._host = host
        self._node = node
        #: What /info told last, and its text before and behind the time.
        self._last_info: tuple[_Told, bytes, bytes] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_ping", self.ping, self.ping_quickly),
            Route("GET", "/version", self.version, lambda call: self._version()),
            Route("GET", "/info", self.info, self.info_quickly),
            Route("GET", "/system/df", self.disk_usage),
        ]

    async def ping(self, call: Call) -> web.StreamResponse:
        """SystemPing."""
        return ready_answer(ping_answer(call.request.method, self._swarm.ping_state()))

    def ping_quickly(self, call: QuickCall) -> QuickAnswer:
        return ping_answer(call.method, self._swarm.ping_state())

    async def version(self, call: Call) -> web.StreamResponse:
        """SystemVersion."""
        return ready_answer(self._version())

    def _version(self) -> QuickAnswer:
        return QuickAnswer(json_bytes(system_version(self._host, self._node, self._runtime.supports())))

    async def info(self, call: Call) -> web.StreamResponse:
        """SystemInfo."""
        await self._swarm.refresh()
        return ready_answer(self._info(call.version))

    def info_quickly(self, call: QuickCall) -> QuickAnswer | None:
        return self._info(call.version) if self._swarm.good() else None

    def _info(self, version: ApiVersion) -> QuickAnswer:
        """Encoded once for each state of what it tells; only the time is put in anew."""
        told = _Told(
            version, self._backend.list(), self._images.count(), self._events.listeners, dict(self._swarm.info()),
            self._runtime.supports(),
        )
        if self._last_info is None or self._last_info[0] != told:
            shown = system_info(
                self._host, self._node, told.runtime, told.containers, images=told.images, listeners=told.listeners,
                swarm=told.swarm, now=0, version=version,
            )
            before, _, after = json_bytes(shown).partition(f'"SystemTime":"{ZERO_TIME}"'.encode())
            self._last_info = told, before, after
        _, before, after = self._last_info
        return QuickAnswer(b'%s"SystemTime":"%s"%s' % (before, rfc3339(time.time_ns()).encode(), after))

    async def disk_usage(self, call: Call) -> web.StreamResponse:
        """SystemDataUsage; `type`, which may repeat, leaves out what is not asked for."""
        asked = call.texts("type") if call.version >= (1, 42) else ()  # older clients always got everything
        kinds = asked or list(DISK_USAGE_TYPES)
        for kind in kinds:
            if kind not in DISK_USAGE_TYPES:
                raise InvalidArgument(f"unknown object type: {kind}")
        answer: dict[str, Any] = {}
        if "image" in kinds:
            answer["LayersSize"], answer["Images"] = await self._usage.images(call.version)
        if "container" in kinds:
            answer["Containers"] = await self._containers()
        if "volume" in kinds:
            answer["Volumes"] = await self._usage.volumes()
        if "build-cache" in kinds:
            cached = await self._usage.build_cache()
            answer |= {"BuildCache": cached, "BuilderSize": sum(entry["Size"] for entry in cached)}
        return json_answer(answer)

    async def _containers(self) -> list[dict[str, Any]]:
        now, gate, every = time.time_ns(), asyncio.Semaphore(4), self._backend.list()
        linked = names_by_links(every)

        async def summary(container: Container) -> dict[str, Any]:
            async with gate:
                own = await self._backend.size(container.id)
            sizes = (own, self._images.size(container.image_id))
            return container_summary(container, container.image_ref, now, sizes, linked.get(container.name, ()))

        return list(await asyncio.gather(*(summary(each) for each in every)))
