"""Engine API: /build, /build/prune, /build/cancel of the node view (the classic builder's protocol)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.builder.options import BuildOptions, read_options
from swarmlet_agent.builder.output import BuildFailed
from swarmlet_agent.builder.pruning import Budget
from swarmlet_agent.images.progress import Listener

log = get_logger(__name__)


class BuildBackend(Protocol):
    """What these routes use of the builder."""

    async def build(self, options: BuildOptions, chunks: AsyncIterator[bytes], listener: Listener) -> str: ...
    def cancel(self, build_id: str) -> None: ...
    async def prune(self, filters: Filters, *, everything: bool, budget: Budget) -> tuple[list[str], int]: ...


class BuildRoutes:
    def __init__(self, builder: BuildBackend) -> None:
        self._builder = builder

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/build", self._build),
            Route("POST", "/build/prune", self._prune),
            Route("POST", "/build/cancel", self._cancel),
        ]

    async def _build(self, call: Call) -> web.StreamResponse:
        """ImageBuild: 200 and a stream; 400 for a bad request or Dockerfile, before the stream begins."""
        options = read_options(call, call.request.headers.get("X-Registry-Config", ""))
        stream = JsonStream(call)
        held: list[dict[str, Any]] = []

        async def hold(message: dict[str, Any]) -> None:
            held.append(message)

        async with WhileConnected(call.request):
            listener = hold if options.quiet else stream.send
            try:
                ident = await self._builder.build(options, call.request.content.iter_any(), listener)
            except ConnectionError:
                raise  # the client's
            except Exception as err:
                if not stream.started and not held:
                    raise
                for message in held:
                    await stream.send(message)
                await _fail(stream, err)
                return await stream.end()
            if options.quiet:
                await stream.send({"stream": f"{ident}\n"})
            return await stream.end()

    async def _prune(self, call: Call) -> web.StreamResponse:
        """BuildPrune: 200."""
        asked: dict[str, int] = {}
        for name in ("reserved-space", "keep-storage", "max-used-space", "min-free-space"):
            asked[name] = call.number(name) or 0
            if asked[name] < 0:
                raise InvalidArgument(f"{name} is in bytes, and cannot be negative: {asked[name]}")
        reserved = asked["reserved-space"] or asked["keep-storage"]
        budget = Budget(reserved, asked["max-used-space"], asked["min-free-space"])
        deleted, freed = await self._builder.prune(call.filters(), everything=call.flag("all"), budget=budget)
        return json_answer({"CachesDeleted": deleted or None, "SpaceReclaimed": freed})

    async def _cancel(self, call: Call) -> web.StreamResponse:
        """BuildCancel: 200, also if there is no such build."""
        ident = call.text("id")
        if not ident:
            raise InvalidArgument("build ID not provided")
        self._builder.cancel(ident)
        return web.Response(status=200)


async def _fail(stream: JsonStream, error: Exception) -> None:
    """The last message; a failed program's exit code becomes the docker command's."""
    message = str(error)
    if not isinstance(error, SwarmletError):
        log.error("build failed", exc_info=error)
        message = f"internal error: {type(error).__name__}: {error}"
    detail: dict[str, Any] = {"message": message}
    if isinstance(error, BuildFailed):
        detail["code"] = error.code
    await stream.send({"errorDetail": detail, "error": message})
