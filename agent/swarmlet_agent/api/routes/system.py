"""Engine API routes about the node itself: _ping, version, info, disk usage, and registry login."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument
from swarmlet_agent.api.backends import EventSource
from swarmlet_agent.api.shapes.info import HostFacts, NodeFacts, RuntimeFacts, system_info, system_version
from swarmlet_agent.api.shapes.summary import container_summary
from swarmlet_agent.engine.container import Container

_PING_HEADERS = {
    "Builder-Version": "1",  # the classic builder: there is no BuildKit session to open
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
}
DISK_USAGE_TYPES = ("container", "image", "volume", "build-cache")


class SwarmMembership(Protocol):
    """The node's place in a cluster."""

    def ping_state(self) -> str:
        """The `Swarm` header: inactive, active/worker or active/manager (Engine API SystemPing)."""
        ...

    async def info(self) -> Mapping[str, Any]:
        """Engine API SwarmInfo, at once: from memory."""
        ...


class DiskUsage(Protocol):
    """What images and volumes take. Both may take a while and are asked for only by `docker system df`."""

    async def images(self) -> tuple[int, Sequence[Mapping[str, Any]]]:
        """(bytes of all layers, each counted once; Engine API ImageSummary with Containers and SharedSize)."""
        ...

    async def volumes(self) -> Sequence[Mapping[str, Any]]:
        """Engine API Volume with UsageData."""
        ...

    def build_cache(self) -> Sequence[Mapping[str, Any]]:
        """Engine API BuildCache."""
        ...


class SystemBackend(Protocol):
    def list(self) -> Sequence[Container]: ...

    async def size(self, ref: str) -> int: ...


class ImageCount(Protocol):
    def count(self) -> int: ...


class RuntimeSource(Protocol):
    def supports(self) -> RuntimeFacts: ...


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

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_ping", self.ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/system/df", self.disk_usage),
        ]

    async def ping(self, call: Call) -> web.StreamResponse:
        """SystemPing, also as HEAD: clients learn the newest API version from its headers."""
        headers = {**_PING_HEADERS, "Swarm": self._swarm.ping_state()}
        return web.Response(text="" if call.request.method == "HEAD" else "OK", headers=headers)

    async def version(self, call: Call) -> web.StreamResponse:
        return json_answer(system_version(self._host, self._node, self._runtime.supports()))

    async def info(self, call: Call) -> web.StreamResponse:
        return json_answer(
            system_info(
                self._host,
                self._node,
                self._runtime.supports(),
                self._backend.list(),
                images=self._images.count(),
                listeners=self._events.listeners,
                swarm=await self._swarm.info(),
                now=time.time_ns(),
            )
        )

    async def disk_usage(self, call: Call) -> web.StreamResponse:
        """SystemDataUsage; `type`, which may repeat, leaves out what is not asked for."""
        kinds = call.texts("type") or list(DISK_USAGE_TYPES)
        for kind in kinds:
            if kind not in DISK_USAGE_TYPES:
                raise InvalidArgument(f"unknown object type: {kind}")
        answer: dict[str, Any] = {}
        if "image" in kinds:
            answer["LayersSize"], answer["Images"] = await self._usage.images()
        if "container" in kinds:
            answer["Containers"] = await self._containers()
        if "volume" in kinds:
            answer["Volumes"] = await self._usage.volumes()
        if "build-cache" in kinds:
            cached = self._usage.build_cache()
            answer |= {"BuildCache": cached, "BuilderSize": sum(entry["Size"] for entry in cached)}
        return json_answer(answer)

    async def _containers(self) -> list[dict[str, Any]]:
        now, gate = time.time_ns(), asyncio.Semaphore(4)

        async def summary(container: Container) -> dict[str, Any]:
            async with gate:
                own = await self._backend.size(container.id)
            return container_summary(container, container.image_ref, now, (own, 0))

        return list(await asyncio.gather(*(summary(each) for each in self._backend.list())))
