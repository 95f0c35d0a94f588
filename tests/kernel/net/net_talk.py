"""Servers and clients inside network namespaces, all in one event loop: a socket stays where it was made.

What `net_lab` (the agent's networks) and `net_spaces` (one part of the data plane) have in common.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from swarmlet_agent.net import netns


def open_inside(where: Path | str | None, family: int, kind: int) -> socket.socket:
    """A non-blocking socket made in a namespace. None: in that of the caller."""
    if where is None:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK)
    with netns.inside(Path(where)):
        return socket.socket(family, kind | socket.SOCK_NONBLOCK)


def plain(address: str) -> str:
    """An IPv4 client as a socket of both families shows it, without the prefix."""
    return address.removeprefix("::ffff:") if "." in address else address


class Line:
    """An open connection (or connected UDP socket) to a server of this module."""

    def __init__(self, channel: socket.socket, patience_s: float) -> None:
        self.channel = channel
        self._patience_s = patience_s

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def ask(self) -> str:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._patience_s):
            await loop.sock_sendall(self.channel, b"?\n")
            return (await loop.sock_recv(self.channel, 200)).decode().strip()

    def close(self) -> None:
        self.channel.close()


async def connect_line(channel: socket.socket, host: str, port: int, patience_s: float) -> Line:
    """Owns the socket from the start. OSError or TimeoutError where nobody answers."""
    try:
        async with asyncio.timeout(patience_s):
            await asyncio.get_running_loop().sock_connect(channel, (host, port))
    except BaseException:
        channel.close()
        raise
    return Line(channel, patience_s)


@asynccontextmanager
async def serve_lines(listener: socket.socket, tag: str) -> AsyncIterator[None]:
    """A TCP server on a bound socket, which answers every line with "tag peer-address"."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = plain(writer.get_extra_info("peername")[0])
        try:
            while await reader.readline():
                writer.write(f"{tag} {peer}\n".encode())
                await writer.drain()
        except ConnectionError:
            pass  # the client went without a word, as some tests have it
        finally:
            writer.close()

    server = await asyncio.start_server(handle, sock=listener, backlog=128)
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def answer_datagrams(channel: socket.socket, reply: Callable[[str], bytes]) -> AsyncIterator[None]:
    """A UDP server on a bound socket, closed at the end. reply: from the peer's address to the answer."""
    loop = asyncio.get_running_loop()

    async def run() -> None:
        while True:
            _, source = await loop.sock_recvfrom(channel, 2048)
            await loop.sock_sendto(channel, reply(plain(source[0])), source)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        channel.close()
