"""Plain JSON answers, and the one to `_ping`."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from swarmlet.engine_api.quick import QuickAnswer


def json_bytes(value: Any) -> bytes:
    """A value of builtins or records as JSON, with a newline behind it as dockerd sends it."""
    return msgspec.json.encode(value) + b"\n"


def json_answer(value: Any, status: int = 200) -> web.Response:
    """A value of builtins or records as JSON."""
    return web.Response(body=json_bytes(value), status=status, content_type="application/json")


def ready_answer(answer: QuickAnswer) -> web.Response:
    """What a quick function answers, for the route's handler."""
    return web.Response(body=answer.body, headers={"Content-Type": answer.content_type, **dict(answer.headers)})


def ping_answer(method: str, swarm: str) -> QuickAnswer:
    """Engine API SystemPing, also as HEAD: clients learn the newest API version from its headers. swarm: the header's
    value. The builder is the classic one: there is no BuildKit session to open."""
    headers = (
        ("Builder-Version", "1"), ("Cache-Control", "no-cache, no-store, must-revalidate"), ("Pragma", "no-cache"),
        ("Swarm", swarm),
    )  # fmt: skip
    return QuickAnswer(b"" if method == "HEAD" else b"OK", "text/plain; charset=utf-8", headers)


def empty(status: int = 204) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status)


def refusal(message: str, status: int) -> web.Response:
    """`{"message": …}`, where there is no error class for the status."""
    return json_answer({"message": message}, status)
