"""An Engine API server: version prefix, routing, errors, and the headers every answer carries."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from swarmlet import errors
from swarmlet.engine_api import versions
from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.connection import Connection
from swarmlet.engine_api.errors import answer
from swarmlet.engine_api.quick import QuickAnswers
from swarmlet.engine_api.router import Call, Route, Router
from swarmlet.engine_api.streams import HijackedResponse
from swarmlet.engine_api.tls_transport import over_tls
from swarmlet.log import get_logger

log = get_logger(__name__)

SERVER_HEADERS = {
    "Api-Version": str(versions.NEWEST),
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": "Swarmlet (linux)",
}
#: How long a stopping server lets running requests finish, and then again how long those it cancels may take.
SHUTDOWN_S = 1.0
#: aiohttp makes an access logger where there is a logger for it.
_NO_LOG = logging.getLogger(__name__)
#: Every address of both families, as "::" means to other servers.
EVERYWHERE = ("0.0.0.0", "::")
#: Of unix sockets.
SOCKET_MODE = 0o660
#: Connections the kernel queues before they are accepted.
BACKLOG = 1024
#: Longest request line and header field: filters, build arguments and registry credentials travel in them.
MAX_HEADER_BYTES = 256 << 10


def make_app(router: Router) -> web.Application:
    """An aiohttp application answering these routes, with or without a version prefix."""

    async def dispatch(request: web.Request) -> web.StreamResponse:
        connection = _connection(request)
        if connection is not None:
            connection.head_sent = False
        try:
            return await _dispatch(router, request)
        except errors.SwarmletError as err:
            if connection is not None and connection.head_sent:
                log.warning("stream broken off", method=request.method, path=request.path, error=err)
                return _break_off(request)
            return answer(err)
        except (asyncio.CancelledError, web.HTTPException):
            raise
        except Exception as err:
            if request.transport is None or request.transport.is_closing():
                return HijackedResponse()  # the client has gone: there is no one to answer, and nothing is wrong
            log.exception("request failed", method=request.method, path=request.path)
            if connection is not None and connection.head_sent:
                return _break_off(request)
            return json_answer({"message": f"internal error: {type(err).__name__}: {err}"}, status=500)
        finally:
            if connection is not None:
                connection.release()

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if (connection := _connection(request)) is not None:
            connection.head_sent = True
        response.headers.update(SERVER_HEADERS)

    app = web.Application(client_max_size=1 << 62)  # bodies are bounded where they are read
    app.router.add_route("*", "/{path:.*}", dispatch)
    app.on_response_prepare.append(add_headers)
    return app


async def _dispatch(router: Router, request: web.Request) -> web.StreamResponse:
    raw = request.rel_url.raw_path
    version, path = versions.split_version(raw)
    found = router.find(request.method, path)
    if found is None:
        return json_answer({"message": "page not found"}, status=404)
    handler, params = found
    return await handler(Call(request, version, path, {name: unquote(value) for name, value in params.items()}))


def _break_off(request: web.Request) -> web.StreamResponse:
    """The head has been sent, so an error has no status: cut the connection, that the client sees it is not all."""
    if request.transport is not None:
        request.transport.abort()
    return HijackedResponse()


def _connection(request: web.BaseRequest) -> Connection | None:
    """None where the client has gone already."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return None
    protocol = transport.get_protocol()
    return protocol if isinstance(protocol, Connection) else None


class _Answered(AbstractAccessLogger):
    """No log: aiohttp calls it when an answer has been written, and tells it in no other way."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if (connection := _connection(request)) is not None:
            connection.answered()


class Server:
    """Listening sockets of one application."""

    def __init__(self, routes: Iterable[Route]) -> None:
        router = Router(routes)
        self._quick = QuickAnswers(router.quick, SERVER_HEADERS)
        self._runner = web.AppRunner(
            make_app(router), access_log=_NO_LOG, access_log_class=_Answered, handle_signals=False,
            shutdown_timeout=SHUTDOWN_S, auto_decompress=False, max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        self._listeners: list[asyncio.Server] = []

    async def listen_unix(self, path: Path, group: str = "") -> None:
        """A unix socket for root and the group ("": root's), replacing a dead one of the same name. InvalidArgument if
        there is no such group on this host."""
        factory = await self._factory()
        group_id = await asyncio.to_thread(_group_id, group) if group else -1
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(str(path))
            os.chown(path, -1, group_id)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(factory, sock=listener, backlog=BACKLOG))

    async def listen_tcp(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """A TCP port (0 = any); returns the one taken. "::": every address, IPv4 ones as well."""
        factory = await self._factory()
        loop = asyncio.get_running_loop()
        where = EVERYWHERE if host == "::" else host
        if tls is not None:
            factory = over_tls(tls, factory)
        listener = await loop.create_server(factory, where, port, backlog=BACKLOG, reuse_address=True)
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def connections(self) -> int:
        """Open connections, hijacked ones included."""
        return 0 if self._runner.server is None else len(self._runner.server.connections)

    async def close(self) -> None:
        """Stop listening, give running requests SHUTDOWN_S, then end them."""
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        self._listeners.clear()

    async def _factory(self) -> Callable[[], asyncio.Protocol]:
        if self._runner.server is None:
            await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise errors.Internal("the HTTP server could not be set up")
        return lambda: Connection(server(), self._quick)


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as err:
        raise errors.InvalidArgument(f"socket_group: there is no group {name!r} on this host") from err
