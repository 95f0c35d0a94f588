"""Engine API route for a container's resource use."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import Conflict, NotFound
from swarmlet_agent.api.backends import StreamBackend
from swarmlet_agent.api.shapes.stats import container_stats, cpu_stats, host_cpu_ns, stopped_stats

#: Between two samples, as dockerd's collector has it.
PERIOD_S = 1.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_Previous = tuple[int, dict[str, Any]]


class StatsRoutes:
    def __init__(self, backend: StreamBackend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        return [Route("GET", "/containers/{id:path}/stats", self.stats)]

    async def stats(self, call: Call) -> web.StreamResponse:
        """ContainerStats: one object a second, until the container is removed; or one (stream=0), which without
        one-shot comes after a second, because percentages need two samples."""
        ident = self._backend.get(call.params["id"]).id
        streaming = call.flag("stream", True)
        stream = JsonStream(call)
        async with WhileConnected(call.request):
            if streaming:
                await stream.start()
            sample, previous = await self._sample(ident, None)
            if not streaming and not call.flag("one-shot") and previous is not None:
                await asyncio.sleep(PERIOD_S)
                sample, previous = await self._sample(ident, previous)
            await stream.send(sample)
            while streaming:
                await asyncio.sleep(PERIOD_S)
                try:
                    sample, previous = await self._sample(ident, previous)
                except NotFound:
                    break
                await stream.send(sample)
            return await stream.end()

    async def _sample(self, ident: str, previous: _Previous | None) -> tuple[dict[str, Any], _Previous | None]:
        """The answer, and what the next one is compared with (None if it does not run). NotFound once removed."""
        container = self._backend.get(ident)
        if not container.has_process:
            return stopped_stats(ident, container.name), None
        try:
            (usage, counters), proc_stat = await asyncio.gather(
                self._backend.usage(ident), asyncio.to_thread(_first_line_of_proc_stat)
            )
        except Conflict:  # it ended meanwhile
            return stopped_stats(ident, container.name), None
        cpu = cpu_stats(usage, host_cpu_ns(proc_stat, _TICKS_PER_S), os.cpu_count() or 1)
        return container_stats(ident, container.name, usage, counters, cpu, previous), (usage.read_at, cpu)


def _first_line_of_proc_stat() -> str:
    with open("/proc/stat") as file:
        return file.readline()
