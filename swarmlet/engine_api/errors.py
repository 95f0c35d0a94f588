"""From our errors to the Engine API's answers: the only file that knows both sides."""

from __future__ import annotations

from aiohttp import web

from swarmlet import errors
from swarmlet.engine_api.answers import json_answer

#: A subclass inherits its parent's status.
STATUS: dict[type[errors.SwarmletError], int] = {
    errors.NotModified: 304,
    errors.InvalidArgument: 400,
    errors.NotSupported: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.StaleView: 409,
    errors.Unavailable: 503,
}


def status_of(error: errors.SwarmletError) -> int:
    """500 for an error without a place in the table."""
    override = getattr(error, "status", None)
    if isinstance(override, int):
        return override
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def answer(error: errors.SwarmletError) -> web.Response:
    """`{"message": …}` with the right status; 304 has no body."""
    status = status_of(error)
    if status == 304:
        return web.Response(status=304)
    return json_answer({"message": str(error)}, status=status)
