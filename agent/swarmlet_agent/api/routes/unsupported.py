"""Calls of the Engine API that this engine knows and does not serve yet: a clear 501 rather than "page not found"."""

from __future__ import annotations

from aiohttp import web

from swarmlet.engine_api.answers import refusal
from swarmlet.engine_api.router import Call, Handler, Route

_UNSUPPORTED: tuple[tuple[str, str, str], ...] = (
    ("GET", "/containers/{id}/checkpoints", "checkpointing containers"),
    ("POST", "/containers/{id}/checkpoints", "checkpointing containers"),
    ("POST", "/session", "building images with BuildKit"),
    ("POST", "/grpc", "building images with BuildKit"),
    ("GET", "/plugins/privileges", "managing plugins"),
    ("POST", "/plugins/pull", "managing plugins"),
    ("POST", "/plugins/create", "managing plugins"),
)


class UnsupportedRoutes:
    def routes(self) -> list[Route]:
        return [
            *(Route(method, template, _refuse(what)) for method, template, what in _UNSUPPORTED),
            Route("GET", "/plugins", _no_plugins),
        ]


def _refuse(what: str) -> Handler:
    async def handler(call: Call) -> web.StreamResponse:
        return refusal(f"{what} is not supported yet by this engine", 501)

    return handler


async def _no_plugins(call: Call) -> web.StreamResponse:
    """PluginList: there are none."""
    return web.json_response([])
