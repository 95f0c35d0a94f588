"""Traffic between network namespaces: what benchmarks of the data plane send. `spaces`: those of the kernel tests."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from benchmarks.figures import median

STREAM_BYTES, STREAM_PORT = 512 << 20, 5001


def connects(spaces: Any, where: str, targets: dict[str, tuple[str, int]], count: int) -> dict[str, float]:
    """Median microseconds to connect to each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(count):
        for name, target in targets.items():
            channel = spaces.open(where, socket.AF_INET, socket.SOCK_STREAM)
            channel.setblocking(True)
            began = time.perf_counter()
            channel.connect(target)
            times[name].append((time.perf_counter() - began) * 1e6)
            channel.close()
    return {name: median(values) for name, values in times.items()}


def stream(spaces: Any, source: str, sink: str, host: str) -> float:
    """Seconds that STREAM_BYTES take from one namespace to another, sent to `host`."""
    listener = spaces.open(sink, socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(True)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", STREAM_PORT))
    listener.listen(1)

    def take() -> None:
        channel, _ = listener.accept()
        room, left = bytearray(1 << 20), STREAM_BYTES
        while left:
            left -= channel.recv_into(room)
        channel.sendall(b"!")
        channel.close()

    thread = threading.Thread(target=take)
    thread.start()
    channel = spaces.open(source, socket.AF_INET, socket.SOCK_STREAM)
    channel.setblocking(True)
    channel.connect((host, STREAM_PORT))
    piece = bytes(1 << 20)
    began = time.perf_counter()
    for _ in range(STREAM_BYTES // len(piece)):
        channel.sendall(piece)
    channel.recv(1)
    took = time.perf_counter() - began
    channel.close()
    thread.join()
    listener.close()
    return took
