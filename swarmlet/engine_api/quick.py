"""Answers given on the spot: small, frequent questions whose answer lies ready in memory.

A request that passes through aiohttp costs a fifth of a millisecond before its handler begins (parser, request and
response objects, a task). `_ping`, `info`, `version` and `ps` are asked again and again and need none of that: their
routes have a `quick` function, plain and synchronous, and the connection writes what it returns. Anything that is not
one whole, plain GET or HEAD (a body, an upgrade, several requests at once, half a head) is left to aiohttp, and so is
everything a quick function has no answer for, errors above all.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import parse_qsl

from multidict import MultiDict, MultiMapping

from swarmlet.engine_api import versions
from swarmlet.engine_api.query import Query
from swarmlet.engine_api.versions import ApiVersion
from swarmlet.errors import SwarmletError

JSON = "application/json"
#: A longer head is none of the plain ones.
_MAX_HEAD = 4096
_HEAD = re.compile(
    rb"(GET|HEAD) (/[!$&'()*+,\-./0-9:;=@A-Z_a-z~]*)(?:\?([!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]*))? HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)+)\r\n"
)
_HOST = re.compile(rb"^host:", re.IGNORECASE | re.MULTILINE)
_SPECIAL = re.compile(
    rb"^(?:connection:(?!\s*keep-alive\s*$)|content-length:(?!\s*0\s*$)|transfer-encoding:|upgrade:|expect:)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class QuickCall(Query):
    """A request without a body, as a quick function sees it. raw_query as sent, without the question mark."""

    method: str
    version: ApiVersion
    raw_query: str

    @property
    def query(self) -> MultiMapping[str]:
        return MultiDict(parse_qsl(self.raw_query, keep_blank_values=True))


@dataclass(frozen=True, slots=True)
class QuickAnswer:
    """A 200. headers: beside those that every answer has."""

    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


#: None, or a SwarmletError: ask the route's handler.
Quick = Callable[[QuickCall], QuickAnswer | None]
#: The quick function of a method and a path without its version.
Find = Callable[[str, str], Quick | None]


class QuickAnswers:
    """The bytes to send for the bytes of one request, where a route has them ready."""

    def __init__(self, find: Find, headers: Mapping[str, str]) -> None:
        self._find = find
        self._common = _lines(tuple(headers.items()))

    def __call__(self, data: bytes) -> bytes | None:
        if len(data) > _MAX_HEAD or (match := _HEAD.fullmatch(data)) is None:
            return None
        method, target, query, fields = match.groups()
        if _SPECIAL.search(fields) or not _HOST.search(fields):
            return None
        try:
            version, path = versions.split_version(target.decode())
            if (quick := self._find(method.decode(), path)) is None:
                return None
            answer = quick(QuickCall(method.decode(), version, "" if query is None else query.decode()))
        except SwarmletError:
            return None
        if answer is None:
            return None
        head = b"HTTP/1.1 200 OK\r\n%sContent-Type: %s\r\n%sDate: %s\r\nContent-Length: %d\r\n\r\n" % (
            self._common, answer.content_type.encode(), _lines(answer.headers), _date(int(time.time())),
            len(answer.body),
        )  # fmt: skip
        return head if method == b"HEAD" else head + answer.body


@functools.lru_cache(maxsize=16)
def _lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode() for name, value in headers)


@functools.lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
