"""An Engine API server: version prefix, routing, errors, and the headers every answer carries."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from swarmlet import errors
from swarmlet.engine_api import versions
from swarmlet.engine_api.errors import answer
from swarmlet.engine_api.router import Call, Route, Router
from swarmlet.log import get_logger

log = get_logger(__name__)

SERVER_HEADERS = {"Api-Version": str(versions.NEWEST), "Ostype": "linux", "Server": "Swarmlet (linux)"}
#: How long a stopping server lets running requests finish.
SHUTDOWN_S = 2.0


def make_app(routes: Iterable[Route]) -> web.Application:
    """An aiohttp application answering these routes, with or without a version prefix."""
    router = Router(routes)

    async def dispatch(request: web.Request) -> web.StreamResponse:
        try:
            return await _dispatch(router, request)
        except errors.SwarmletError as err:
            return answer(err)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except web.HTTPException:
            raise
        except Exception as err:
            log.exception("request failed", method=request.method, path=request.path)
            return web.json_response({"message": f"internal error: {type(err).__name__}: {err}"}, status=500)

    async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
        for name, value in SERVER_HEADERS.items():
            response.headers.setdefault(name, value)

    app = web.Application(client_max_size=1 << 62)  # bodies are bounded where they are read
    app.router.add_route("*", "/{path:.*}", dispatch)
    app.on_response_prepare.append(add_headers)
    return app


async def _dispatch(router: Router, request: web.Request) -> web.StreamResponse:
    raw = request.rel_url.raw_path
    version, path = versions.split_version(raw)
    found = router.find(request.method, path)
    if found is None:
        return web.json_response({"message": "page not found"}, status=404)
    handler, params = found
    return await handler(Call(request, version, path, {name: unquote(value) for name, value in params.items()}))


class Server:
    """Listening sockets of one application."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._runner = web.AppRunner(
            make_app(routes), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S,
            auto_decompress=False,
        )

    async def listen_unix(self, path: Path, *, mode: int = 0o660) -> None:
        """A unix socket, replacing a dead one of the same name."""
        await self._set_up()
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        await web.SockSite(self._runner, listener, backlog=1024).start()

    async def listen_tcp(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """A TCP port (0 = any); returns the one taken."""
        await self._set_up()
        site = web.TCPSite(self._runner, host, port, ssl_context=tls, backlog=1024, reuse_address=True)
        await site.start()
        address = self._runner.addresses[-1]
        return int(address[1])

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _set_up(self) -> None:
        if self._runner.server is None:
            await self._runner.setup()
