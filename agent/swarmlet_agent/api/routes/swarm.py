"""Swarm routes of the node view: init, join and leave are this host's own; the rest is the manager's.

On a host that runs a manager every other swarm call is passed to its socket; on a worker it is refused as dockerd
refuses it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.relay import kept_headers, relay
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument, NotAManager, Unavailable

_PASSED_ON = ("nodes", "services", "tasks", "secrets", "configs")


class MemberPort(Protocol):
    """`membership.Member`."""

    @property
    def is_manager(self) -> bool: ...

    async def init(self, request: dict[str, Any]) -> str: ...

    async def join(self, request: dict[str, Any]) -> None: ...

    async def leave(self, *, force: bool) -> None: ...


class SwarmRoutes:
    """manager_socket: the cluster view of this host's manager, if it runs one."""

    def __init__(self, member: MemberPort, manager_socket: Path) -> None:
        self._member = member
        self._socket = manager_socket
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def routes(self) -> list[Route]:
        own = [
            Route("POST", "/swarm/init", self.init),
            Route("POST", "/swarm/join", self.join),
            Route("POST", "/swarm/leave", self.leave),
        ]
        swarm = [
            Route("GET", "/swarm", self.pass_on),
            Route("GET", "/swarm/unlockkey", self.pass_on),
            Route("POST", "/swarm/unlock", self.pass_on),
            Route("POST", "/swarm/update", self.pass_on),
        ]
        others = [
            Route(method, f"/{kind}{rest}", self.pass_on)
            for kind in _PASSED_ON
            for method in ("GET", "POST", "DELETE")
            for rest in ("", "/{rest:path}")
        ]
        return own + swarm + others

    @property
    def is_manager(self) -> bool:
        return self._member.is_manager

    async def ask(self, method: str, path_qs: str, body: bytes | None = None) -> tuple[int, Any]:
        """(status, decoded JSON) of this host's manager. Unavailable if it does not answer."""
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._manager(method).request(
                method, f"http://manager{path_qs}", data=body, headers=headers
            ) as answer:
                text = await answer.read()
                return answer.status, json.loads(text) if text else None
        except aiohttp.ClientConnectionError as err:
            raise Unavailable("this host's manager does not answer; it is being started") from err

    async def follow(self, path_qs: str) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects, one a line, that this host's manager streams. Unavailable if it does not answer."""
        try:
            async with self._manager("GET").get(f"http://manager{path_qs}") as answer:
                if answer.status != 200:
                    raise Unavailable(f"this host's manager answers with {answer.status}")
                async for line in answer.content:
                    if line.strip():
                        yield json.loads(line)
        except aiohttp.ClientError as err:
            raise Unavailable("this host's manager does not answer; it is being started") from err

    async def init(self, call: Call) -> web.Response:
        """SwarmInit: the node's id; 400 bad request, 503 already a member."""
        return json_answer(await self._member.init(await _body(call)))

    async def join(self, call: Call) -> web.Response:
        """SwarmJoin; 400 bad request, 403 wrong token, 503 already a member or no manager answers."""
        await self._member.join(await _body(call))
        return web.Response()

    async def leave(self, call: Call) -> web.Response:
        """SwarmLeave; 503 not a member, or a manager without force."""
        await self._member.leave(force=call.flag("force"))
        return web.Response()

    async def pass_on(self, call: Call) -> web.StreamResponse:
        """The manager's answer, as it comes."""
        if not self._member.is_manager:
            raise NotAManager
        request = call.request
        url = f"http://manager{request.rel_url.raw_path_qs}"
        data = request.content if request.can_read_body else None
        headers = kept_headers(request.headers)
        try:
            async with self._manager(request.method).request(
                request.method, url, headers=headers, data=data
            ) as answer:
                return await relay(call, answer)
        except aiohttp.ClientConnectionError as err:
            raise Unavailable("this host's manager does not answer; it is being started") from err

    def _manager(self, method: str) -> aiohttp.ClientSession:
        """Reads keep their connections for the next one; a write gets a fresh one, since it cannot be repeated
        when a kept connection turns out to be that of a manager that has gone."""
        keep = method in ("GET", "HEAD")
        if keep not in self._sessions:
            self._sessions[keep] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._socket), limit=0, force_close=not keep),
                timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[keep]


async def _body(call: Call) -> dict[str, Any]:
    body = await call.raw_json()
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise InvalidArgument(f"invalid JSON: expected an object, got {json.dumps(body)[:40]}")
    return body
