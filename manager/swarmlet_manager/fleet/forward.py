"""Passing a client's request on to one node's engine, bodies and answers streamed, nothing kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected, connection_of
from swarmlet.engine_api.router import Call
from swarmlet.engine_api.streams import HijackedResponse, HijackedStream
from swarmlet.errors import Internal
from swarmlet.model.node import Node
from swarmlet.wire import tunnel
from swarmlet_manager.fleet.client import Fleet, NodeError, decoded, unreachable

#: Headers that belong to one connection, not to the request (RFC 9110 section 7.6.1).
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)
HEAD_LIMIT = 64 << 10
#: How long a node may take to answer an attach or exec at all.
ANSWER_S = 60.0


async def forward(call: Call, fleet: Fleet, node: Node, path_qs: str | None = None) -> web.StreamResponse:
    """The same request to that node; its answer as it comes. path_qs: another path than the client's."""
    request = call.request
    data = request.content if request.can_read_body else None
    target = path_qs or request.rel_url.raw_path_qs
    async with fleet.request(node, request.method, target, headers=_kept(request.headers), data=data) as answer:
        return await relay(call, node, answer)


async def relay(call: Call, node: Node, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """A node's answer to the client, piece by piece; ends when either is gone."""
    response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
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
        raise _cut_off(response, node, err) from err
    return response


def _cut_off(response: web.StreamResponse, node: Node, err: aiohttp.ClientError) -> Exception:
    """Once the head is out, only ending the connection tells the client that the rest is missing."""
    if response.prepared:
        return ConnectionResetError(str(unreachable(node, err)))
    return unreachable(node, err)


async def forward_stream(call: Call, fleet: Fleet, node: Node, path_qs: str | None = None) -> web.StreamResponse:
    """Attach and exec start: the node's answer, then raw bytes both ways until both sides have ended."""
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
            await stream.write(head + rest)
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
        if stream.closed.is_set():
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
    lines += [f"{name}: {value}" for name, value in _kept(request.headers).items() if name.lower() != "content-length"]
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


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
