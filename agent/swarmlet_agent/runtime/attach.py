"""The streams of a running container, through conmon's attach socket (SOCK_SEQPACKET).

From conmon: a first byte 2 = stdout, 3 = stderr (with a TTY always 2), then at most 8 KiB of data; an empty
packet is the end. To conmon: raw bytes. conmon stops reading the container's output while a client does not
take it, which is the back-pressure we want while the container runs. Once its first process has ended,
conmon must not be held up any longer, or the exit would never be told: what is left then (pipes' contents)
is read at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from swarmlet_agent.runtime.outputs import InputWriter, OutputQueue

_PACKET_BYTES = 8192 + 1
#: Packets read before others on the loop have their turn.
_BURST = 32
#: conmon takes at most 32 KiB at a time.
_PIECE_BYTES = 16 << 10
#: Read beyond a full queue after the end of init, in case someone outside its namespaces still writes.
_LEFTOVER_BYTES = 4 << 20


def connect(bundle: Path) -> socket.socket:
    """conmon's attach socket. OSError. The path may be longer than the 108 bytes of a socket address."""
    folder = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/attach")
        connection.setblocking(False)
    except BaseException:  # of any kind: undo, and pass it on
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


class ConmonStreams:
    """One client's connection. `init_pid` is the container's first process.

    closes_stdin: conmon closes the container's stdin when a client disconnects (Docker's StdinOnce). A client
    that merely detaches is then replaced by one that discards (`keep`), so that stdin stays open.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        init_pid: int,
        closes_stdin: bool,
        keep: Callable[[socket.socket], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._init_pid = init_pid
        self._closes_stdin = closes_stdin
        self._keep = keep
        self._queue = OutputQueue(self._stop, self._go)
        self._input = InputWriter(connection.fileno(), piece=_PIECE_BYTES)
        self._pidfd = -1
        self._leftover = 0
        self._init_ended = False
        self._closed = False
        self._ended = False
        self._loop.add_reader(connection.fileno(), self._readable)

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return self._queue

    async def write(self, data: bytes) -> None:
        await self._input.write(data)

    async def close_stdin(self) -> None:
        """The container's stdin ends if it is closed with its client; otherwise only this client's input does."""
        if self._input.closed or self._closed:
            return
        self._input.closed = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # conmon has gone: so has stdin
            return

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._stop_watching_init()
        stdin_open = not self._input.closed
        self._input.stop()
        self._queue.drop()
        if self._closes_stdin and stdin_open and not self._ended:
            self._keep(self._socket)
        else:
            self._socket.close()

    def _readable(self) -> None:
        for _ in range(_BURST):
            try:
                packet = self._socket.recv(_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:  # conmon was killed: the end all the same
                packet = b""
            if not packet:
                self._ended = True
                self._loop.remove_reader(self._socket.fileno())
                self._stop_watching_init()
                self._queue.finish()
                return
            if self._init_ended:
                self._leftover += len(packet)
            self._queue.put(packet[0] - 1, packet[1:])
            if self._queue.stopped and (not self._init_ended or self._leftover > _LEFTOVER_BYTES):
                return

    def _stop(self) -> None:
        if self._init_ended and self._leftover <= _LEFTOVER_BYTES:
            return
        self._loop.remove_reader(self._socket.fileno())
        if self._init_ended or self._pidfd >= 0:
            return
        try:
            self._pidfd = os.pidfd_open(self._init_pid)
        except ProcessLookupError:
            self._end_of_init()
        else:
            self._loop.add_reader(self._pidfd, self._end_of_init)

    def _go(self) -> None:
        if not self._closed and not self._ended:
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def _end_of_init(self) -> None:
        self._init_ended = True
        self._stop_watching_init()
        self._go()

    def _stop_watching_init(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


class Keeper:
    """Holds connections of clients that have gone, reading and discarding, so that conmon keeps stdin open."""

    def __init__(self) -> None:
        self._held: set[socket.socket] = set()

    def keep(self, connection: socket.socket) -> None:
        self._held.add(connection)
        asyncio.get_running_loop().add_reader(connection.fileno(), self._discard, connection)

    def close(self) -> None:
        for connection in list(self._held):
            self._drop(connection)

    def _discard(self, connection: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                packet = connection.recv(_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._drop(connection)
                return

    def _drop(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(connection.fileno())
        self._held.discard(connection)
        connection.close()
