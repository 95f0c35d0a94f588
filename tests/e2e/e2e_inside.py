"""Traffic from inside containers, made by the test itself: sockets that it opens in a container's network namespace.

So thousands of connections, streams with sequence numbers and packets of exact sizes cost no process each. A socket
keeps its namespace: close all before the container is expected to leave nothing.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from e2e_cluster import Cluster

from swarmlet_agent.net import netns

#: Of one exchange: on a busy machine a thread may wait for seconds, and what is lost for good is lost for longer.
PATIENCE_S = 15.0
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@dataclass(frozen=True)
class Place:
    """A container. addresses: network -> its address there. path: of its network namespace."""

    node: int
    container: str
    addresses: dict[str, str] = field(hash=False)
    path: Path = Path()

    def __str__(self) -> str:
        return f"{self.container[:6]}@{self.node}"

    def open(self, kind: int, timeout_s: float = PATIENCE_S) -> socket.socket:
        with netns.inside(self.path):
            opened = socket.socket(socket.AF_INET, kind)
        opened.settimeout(timeout_s)
        return opened

    def connect(self, host: str, port: int, kind: int = TCP, timeout_s: float = PATIENCE_S) -> socket.socket:
        """OSError (TimeoutError among them) where nobody answers."""
        opened = self.open(kind, timeout_s)
        try:
            opened.connect((host, port))
        except BaseException:
            opened.close()
            raise
        return opened

    def ask(self, host: str, port: int, kind: int = TCP, timeout_s: float = PATIENCE_S) -> str:
        """One exchange with a server of `Servers`: its tag. OSError where nobody answers."""
        with self.connect(host, port, kind, timeout_s) as line:
            return exchange(line, "?").partition(" ")[0]

    def resolve(self, name: str) -> set[str]:
        """IPv4 addresses that the container's resolver tells; none for a name it does not know. OSError: silence.

        Without the search list and repeats of a resolver in the container: what is asked is what is answered.
        """
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        with self.connect("127.0.0.11", 53, UDP) as line:
            line.sendall(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01")
            heard = line.recv(4096)
        count, place = int.from_bytes(heard[6:8], "big"), 12 + len(labels) + 5
        found = set()
        for _ in range(count):
            while heard[place] and heard[place] < 0xC0:
                place += 1 + heard[place]
            place += 2 if heard[place] else 1
            kind, size = heard[place : place + 2], int.from_bytes(heard[place + 8 : place + 10], "big")
            if kind == b"\0\x01":
                found.add(socket.inet_ntoa(heard[place + 10 : place + 14]))
            place += 10 + size
        return found


def places(cluster: Cluster, service: str) -> list[Place]:
    """The running containers of a service, by node."""
    found = []
    for number in (1, 2, 3):
        node = cluster.node(number)
        idents = node("ps", "-q", "--no-trunc", "--filter", f"label=com.docker.swarm.service.name={service}").split()
        for shown in node.json("inspect", *sorted(idents)) if idents else []:
            settings = shown["NetworkSettings"]
            addresses = {name: place["IPAddress"] for name, place in settings["Networks"].items()}
            found.append(Place(number, shown["Id"], addresses, Path(settings["SandboxKey"])))
    return found


def vip(cluster: Cluster, service: str, network: str) -> str:
    """The service's virtual address in a network."""
    ident = cluster.view("network", "inspect", "-f", "{{.Id}}", network)
    endpoint = cluster.view.json("service", "inspect", service)[0]["Endpoint"]
    return next(one["Addr"].partition("/")[0] for one in endpoint["VirtualIPs"] if one["NetworkID"] == ident)


def exchange(line: socket.socket, text: str) -> str:
    """Send a line (or datagram) and read one. OSError if the other end hangs up."""
    line.sendall(f"{text}\n".encode())
    heard = b""
    while not heard.endswith(b"\n"):
        piece = line.recv(4096)
        if not piece:
            raise ConnectionResetError("hung up")
        heard += piece
    return heard.decode().strip()


