"""The streams of an exec: pipes, or one pseudo terminal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping

from swarmlet_agent.runtime.outputs import InputWriter, OutputQueue

_READ_BYTES = 64 << 10
#: How long after the process's end its children may still hold its output open (dockerd waits as long).
LINGER_S = 2.0


class PipeStreams:
    """outputs: descriptor -> stream number. stdin: a descriptor, or None. All are owned and closed here.

    After `close` the process goes on: its output is read and thrown away.
    """

    def __init__(self, outputs: Mapping[int, int], stdin: int | None, *, tty: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = dict(outputs)
        self._tty = tty
        self._stdin = stdin
        self._input = InputWriter(stdin) if stdin is not None else None
        self._queue = OutputQueue(self._stop, self._go)
        self._discarding = False
        self._process_ended = False
        self._lingering: asyncio.TimerHandle | None = None
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
        if stdin is not None:
            os.set_blocking(stdin, False)
        if not self._open:
            self._queue.finish()
        self._go()

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return self._queue

    @property
    def terminal(self) -> int | None:
        """The pseudo terminal's descriptor, while it is open."""
        return next(iter(self._open), None) if self._tty else None

    async def write(self, data: bytes) -> None:
        if self._input is not None:
            await self._input.write(data)

    async def close_stdin(self) -> None:
        if self._input is None or self._tty:  # a terminal has no end of input but what the user types
            return
        self._input.stop()
        self._input = None
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    async def close(self) -> None:
        self._discarding = True
        self._queue.drop()
        self._go()

    def process_ended(self) -> None:
        """What is in the pipes is still read; who holds them open longer than LINGER_S is not waited for."""
        self._process_ended = True
        if not self._open:
            self._end_stdin()
        elif self._lingering is None:
            self._lingering = self._loop.call_later(LINGER_S, self._give_up)

    def release(self) -> None:
        """Close every descriptor now."""
        for descriptor in list(self._open):
            self._end(descriptor)
        self._end_stdin()

    def _give_up(self) -> None:
        if self._queue.stopped and not self._discarding:  # the client reads slowly, the data is there
            self._lingering = self._loop.call_later(LINGER_S, self._give_up)
        else:
            self.release()

    def _readable(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last holder of the terminal has gone
            data = b""
        if not data:
            self._end(descriptor)
        elif not self._discarding:
            self._queue.put(self._open[descriptor], data)

    def _end(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        del self._open[descriptor]
        os.close(descriptor)
        if not self._open:
            self._queue.finish()
            if self._lingering is not None:
                self._lingering.cancel()
            if self._process_ended:
                self._end_stdin()

    def _end_stdin(self) -> None:
        if self._input is not None:
            self._input.stop()
            self._input = None
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def _stop(self) -> None:
        for descriptor in self._open:
            self._loop.remove_reader(descriptor)

    def _go(self) -> None:
        for descriptor in self._open:
            self._loop.add_reader(descriptor, self._readable, descriptor)
