"""One client connection, in front of aiohttp's HTTP protocol.

An attach or exec stops being HTTP in the middle of a connection, and a client may send the first bytes of
its input in the same packet as the request. aiohttp's parser drops or misreads what follows such a request,
so this protocol finds where each request ends, hands aiohttp exactly that much, and keeps the rest: for the
handler that takes the connection over, or, if none does, for aiohttp as the next request.

It also knows when the client has gone, which aiohttp does not tell a running handler, and writes quick answers
(`quick.py`) itself while no answer of aiohttp's is under way: it counts what it hands over and what is answered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import Protocol

from aiohttp import web

from swarmlet.errors import Internal

#: Bytes kept behind a request that may take the connection over, before its socket is no longer read.
HELD_LIMIT = 256 << 10
#: A head longer than this is aiohttp's to refuse; we stop looking for its end.
HEAD_LIMIT = 2 << 20

_HIJACKABLE = re.compile(rb"POST /(?:[^? ]*/)?(?:attach|start)(?:\?[^ ]*)? HTTP/1\.")
_UPGRADE = re.compile(rb"\r\nupgrade:(?![ \t]*websocket)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)


class _Inner(Protocol):
    """What is used of aiohttp's RequestHandler."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def connection_lost(self, exc: BaseException | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> object: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def close(self) -> None: ...


class _Part(Enum):
    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    TRAILER = auto()
    OPAQUE = auto()  # not understood: aiohttp's parser will refuse it


class Framing:
    """Where requests end in a byte stream (RFC 9112 section 6): heads, lengths and chunks, nothing else."""

    def __init__(self) -> None:
        self._part = _Part.HEAD
        self._line = bytearray()  # an incomplete head or chunk line
        self._left = 0
        self._hijackable = False
        #: Requests begun so far.
        self.heads = 0

    @property
    def between(self) -> bool:
        """True if all that was fed were whole requests."""
        return self._part is _Part.HEAD and not self._line

    def feed(self, data: bytes) -> int | None:
        """The offset just behind the first request that may take the connection over; None if none ends here."""
        position = 0
        while position < len(data):
            match self._part:
                case _Part.OPAQUE:
                    return None
                case _Part.HEAD:
                    position = self._head(data, position)
                case _Part.BODY | _Part.CHUNK:
                    taken = min(self._left, len(data) - position)
                    self._left -= taken
                    position += taken
                    if not self._left:
                        self._part = _Part.HEAD if self._part is _Part.BODY else _Part.CHUNK_SIZE
                case _Part.CHUNK_SIZE | _Part.TRAILER:
                    position = self._chunk_line(data, position)
            if self._part is _Part.HEAD and not self._line and self._hijackable:
                self._hijackable = False
                return position
        return None

    def _head(self, data: bytes, position: int) -> int:
        before = len(self._line)
        self._line += data[position:] if before or position else data
        end = self._line.find(b"\r\n\r\n", max(0, before - 3))
        if end < 0:
            if len(self._line) > HEAD_LIMIT:
                self._part = _Part.OPAQUE
                self._line.clear()
            return len(data)
        head = bytes(self._line[: end + 4])
        self._line.clear()
        self.heads += 1
        # Blank lines before a request are allowed (RFC 9112 section 2.2).
        self._hijackable = _HIJACKABLE.match(head.lstrip(b"\r\n")) is not None or _UPGRADE.search(head) is not None
        if _CHUNKED.search(head):
            self._part = _Part.CHUNK_SIZE
        elif (length := _LENGTH.search(head)) is not None and (size := int(length[1])):
            self._part, self._left = _Part.BODY, size
        return position + end + 4 - before

    def _chunk_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position)
        if end < 0:
            self._line += data[position:]
            if len(self._line) > HEAD_LIMIT:
                self._part = _Part.OPAQUE
            return len(data)
        line = bytes(self._line + data[position:end]).rstrip(b"\r")
        self._line.clear()
        if self._part is _Part.TRAILER:
            if not line:
                self._part = _Part.HEAD
            return end + 1
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            self._part = _Part.OPAQUE
            return end + 1
        if size:
            self._part, self._left = _Part.CHUNK, size + 2  # and the line end behind it
        else:
            self._part = _Part.TRAILER
        return end + 1


