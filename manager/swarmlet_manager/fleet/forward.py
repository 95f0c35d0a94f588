"""Passing a client's request on to one node's engine, bodies and answers streamed, nothing kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from swarmlet.engine_api.connection import connection_of
from swarmlet.engine_api.relay import kept_headers, relay
from swarmlet.engine_api.router import Call
from swarmlet.engine_api.streams import HijackedResponse, HijackedStream
from swarmlet.errors import Internal
from swarmlet.model.node import Node
from swarmlet.wire import tunnel
from swarmlet_manager.fleet.client import Fleet, NodeError, decoded, unreachable

HEAD_LIMIT = 64 << 10
#: How long a node may take to answer an attach or exec at all.
ANSWER_S = 60.0


async def forward(call: Call, fleet: Fleet, node: Node, path_qs: str | None = None) -> web.StreamResponse:
    """The same request to that node; its answer as it comes. path_qs: another path than the client's."""
    request = call.request
    data = call.kept_body or (request.content if call.kept_body is None and request.can_read_body else None)
    target = path_qs or request.rel_url.raw_path_qs
    headers = kept_headers(request.headers)
    try:
        async with fleet.request(node, request.method, target, headers=headers, data=data) as answer:
            return await relay(call, answer)
    except aiohttp.ClientError as err:
        raise unreachable(node, err) from err


async def forward_stream(call: Call, fleet: Fleet, node: Node, path_qs: str | None = None) -> web.StreamResponse:
    """Attach (a WebSocket's too) and exec start: the node's answer, then raw bytes both ways until both have ended."""
    request = call.request
    body = await request.read()
    async with fleet.tunnel(node) as socket:
        await tunnel.send(socket, _request_bytes(request, path_qs or request.rel_url.raw_path_qs, body))
        incoming = tunnel.chunks(socket)
        head, rest = await _head(incoming)
        status = _status(head)
        if status not in (101, 200):
            return await _refusal(status, head, rest, incoming)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone away")
        stream = HijackedStream(transport, connection_of(request))
        try:
            stream.begin(head)
            if rest:
                await stream.write(rest)
            await _carry(stream, socket, incoming)
        except ConnectionError:
            pass  # the client has gone: closing the tunnel tells the node
        finally:
            stream.close()
    return HijackedResponse()


async def _carry(
    stream: HijackedStream, socket: aiohttp.ClientWebSocketResponse, incoming: AsyncIterator[bytes]
) -> None:
    async def outward() -> None:
        with contextlib.suppress(ConnectionError):
            while data := await stream.read():
                await tunnel.send(socket, data)
            if not stream.closed.is_set():
                await socket.send_str(tunnel.END)
            # It goes on reading; should it go away while its container is silent, the node is told.
            await stream.closed.wait()
        await socket.close()

    sender = asyncio.create_task(outward(), name="forward-outward")
    try:
        async for data in incoming:
            await stream.write(data)
    finally:
        sender.cancel()
        await asyncio.wait([sender])


def _request_bytes(request: web.Request, path_qs: str, body: bytes) -> bytes:
    lines = [f"{request.method} {path_qs} HTTP/1.1", "Host: node"]
    kept = kept_headers(request.headers)
    lines += [f"{name}: {value}" for name, value in kept.items() if name.lower() != "content-length"]
    upgrade = request.headers.get("Upgrade")
    lines += [f"Upgrade: {upgrade}", "Connection: Upgrade"] if upgrade else ["Connection: close"]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def _head(incoming: AsyncIterator[bytes]) -> tuple[bytes, bytes]:
    """The node's response head with its blank line, and what came behind it."""
    data = b""
    async with asyncio.timeout(ANSWER_S):
        async for chunk in incoming:
            data += chunk
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                return data[: end + 4], data[end + 4 :]
            if len(data) > HEAD_LIMIT:
                break
    raise Internal("the node's engine ended the connection without an answer")


def _status(head: bytes) -> int:
    match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if match is None:
        raise Internal("the node's engine gave an answer that is not HTTP")
    return int(match[1])


async def _refusal(status: int, head: bytes, body: bytes, incoming: AsyncIterator[bytes]) -> web.Response:
    """The node refused: its message, with its status."""
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    wanted = int(length[1]) if length else 0
    while len(body) < wanted:
        chunk = await anext(incoming, b"")
        if not chunk:
            break
        body += chunk
    if status < 400:
        return web.Response(status=status)
    decoded(status, body[:wanted])
    raise NodeError(status, "the node's engine refused")
