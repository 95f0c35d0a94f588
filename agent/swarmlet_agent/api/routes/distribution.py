"""Engine API: /distribution/{name}/json, what a registry has behind a name."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import SwarmletError, Unauthorized
from swarmlet_agent.images.auth import decode_auth
from swarmlet_agent.images.registry import RegistryDenied
from swarmlet_agent.images.types import RegistryAuth


class DistributionBackend(Protocol):
    async def distribution(self, ref: str, auth: RegistryAuth | None = None) -> dict[str, Any]: ...


class DistributionRoutes:
    def __init__(self, images: DistributionBackend) -> None:
        self._images = images

    def routes(self) -> list[Route]:
        return [Route("GET", "/distribution/{name:path}/json", self._inspect)]

    async def _inspect(self, call: Call) -> web.StreamResponse:
        """DistributionInspect: 200; 400 bad name; 401 denied; 404 unknown; 500 unreachable."""
        auth = decode_auth(call.request.headers.get("X-Registry-Auth", ""))
        try:
            return json_answer(await self._images.distribution(call.params["name"], auth))
        except RegistryDenied as err:
            # Here, unlike for a pull, dockerd passes the registry's 401 on.
            raise _plain(err) from err


def _plain(err: SwarmletError) -> Unauthorized:
    return Unauthorized(str(err))
