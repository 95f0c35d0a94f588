"""Calls of the Engine API that neither view serves: a clear refusal that names the thing, not "page not found".

BuildKit's /session and /grpc are refused, and `_ping` offers the classic builder: clients without buildx build through
POST /build. There are no plugins, so each one asked for is unknown. Checkpoints are an experimental feature of dockerd
that this engine does not have.
"""

from __future__ import annotations

from aiohttp import web

from swarmlet.engine_api.answers import json_answer, refusal
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import NotFound

_BUILDKIT = "BuildKit is not supported by this engine: build with DOCKER_BUILDKIT=0"
_PLUGINS = "plugins are not supported by this engine"
_CHECKPOINTS = "checkpoints are not supported by this engine"
_REFUSED = (
    ("POST", "/session", _BUILDKIT),
    ("POST", "/grpc", _BUILDKIT),
    ("GET", "/plugins/privileges", _PLUGINS),
    ("POST", "/plugins/pull", _PLUGINS),
    ("POST", "/plugins/create", _PLUGINS),
    ("GET", "/containers/{id}/checkpoints", _CHECKPOINTS),
    ("POST", "/containers/{id}/checkpoints", _CHECKPOINTS),
    ("DELETE", "/containers/{id}/checkpoints/{name}", _CHECKPOINTS),
)
_ONE_PLUGIN = (
    ("GET", "/json"), ("DELETE", ""), ("POST", "/enable"), ("POST", "/disable"), ("POST", "/upgrade"),
    ("POST", "/push"), ("POST", "/set"),
)  # fmt: skip


class Refusal:
    """A handler that answers 501 with a message."""

    def __init__(self, message: str) -> None:
        self.message = message

    async def __call__(self, call: Call) -> web.StreamResponse:
        return refusal(self.message, 501)


class UnsupportedRoutes:
    """They come before routes whose templates match more, such as DELETE /containers/{id:path}."""

    def routes(self) -> list[Route]:
        return [
            *(Route(method, template, Refusal(message)) for method, template, message in _REFUSED),
            Route("GET", "/plugins", self.no_plugins),
            *(Route(method, "/plugins/{name:path}" + rest, self.unknown_plugin) for method, rest in _ONE_PLUGIN),
        ]

    async def no_plugins(self, call: Call) -> web.StreamResponse:
        """PluginList: 200, empty; 400 for an unknown filter."""
        call.filters().check("capability", "enabled")
        return json_answer([])

    async def unknown_plugin(self, call: Call) -> web.StreamResponse:
        """PluginInspect and all that needs one: 404."""
        name = call.params["name"]
        raise NotFound("plugin", name, f'plugin "{name}" not found')
