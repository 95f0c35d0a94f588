"""Plain JSON answers."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web


def json_answer(value: Any, status: int = 200) -> web.Response:
    """A value of builtins or records as JSON, with a newline behind it as dockerd sends it."""
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


def empty(status: int = 204) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status)


def refusal(message: str, status: int) -> web.Response:
    """`{"message": …}`, where there is no error class for the status."""
    return json_answer({"message": message}, status)
