"""Long-lived answers: hijacked two-way streams, multiplexed frames, and JSON progress streams.

A hijacked connection (attach, exec) stops being HTTP after the answer's head: raw bytes both ways, and the
client may close its sending side (stdin's end) while it goes on reading. aiohttp closes a connection whose
peer has half-closed, so the transport is handed to a protocol of our own (see connection.py).
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import sys
import termios
from collections import deque
from typing import Any

import msgspec
from aiohttp import web

from swarmlet.engine_api.connection import Connection, connection_of
from swarmlet.engine_api.router import Call

STDIN, STDOUT, STDERR = 0, 1, 2
#: What went wrong on the side of the daemon: clients end with it as their error (moby stdcopy).
SYSTEMERR = 3
RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"
#: Bytes of a client's input held before its socket is no longer read.
INPUT_LIMIT = 256 << 10
#: How often a client that has ended its input is looked for.
PEER_CHECK_S = 1.0
#: How long a client may take to read an answer's head before what follows is sent, and how often that is looked for.
TAKEN_S, TAKEN_LOOK_S = 0.5, 0.0005

_HEADER = struct.Struct(">BxxxL")
HEAD_BYTES = _HEADER.size


def frame(stream: int, data: bytes) -> bytes:
    """One frame of a multiplexed stream: type, three zero bytes, big-endian length, data."""
    return _HEADER.pack(stream, len(data)) + data


def frame_head(stream: int, length: int) -> bytes:
    """The eight bytes before `length` bytes of data."""
    return _HEADER.pack(stream, length)


def read_head(head: bytes) -> tuple[int, int]:
    """(stream, length of the data) of a frame's first HEAD_BYTES."""
    stream, length = _HEADER.unpack(head)
    return stream, length


class HijackedStream(asyncio.Protocol):
    """The client's end of a hijacked connection."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        """Takes the connection over at once."""
        self._transport = transport
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._reading_paused = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._head_is_read = False
        self.closed = asyncio.Event()
        early, ended = connection.take_over(self)
        if early:
            self.data_received(early)
        if ended:
            self.eof_received()

    async def read(self) -> bytes:
        """What the client sent since; b"" once it has ended its input or gone away."""
        while not self._chunks:
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._reading_paused and not self._ended:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    def begin(self, head: bytes) -> None:
        """Send the answer's head, before anything else."""
        self._transport.write(head)

    async def write(self, data: bytes) -> None:
        """Send; waits while the client reads more slowly than we write. ConnectionResetError once it is gone."""
        if not self._head_is_read:
            await self._until_head_is_read()
        if self.closed.is_set():
            raise ConnectionResetError("the client has gone away")
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self.closed.is_set():
                raise ConnectionResetError("the client has gone away")

    async def _until_head_is_read(self) -> None:
        """Or TAKEN_S is over.

        docker-py reads the head of an answer through a buffer and what follows from the socket itself: what comes
        together with the head is lost to it. On unix sockets the kernel tells how much is unread (unix(7), SIOCOUTQ).
        """
        peer = self._transport.get_extra_info("socket")
        until = asyncio.get_running_loop().time() + TAKEN_S
        tells = peer is not None and peer.family == socket.AF_UNIX
        while tells and not self._head_is_read and not self.closed.is_set():
            unread = fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4))
            if not int.from_bytes(unread, sys.byteorder) or asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(TAKEN_LOOK_S)
        self._head_is_read = True

    def close(self) -> None:
        """Flush what is buffered and close the connection. May be repeated."""
        if not self._transport.is_closing():
            self._transport.close()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)
        self._readable.set()
        if self._buffered > INPUT_LIMIT and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        self._readable.set()
        self._look_for_peer()
        return True  # keep the sending side open

    def _look_for_peer(self) -> None:
        """asyncio no longer watches a socket whose input has ended, and a client that is gone altogether would be
        noticed only by the next write. The kernel tells the two apart for unix sockets (poll(2): POLLHUP)."""
        peer = self._transport.get_extra_info("socket")
        if self.closed.is_set() or self._transport.is_closing() or peer is None or peer.family != socket.AF_UNIX:
            return
        poll = select.poll()
        poll.register(peer.fileno(), 0)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            self._transport.abort()
            return
        asyncio.get_running_loop().call_later(PEER_CHECK_S, self._look_for_peer)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self.closed.set()
        self._readable.set()
        self._writable.set()
        self._connection.client_gone(exc)


async def hijack(call: Call, *, tty: bool) -> tuple[HijackedStream, web.StreamResponse]:
    """Answer 101 (or 200 to a client that did not ask to upgrade) and take the connection over.

    The handler works with the stream, closes it, and returns the response object to aiohttp, which then finds
    the connection gone. Every error must have been raised before: afterwards there is no status to send.
    """
    request = call.request
    await request.read()
    connection = connection_of(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone away")
    upgrade = "upgrade" in request.headers.get("Connection", "").lower()
    multiplexed = not tty and call.version >= (1, 42)
    kind = MULTIPLEXED_STREAM if multiplexed else RAW_STREAM
    if upgrade:
        head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {kind}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n"
    stream = HijackedStream(transport, connection)
    stream.begin(head.encode())
    return stream, HijackedResponse()


class HijackedResponse(web.StreamResponse):
    """What a hijacking handler returns: aiohttp must not write a byte more to that connection."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        return None


class JsonStream:
    """A stream of JSON objects, one a line (pull, push, load, events, stats); the head goes out with the first."""

    def __init__(self, call: Call, content_type: str = "application/json") -> None:
        self._call = call
        self._content_type = content_type
        self.response: web.StreamResponse | None = None

    @property
    def started(self) -> bool:
        """Once true, an error can only be reported inside the stream."""
        return self.response is not None

    async def start(self) -> web.StreamResponse:
        """Send the head now."""
        if self.response is None:
            response = web.StreamResponse(headers={"Content-Type": self._content_type})
            response.enable_chunked_encoding()
            self.response = response
            await response.prepare(self._call.request)
        return self.response

    async def send(self, value: Any) -> None:
        """One object; waits for a slow reader."""
        response = await self.start()
        await response.write(msgspec.json.encode(value) + b"\r\n")

    async def fail(self, message: str) -> None:
        """The in-stream form of an error, once the status has been sent."""
        await self.send({"errorDetail": {"message": message}, "error": message})

    async def end(self) -> web.StreamResponse:
        response = await self.start()
        await response.write_eof()
        return response
