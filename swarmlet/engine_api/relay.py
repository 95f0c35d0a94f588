"""Passing an Engine API answer on: from a node to a manager's client, from a manager to its own host's."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call

#: Headers that belong to one connection, not to the message (RFC 9110 section 7.6.1).
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that travel on."""
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


async def relay(call: Call, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """The answer to the client, piece by piece as it comes; ends when either side is gone.

    ConnectionResetError if the answer breaks off once its head has been sent: only ending the connection tells the
    client then that something is missing. aiohttp.ClientError before that.
    """
    response = web.StreamResponse(status=answer.status, headers=kept_headers(answer.headers))
    if answer.content_length is None and answer.status not in (204, 304) and call.request.method != "HEAD":
        response.headers.pop("Content-Length", None)
        response.enable_chunked_encoding()
    try:
        async with WhileConnected(call.request):
            await response.prepare(call.request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
    except aiohttp.ClientError as err:
        if response.prepared:
            raise ConnectionResetError(f"the answer broke off: {err}") from err
        raise
    return response