class Servers:
    """Servers on TCP and UDP in containers' namespaces; each line or datagram is answered with "tag text".

    One thread plays them all.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="servers")

    def __enter__(self) -> Servers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def add(self, place: Place, tag: str, port: int) -> None:
        for kind, serve in ((TCP, self._accept), (UDP, self._answer_datagram)):
            listener = place.open(kind, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            if kind == TCP:
                listener.listen(128)
            self._selector.register(listener, selectors.EVENT_READ, (serve, tag))

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                serve, tag = key.data
                assert isinstance(key.fileobj, socket.socket)
                serve(key.fileobj, tag)

    def _accept(self, listener: socket.socket, tag: str) -> None:
        try:
            line, _ = listener.accept()
        except OSError:
            return  # it went before it was taken
        line.settimeout(PATIENCE_S)
        self._selector.register(line, selectors.EVENT_READ, (self._answer_lines, tag))

    def _answer_lines(self, line: socket.socket, tag: str) -> None:
        try:
            heard = line.recv(65536)
            if heard:
                # Clients wait for each answer, so what comes at once is whole lines.
                line.sendall(b"".join(f"{tag} {text}\n".encode() for text in heard.decode().splitlines()))
                return
        except OSError:
            pass  # the client's end is told by the client
        self._selector.unregister(line)
        line.close()

    def _answer_datagram(self, channel: socket.socket, tag: str) -> None:
        text, source = channel.recvfrom(65536)
        channel.sendto(f"{tag} {text.decode().strip()}\n".encode(), source)


class Stream:
    """A connection that is used all the time: numbers in order, each answered by the same server.

    `end` tells how many there were and the longest wait for one, in seconds; it raises what broke the stream.
    Whatever happens, its thread ends with the block.
    """

    def __init__(self, connect: Callable[[], socket.socket], name: str, period_s: float = 0.01) -> None:
        self.name = name
        self._line = connect()
        self.tag = exchange(self._line, "0").partition(" ")[0]
        self._period_s = period_s
        self._over = threading.Event()
        self._count, self._longest_s = 1, 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"stream {name}")
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def count(self) -> int:
        return self._count

    @property
    def broken(self) -> bool:
        return self._failure is not None

    def told(self) -> str:
        return f"{self.name} to {self.tag} after {self._count}: {self._failure!r}"

    def _run(self) -> None:
        try:
            while not self._over.wait(self._period_s):
                asked = time.monotonic()
                heard = exchange(self._line, str(self._count))
                self._longest_s = max(self._longest_s, time.monotonic() - asked)
                assert heard == f"{self.tag} {self._count}", f"{heard!r} after {self._count} of {self.tag}"
                self._count += 1
        except BaseException as err:
            self._failure = err

    def end(self) -> tuple[int, float]:
        self.stop()
        if self._failure is not None:
            raise AssertionError(self.told()) from self._failure
        return self._count, self._longest_s

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._line.close()


@dataclass
class Tries:
    """What a loop of connections came to. failures: (seconds since the start, why)."""

    began: float
    answers: list[tuple[float, str]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)

    def told(self) -> str:
        return f"{len(self.answers)} answered, {len(self.failures)} failed: {self.failures[:10]}"


@contextmanager
def trying(ask: Callable[[], str], period_s: float = 0.005) -> Iterator[Tries]:
    """Ask again and again, on a thread, for as long as the block runs."""
    tries, over = Tries(time.monotonic()), threading.Event()
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            while not over.wait(period_s):
                at = time.monotonic() - tries.began
                try:
                    tries.answers.append((at, ask()))
                except OSError as err:
                    tries.failures.append((at, f"{type(err).__name__} {err}"))
        except BaseException as err:
            trouble.append(err)

    thread = threading.Thread(target=run, name="tries")
    thread.start()
    try:
        yield tries
    except Exception as err:
        # What ended the thread explains what the block waited for in vain.
        raise (trouble[0] if trouble else AssertionError(f"{err}; {tries.told()}")) from err
    finally:
        over.set()
        thread.join()
    if trouble:
        raise trouble[0]


def http(connect: Callable[[], socket.socket]) -> str:
    """The last line of the page behind a connection. OSError if it is cut short."""
    with connect() as line:
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        heard = b""
        while piece := line.recv(65536):
            heard += piece
    head, _, body = heard.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0] or not body:
        raise ConnectionError(f"not a page: {heard[:60]!r}")
    return body.decode().strip()
