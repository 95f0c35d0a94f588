"""A log driver's connection: opened when needed, renewed when the server has gone, never waited for without end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from swarmlet_agent.logs import sender as sending
from swarmlet_agent.logs.lines import LogLine
from swarmlet_agent.logs.sender import Sender

LINES = [LogLine(0, False, True, text) for text in (b"one;", b"two;")]


@dataclass
class Server:
    """Each connection is one end of a pair whose other end the test has."""

    kind: socket.SocketKind
    ends: list[socket.socket] = field(default_factory=list)
    error: OSError | None = None

    async def connect(self) -> socket.socket:
        if self.error is not None:
            raise self.error
        near, far = socket.socketpair(socket.AF_UNIX, self.kind)
        near.setblocking(False)
        self.ends.append(far)
        return near

    def messages(self, lines: Sequence[LogLine]) -> list[bytes]:
        return [line.text for line in lines]


@contextlib.asynccontextmanager
async def connected(kind: socket.SocketKind) -> AsyncIterator[tuple[Server, Sender]]:
    server = Server(kind)
    sender = Sender(server)
    try:
        yield server, sender
    finally:
        sender.close()
        for end in server.ends:
            end.close()


@pytest.mark.parametrize(
    ("kind", "received"), [(socket.SOCK_STREAM, [b"one;two;"]), (socket.SOCK_DGRAM, [b"one;", b"two;"])]
)
async def test_lines_go_out_in_order_over_one_connection(kind: socket.SocketKind, received: list[bytes]) -> None:
    async with connected(kind) as (server, sender):
        for _ in range(2):
            await sender.send(LINES)
            assert [server.ends[0].recv(100) for _ in received] == received
        assert len(server.ends) == 1


async def test_a_stream_whose_server_has_hung_up_is_opened_anew_before_anything_is_lost() -> None:
    async with connected(socket.SOCK_STREAM) as (server, sender):
        await sender.send(LINES)
        server.ends[0].close()
        await sender.send(LINES)
        assert server.ends[1].recv(100) == b"one;two;"


async def test_after_an_error_the_next_send_connects_again() -> None:
    async with connected(socket.SOCK_DGRAM) as (server, sender):
        await sender.send(LINES)
        server.ends[0].close()
        with pytest.raises(OSError):
            await sender.send(LINES)
        await sender.send(LINES)
        assert [server.ends[1].recv(100) for _ in LINES] == [b"one;", b"two;"]


async def test_who_is_not_there_is_said() -> None:
    async with connected(socket.SOCK_DGRAM) as (server, sender):
        server.error = ConnectionRefusedError("nobody")
        with pytest.raises(ConnectionRefusedError, match="nobody"):
            await sender.send(LINES)


async def test_a_server_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_TIMEOUT_S", 0.05)
    async with connected(socket.SOCK_STREAM) as (server, sender):
        with pytest.raises(TimeoutError):
            await sender.send([LogLine(0, False, True, bytes(16 << 20))])
        server.ends[0].setblocking(True)
        while server.ends[0].recv(1 << 20):  # what was sent, and then the end
            await asyncio.sleep(0)
        await sender.send(LINES)
        assert server.ends[1].recv(100) == b"one;two;"
