"""Routing of Engine API calls: one small table for both views.

aiohttp's own router would need every route twice (with and without `/v1.xx`) and tries versioned paths
one by one as regular expressions; here the version is cut off first and a dict finds the rest.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from multidict import MultiMapping

from swarmlet.engine_api.malformed import complaint
from swarmlet.engine_api.query import Query
from swarmlet.engine_api.quick import Quick
from swarmlet.engine_api.spelling import spelled
from swarmlet.engine_api.versions import ApiVersion
from swarmlet.errors import InvalidArgument
from swarmlet.model.base import without_nulls

T = TypeVar("T")

#: The largest JSON body read into memory; archives are streamed and have no such limit.
MAX_JSON_BYTES = 8 << 20
#: dockerd's words.
NO_BODY = "invalid JSON: got EOF while reading request body"


@dataclass(frozen=True, slots=True)
class Call(Query):
    """One request: what a handler is given. Query values are strings as sent."""

    request: web.Request
    version: ApiVersion
    path: str  # without the version
    params: dict[str, str] = field(default_factory=dict)
    kept_body: bytes | None = None  # as `body` read it, for a handler that may be tried again

    @property
    def query(self) -> MultiMapping[str]:
        return self.request.query

    async def raw_json(self, *, keep_nulls: bool = False) -> Any:
        """The body as builtins, JSON nulls removed (Go clients send null for what is not given).

        None for an empty body. InvalidArgument for anything that is not JSON, or does not say that it is.
        """
        body = await self.body()
        if not body.strip():
            return None
        _check_content_type(self.request.headers.get("Content-Type", ""))
        try:
            value = msgspec.json.decode(body)
            return value if keep_nulls else without_nulls(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise InvalidArgument(complaint(body, str(err))) from err

    async def json(self, kind: type[T]) -> T:
        """The body as a typed value. InvalidArgument names the field and what was expected there.

        No body says no more than an empty object, as for dockerd (moby httputils.ReadJSON).
        """
        body = await self.raw_json()
        return convert({} if body is None else body, kind)

    async def body(self) -> bytes:
        """All of it, once; InvalidArgument for more than MAX_JSON_BYTES."""
        if self.kept_body is not None:
            return self.kept_body
        parts, size = [], 0
        async for part in self.request.content.iter_any():
            size += len(part)
            if size > MAX_JSON_BYTES:
                raise InvalidArgument(f"invalid JSON: the request body is larger than {MAX_JSON_BYTES} bytes")
            parts.append(part)
        return b"".join(parts)


def _check_content_type(told: str) -> None:
    """In dockerd's words (moby httputils.CheckForJSON). Who says nothing may mean JSON, and so may who says that it is
    bytes: what HTTP libraries, and the managers that pass requests on, put there when they were told nothing."""
    kind = told.partition(";")[0].strip().lower()
    if kind not in ("", "application/json", "application/octet-stream"):
        raise InvalidArgument(f"unsupported Content-Type header ({told}): must be 'application/json'")


def convert(value: Any, kind: type[T]) -> T:
    """Builtins into a typed value, names in any case; InvalidArgument names the field and what was expected there."""
    try:
        return msgspec.convert(spelled(value, kind), kind)
    except msgspec.ValidationError as err:
        raise InvalidArgument(f"invalid JSON: {err}") from err


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a template: `{id}` is one segment, `{name:path}` one or more (image names have slashes).

    quick: of a literal GET, what often has the handler's answer at once (`quick.py`).
    """

    method: str
    template: str
    handler: Handler
    quick: Quick | None = None


class Router:
    """Literal templates by dict, then the others by regular expression; of several that fit, the first given wins."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._literal: dict[tuple[str, str], Handler] = {}
        self._patterns: dict[str, list[tuple[str, re.Pattern[str], Handler]]] = {}
        self._quick: dict[str, Quick] = {}
        for route in routes:
            if route.quick is not None and route.method == "GET" and route.template not in self._quick:
                self._quick[route.template] = route.quick
            if "{" in route.template:
                first = route.template.split("/")[1]
                self._patterns.setdefault(first, []).append((route.method, _compile(route.template), route.handler))
            else:
                self._literal.setdefault((route.method, route.template), route.handler)

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        """The handler and its parameters. HEAD is answered by GET handlers where it has none of its own."""
        for wanted in (method, "GET") if method == "HEAD" else (method,):
            if (handler := self._literal.get((wanted, path))) is not None:
                return handler, {}
            first = path.split("/", 2)[1] if path.startswith("/") else ""
            for known, pattern, handler in self._patterns.get(first, ()):
                if known == wanted and (match := pattern.fullmatch(path)) is not None:
                    return handler, match.groupdict()
        return None

    def quick(self, method: str, path: str) -> Quick | None:
        """The quick function of a GET, which answers HEAD too."""
        return self._quick.get(path) if method in ("GET", "HEAD") else None


def _compile(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)(:path)?\}", template)
    pattern = re.escape(parts[0])
    for name, many, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pattern += f"(?P<{name}>{'.+' if many else '[^/]+'})" + re.escape(literal)
    return re.compile(pattern)
