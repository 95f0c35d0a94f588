"""The filters before and since of lists that every node answers: what they name may be on one node only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlencode

from swarmlet.engine_api.filters import moment
from swarmlet.engine_api.router import Call

_KEYS = ("before", "since")


async def with_moments(call: Call, created_at: Callable[[str], Awaitable[int]]) -> str:
    """The request's path and query, with times in the place of names.

    created_at: when what a name means was created, in ns; what it raises (NotFound) comes through.
    """
    url = call.request.rel_url
    if not any(key in url.raw_query_string for key in _KEYS):
        return url.raw_path_qs
    filters = call.filters()
    for key in _KEYS:
        if key in filters:
            filters = filters.having(key, *[moment(await created_at(name)) for name in filters.get(key)])
    others = parse_qsl(url.raw_query_string, keep_blank_values=True)
    query = [(name, value) for name, value in others if name != "filters"]
    return f"{url.raw_path}?{urlencode([*query, ('filters', filters.encoded())])}"
