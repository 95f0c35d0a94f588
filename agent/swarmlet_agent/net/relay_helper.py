"""The agent's end of the relay process (`relay_process.py`): started when the first connection needs it, found again by
the next agent, let go when it has nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from swarmlet.log import get_logger
from swarmlet_agent.net import relay_process

log = get_logger(__name__)

_NAME = "relay.sock"
#: What a relay process gets to begin, and to say that it is ready.
READY_S = 10.0
#: Connections that wait to be handed over; more are turned away.
MOST_AT_ONCE = 1024


class RelayHelper:
    """folder: where its socket lies, on no mount of ours, which it would keep. All calls on one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connection: socket.socket | None = None
        self._lock = asyncio.Lock()
        #: Of the relay process that was found last.
        self.pid = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def adopt(self, owners: Collection[str]) -> None:
        """Find the relay of an agent before this one; connections of others than these owners end."""
        async with self._lock:
            if not (self._folder / _NAME).exists():
                return
            try:
                known = await asyncio.to_thread(self._find)
            except OSError:
                return  # it has ended
            if known is None:
                return
            self._watch()
            for owner in known - set(owners):
                await self._send({"end": owner})

    def hand_over(self, client: socket.socket, owner: str, port: str, target: tuple[str, int]) -> None:
        """Let the relay lead a client, which is ours no more, to a target; in the order of the calls."""
        if len(self._tasks) >= MOST_AT_ONCE:
            client.close()
        else:
            self._begin(self._hand_over(client, owner, {"owner": owner, "port": port, "to": target}))

    def end(self, owner: str) -> None:
        """End an owner's connections, those just handed over, too; none is fine."""
        self._begin(self._end(owner))

    async def close(self) -> None:
        """Hang up; connections go on."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        self._hang_up()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        """What it does takes turns by the lock, and is never cut: a thread may be at it."""
        task = asyncio.get_running_loop().create_task(work, name="port-relay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, client: socket.socket, owner: str, message: Mapping[str, object]) -> None:
        with client:
            try:
                await self._deliver(client, message)
            except (OSError, subprocess.SubprocessError) as err:
                log.warning("relayed connection not served", container_id=owner, reason=str(err))

    async def _deliver(self, client: socket.socket, message: Mapping[str, object]) -> None:
        """OSError if there is no relay, and none can be started."""
        async with self._lock:
            if self._connection is not None:
                with contextlib.suppress(ConnectionError):
                    await self._send(message, client)
                    return
                self._hang_up()
            await asyncio.to_thread(self._find_or_start)
            self._watch()
            await self._send(message, client)

    async def _end(self, owner: str) -> None:
        async with self._lock:
            if self._connection is not None:
                try:
                    await self._send({"end": owner})
                except OSError as err:  # it has ended, and all of its connections
                    log.debug("the relay process is gone", reason=str(err))
                    self._hang_up()

    async def _send(self, message: Mapping[str, object], *sockets: socket.socket) -> None:
        connection = self._connection
        if connection is None:
            raise ConnectionResetError("the relay process has hung up")
        data, handles = json.dumps(message).encode(), [each.fileno() for each in sockets]
        while True:
            try:
                socket.send_fds(connection, [data], handles)
                return
            except BlockingIOError:
                await _writable(connection)

    def _watch(self) -> None:
        """Hear of its end, and of its having nothing to do."""
        if self._connection is not None:
            asyncio.get_running_loop().add_reader(self._connection.fileno(), self._on_word)

    def _on_word(self) -> None:
        """Its end, or "idle": then it may go, unless something is being sent just now."""
        if self._connection is not None and not self._lock.locked():
            self._hang_up()
        elif self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.recv(relay_process.MAX_MESSAGE)

    def _hang_up(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
            self._connection = None

    # Blocking

    def _find_or_start(self) -> None:
        try:
            if self._find() is not None:
                return
        except OSError as err:
            log.debug("no relay process", reason=str(err))
        self._start()
        if self._find() is None:
            raise ConnectionRefusedError("the relay process that was started is of another version")

    def _find(self) -> set[str] | None:
        """Connect to a running relay: the owners of its connections; None if it is of another version. OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(READY_S)
            with self._address() as address:
                connection.connect(address)
            owners = set()
            while (word := connection.recv(relay_process.MAX_MESSAGE).decode()).startswith("owner "):
                owners.add(word.removeprefix("owner "))
            if not word:
                raise ConnectionResetError("the relay process was about to end")
            _, version, pid = word.split()
            if version != relay_process.VERSION:
                connection.close()
                return None
            connection.setblocking(False)
        except BaseException:  # of any kind: undo, and pass it on
            connection.close()
            raise
        self._connection, self.pid = connection, int(pid)
        log.info("relay process found", pid=self.pid)
        return owners

    def _start(self) -> None:
        """A new one at our address; another that may still be there keeps its connections until they end."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / _NAME).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            with self._address() as address:
                listener.bind(address)
            (self._folder / _NAME).chmod(0o600)
            listener.listen(4)
            subprocess.run(
                [sys.executable, "-I", "-S", relay_process.__file__, str(listener.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
                pass_fds=(listener.fileno(),), timeout=READY_S, env={},
            )

    @contextmanager
    def _address(self) -> Iterator[str]:
        """Its socket's, however long the folder's path is."""
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{_NAME}"
        finally:
            os.close(folder)


async def _writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(connection.fileno())
