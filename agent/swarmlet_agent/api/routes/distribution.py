"""Engine API: calls that only ask a registry: /distribution/{name}/json, /auth (docker login), /images/search."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import SwarmletError, Unauthorized
from swarmlet_agent.api.routes.credentials import credentials
from swarmlet_agent.images.auth import decode_body
from swarmlet_agent.images.refusals import RegistryDenied
from swarmlet_agent.images.types import RegistryAuth

#: Credentials are small; a body that is not is none.
_MAX_CREDENTIALS = 64 << 10


class DistributionBackend(Protocol):
    async def distribution(self, ref: str, auth: RegistryAuth | None = None) -> dict[str, Any]: ...
    async def login(self, auth: RegistryAuth) -> str: ...
    async def search(
        self, term: str, *, limit: int = 0, filters: Filters, auth: RegistryAuth | None = None
    ) -> list[dict[str, Any]]: ...


class DistributionRoutes:
    def __init__(self, images: DistributionBackend) -> None:
        self._images = images

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/distribution/{name:path}/json", self._inspect),
            Route("POST", "/auth", self._auth),
            Route("GET", "/images/search", self._search),
        ]

    async def _inspect(self, call: Call) -> web.StreamResponse:
        """DistributionInspect: 200; 400 bad name; 401 denied; 404 unknown; 500 unreachable."""
        auth = credentials(call)
        try:
            return json_answer(await self._images.distribution(call.params["name"], auth))
        except RegistryDenied as err:
            # Here, unlike for a pull, dockerd passes the registry's 401 on.
            raise _plain(err) from err

    async def _auth(self, call: Call) -> web.StreamResponse:
        """SystemAuth: 200 with a token to keep in place of the password, if the registry gives one; 401; 500."""
        try:
            token = await self._images.login(decode_body(await call.request.content.read(_MAX_CREDENTIALS)))
        except RegistryDenied as err:
            raise _plain(err) from err
        return json_answer({"Status": "Login Succeeded", "IdentityToken": token})

    async def _search(self, call: Call) -> web.StreamResponse:
        """ImageSearch: 200; 400 for bad arguments; 500 unreachable."""
        found = await self._images.search(
            call.text("term"), limit=call.number("limit") or 0, filters=call.filters(), auth=credentials(call)
        )
        return json_answer(found)


def _plain(err: SwarmletError) -> Unauthorized:
    return Unauthorized(str(err))
