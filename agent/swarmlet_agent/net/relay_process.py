"""The process that carries relayed connections, so that they outlive the agent that accepted them (docs/adr/0009).

Started by `relay_helper.py` with the descriptor of a listening SOCK_SEQPACKET socket; run as a file, without anything
but a few of Python's own modules, for it stays for as long as a connection does. It knows whom a connection is for (its
owner, a container) and ends all of an owner's on request. One agent at a time is connected; the newest counts.

To it:    {"owner": …, "port": …, "to": [address, port]} with a client's socket; {"end": owner}
From it:  "owner NAME" for each it has connections of, then "ready VERSION PID"; "idle" when the last has ended and no
          other came for a while: an agent that has nothing on its way hangs up then. Without agent and connections it
          ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable

VERSION = "1"
MAX_MESSAGE = 4096
CONNECT_TIMEOUT_S = 10.0
IDLE_S = 60.0
#: How long it waits for an agent: the one that has started it, and later another one.
FIRST_S, NEXT_S = 10.0, 1.0
#: Connections of one published port; more are turned away.
MAX_CONNECTIONS = 1024
_CHUNK = 65536


class Way:
    """One direction of a connection. What the sink does not take at once waits, and nothing more is read till then."""

    __slots__ = ("ended", "rest", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.rest = b""
        self.ended = False

    def read(self) -> None:
        """OSError if the connection is broken."""
        data = self.source.recv(_CHUNK)
        if data:
            self.rest = data
            self.write()
        else:
            self.ended = True
            self.sink.shutdown(socket.SHUT_WR)

    def write(self) -> None:
        try:
            self.rest = self.rest[self.sink.send(self.rest) :]
        except BlockingIOError:
            return


class Pair:
    """A client, and the container's port that it is led to."""

    def __init__(self, client: socket.socket, owner: str, port: str) -> None:
        self.owner, self.port = owner, port
        self.client = client
        self.server: socket.socket | None = None
        self.connecting = True
        self.deadline = time.monotonic() + CONNECT_TIMEOUT_S
        self.ways: tuple[Way, ...] = ()

    def begin(self, target: tuple[str, int]) -> None:
        """OSError where it can be seen at once that nothing leads there."""
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        server = self.server = socket.socket(family, socket.SOCK_STREAM)
        for each in (self.client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ways = (Way(self.client, server), Way(server, self.client))
        with contextlib.suppress(BlockingIOError):  # it is on its way
            server.connect(target)

    def on(self, which: socket.socket, events: int) -> None:
        """OSError if it is over and broken."""
        if self.connecting:
            assert self.server is not None
            if code := self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            self.connecting = False
            return
        for way in self.ways:
            if way.sink is which and events & selectors.EVENT_WRITE and way.rest:
                way.write()
            if way.source is which and events & selectors.EVENT_READ and not way.rest and not way.ended:
                way.read()

    def wants(self, which: socket.socket) -> int:
        """The events that would take it further."""
        if self.connecting:
            return selectors.EVENT_WRITE if which is self.server else 0
        events = 0
        for way in self.ways:
            if way.sink is which and way.rest:
                events |= selectors.EVENT_WRITE
            if way.source is which and not way.rest and not way.ended:
                events |= selectors.EVENT_READ
        return events

    @property
    def over(self) -> bool:
        return not self.connecting and all(way.ended and not way.rest for way in self.ways)


class Relay:
    """The whole process."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._agent: socket.socket | None = None
        self._pairs: set[Pair] = set()
        self._idle_since: float | None = time.monotonic()
        self._alone_s = FIRST_S
        #: Closed once all events of a moment are seen: the next socket may get the number of one that is gone.
        self._doomed: list[socket.socket] = []
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._admit)

    def run(self) -> None:
        """Until there is neither an agent nor a connection."""
        while self._agent is not None or self._pairs or not self._is_idle(self._alone_s):
            for key, events in self._selector.select(self._pause()):
                act: Callable[[int], None] = key.data
                act(events)
            self._look_at_the_clock()
            while self._doomed:
                self._doomed.pop().close()

    def _pause(self) -> float | None:
        if self._agent is None and not self._pairs:
            return self._alone_s
        if any(pair.connecting for pair in self._pairs):
            return 1.0
        return IDLE_S if self._idle_since is not None else None

    def _is_idle(self, for_s: float) -> bool:
        return self._idle_since is not None and time.monotonic() - self._idle_since >= for_s

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        for pair in [pair for pair in self._pairs if pair.connecting and now > pair.deadline]:
            self._close(pair)
        if self._agent is not None and not self._pairs and self._is_idle(IDLE_S):
            self._idle_since = now
            self._tell("idle")

    # The agent

    def _admit(self, _: int) -> None:
        agent, _address = self._listener.accept()
        self._hang_up()
        self._agent, self._alone_s = agent, NEXT_S
        self._selector.register(agent, selectors.EVENT_READ, self._on_agent)
        for owner in {pair.owner for pair in self._pairs}:
            self._tell(f"owner {owner}")
        self._tell(f"ready {VERSION} {os.getpid()}")

    def _tell(self, text: str) -> None:
        """A blocking socket: an agent that does not read its few words is killed by its own supervisor."""
        if self._agent is not None:
            try:
                self._agent.send(text.encode())
            except OSError:
                self._hang_up()

    def _hang_up(self) -> None:
        if self._agent is not None:
            self._selector.unregister(self._agent)
            self._doomed.append(self._agent)
            self._agent = None
            if not self._pairs:
                self._idle_since = time.monotonic()

    def _on_agent(self, _: int) -> None:
        if self._agent is None:
            return
        try:
            data, handed, _flags, _address = socket.recv_fds(self._agent, MAX_MESSAGE, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # the event was of another agent, which is gone
        except OSError:
            data, handed = b"", []
        sockets = [socket.socket(fileno=each) for each in handed]
        if not data:
            self._hang_up()
        else:
            message = json.loads(data)
            if "end" in message:
                for pair in [pair for pair in self._pairs if pair.owner == message["end"]]:
                    self._close(pair)
            else:
                for client in sockets:
                    self._begin(client, message)
                return
        for each in sockets:
            each.close()

    # Connections

    def _begin(self, client: socket.socket, message: dict[str, object]) -> None:
        owner, port, target = str(message["owner"]), str(message["port"]), message["to"]
        assert isinstance(target, list)
        if sum(pair.port == port for pair in self._pairs) >= MAX_CONNECTIONS:
            client.close()
            return
        pair = Pair(client, owner, port)
        self._pairs.add(pair)
        self._idle_since = None
        try:
            pair.begin((str(target[0]), int(target[1])))
        except OSError:
            self._close(pair)
            return
        self._listen_to(pair)

    def _listen_to(self, pair: Pair) -> None:
        """Wake for what takes the connection further, and for nothing else."""
        registered = self._selector.get_map()
        for each in (pair.client, pair.server):
            if each is None:
                continue
            events = pair.wants(each)
            if each in registered:
                if not events:
                    self._selector.unregister(each)
                elif registered[each].events != events:
                    self._selector.modify(each, events, registered[each].data)
            elif events:
                self._selector.register(each, events, lambda got, each=each: self._on_pair(pair, each, got))

    def _on_pair(self, pair: Pair, which: socket.socket, events: int) -> None:
        if pair not in self._pairs:
            return  # closed by an event before this one
        try:
            pair.on(which, events)
        except (BlockingIOError, InterruptedError):
            pass  # woken for nothing
        except OSError:
            self._close(pair)
            return
        if pair.over:
            self._close(pair)
        else:
            self._listen_to(pair)

    def _close(self, pair: Pair) -> None:
        for each in (pair.client, pair.server):
            if each is not None:
                if each in self._selector.get_map():
                    self._selector.unregister(each)
                self._doomed.append(each)
        self._pairs.discard(pair)
        if not self._pairs:
            self._idle_since = time.monotonic()


def main() -> None:
    """argv: the listening socket's descriptor. Returns to the starter at once; the work goes on behind it."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    Relay(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