class Connection(asyncio.Protocol):
    """Stands between the transport and aiohttp's protocol, until a handler takes the connection over."""

    def __init__(self, inner: _Inner, quick: Callable[[bytes], bytes | None] | None = None) -> None:
        self._inner = inner
        self._quick = quick
        self._answered = 0
        self._paused = False
        self._framing = Framing()
        self._transport: asyncio.Transport | None = None
        self._holding = False
        self._held = bytearray()
        self._held_eof = False
        self._lost = False
        self._on_lost: list[Callable[[], None]] = []
        #: Set once the head of the answer to the present request is out: an error then has no status any more.
        self.head_sent = False

    @property
    def lost(self) -> bool:
        """True once the client has gone."""
        return self._lost

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when the client goes; returns what takes the wish back."""
        self._on_lost.append(callback)

        def forget() -> None:
            if callback in self._on_lost:
                self._on_lost.remove(callback)

        return forget

    def take_over(self, successor: asyncio.Protocol) -> tuple[bytes, bool]:
        """Give the transport another protocol; returns what the client sent behind its request, and whether it
        has already ended its input. The successor passes its connection_lost on to `client_gone`."""
        if self._transport is None:
            raise ConnectionResetError("the client has gone away")
        early, self._held = bytes(self._held), bytearray()
        self.head_sent = True
        self._transport.set_protocol(successor)
        self._transport.resume_reading()
        return early, self._held_eof

    def release(self) -> None:
        """The request that might have taken the connection over did not: what follows is HTTP again."""
        if not self._holding or self._transport is None or self._transport.get_protocol() is not self:
            return
        self._holding = False
        if self._held_eof:
            self._inner.close()
            return
        held, self._held = bytes(self._held), bytearray()
        if held:
            self.data_received(held)
        self._transport.resume_reading()

    def client_gone(self, exc: Exception | None) -> None:
        """The transport is closed: tell aiohttp and whoever waits."""
        self._lost = True
        self._held.clear()
        callbacks, self._on_lost = self._on_lost, []
        for callback in callbacks:
            callback()
        self._inner.connection_lost(exc)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise Internal("the server needs stream transports")
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._holding:
            self._hold(data)
            return
        if self._idle() and self._quick is not None and (answer := self._quick(data)) is not None:
            if self._transport is not None:
                self._transport.write(answer)
            return
        end = self._framing.feed(data)
        if end is None:
            self._inner.data_received(data)
            return
        self._holding = True
        self._inner.data_received(data[:end])
        if end < len(data):
            self._hold(data[end:])

    def answered(self) -> None:
        """aiohttp has written the whole of an answer."""
        self._answered += 1

    def _idle(self) -> bool:
        """Whether the next answer on this connection may be written here."""
        return (
            self._answered == self._framing.heads and self._framing.between and not self._paused
            and self._transport is not None and not self._transport.is_closing()
        )  # fmt: skip

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= HELD_LIMIT and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        # A client that ends its input behind an attach or exec still reads the output.
        if self._holding:
            self._held_eof = True
            return True
        self._inner.eof_received()
        return False  # an HTTP client that closes its sending side has gone, as Go's server sees it

    def pause_writing(self) -> None:
        self._paused = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.client_gone(exc)


def connection_of(request: web.BaseRequest) -> Connection:
    """The connection a request came on. ConnectionResetError if the client has gone."""
    if request.transport is None:
        raise ConnectionResetError("the client has gone away")
    protocol = request.transport.get_protocol()
    if not isinstance(protocol, Connection):
        raise Internal("this connection cannot be taken over")
    return protocol


class WhileConnected:
    """`async with WhileConnected(request):` the block ends with ConnectionResetError when the client goes.

    For handlers that wait for something that may never come (events, logs -f, wait, stats); others are better
    left to finish what they began.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._task: asyncio.Task[object] | None = None
        self._forget: Callable[[], None] | None = None
        self._gone = False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._forget = connection_of(self._request).on_lost(self._cancel)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._forget is not None:
            self._forget()
        if self._gone and self._task is not None and self._task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise ConnectionResetError("the client has gone away") from error

    def _cancel(self) -> None:
        if self._task is not None:
            self._gone = True
            self._task.cancel()
