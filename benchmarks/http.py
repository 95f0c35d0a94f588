"""Frequent questions to one engine, one keep-alive client: against a canned asyncio server sending the same bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.figures import Figure, median
from benchmarks.lab import cluster, docker

CONTAINERS = 100
#: Questions in one measurement, and measurements of each side, which take turns.
QUESTIONS, TURNS = 500, 5


def measure() -> list[Figure]:
    figures = []
    with cluster() as layout, tempfile.TemporaryDirectory() as folder:
        node = layout.nodes[0].agent_socket
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: docker(node, "run", "-d", "busybox", "sleep", "3600"), range(CONTAINERS)))
        for name, path, bound in (
            ("GET /_ping", "/_ping", 3.0),
            (f"GET /containers/json, {CONTAINERS} containers", "/v1.50/containers/json", 4.0),
            ("GET /info", "/v1.50/info", 5.0),
        ):
            size = len(_Client(node, path).ask())
            with _canned(Path(folder) / "canned.sock", size) as canned:
                clients = _Client(node, path), _Client(canned, "/")
                times: tuple[list[float], list[float]] = [], []
                for turn in range(TURNS + 1):
                    for client, kept in zip(clients, times, strict=True):
                        took = client.time(QUESTIONS)
                        if turn:
                            kept.append(took)
            own, floor = (median(each) * 1e6 for each in times)
            shown = f"{name}: {1e6 / own:,.0f}/s"
            figures.append(Figure(shown, own, "us", floor, "canned server", bound, QUESTIONS * TURNS))
    return figures


class _Client:
    """HTTP/1.1 on one connection, as little as measures the server and not itself."""

    def __init__(self, path: Path, target: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._request = f"GET {target} HTTP/1.1\r\nHost: docker\r\nUser-Agent: bench\r\n\r\n".encode()

    def ask(self) -> bytes:
        """The body."""
        self._socket.sendall(self._request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._some()
        head, _, body = data.partition(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(body)
        parts = [body]
        while left > 0:
            parts.append(self._some())
            left -= len(parts[-1])
        return b"".join(parts)

    def time(self, count: int) -> float:
        """Seconds per question."""
        began = time.perf_counter()
        for _ in range(count):
            self.ask()
        return (time.perf_counter() - began) / count

    def _some(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server has hung up")
        return data


@contextlib.contextmanager
def _canned(path: Path, size: int) -> Iterator[Path]:
    path.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.http", str(path), str(size)])
    try:
        while not path.exists():
            time.sleep(0.01)
        yield path
    finally:
        process.terminate()
        process.wait()


class _Canned(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)


async def _serve(path: str, size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Canned(answer), path)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
