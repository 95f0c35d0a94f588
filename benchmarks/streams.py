"""Starts, execs, and streams through the API of one node: attach, exec, a log written and read back.

The floor of an exec is the bare OCI runtime on the same container. Streams are told as seconds for a fixed amount, so
that the bound is a most: 200 MB at 100 MB/s are 2 s.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figure, median
from benchmarks.lab import api, cluster, runtime_name
from swarmlet.local import hosts
from swarmlet.local.layout import HostLayout

MB = 10**6
LOG_BYTES, STREAM_BYTES, MEMORY_BYTES = 200 * MB, 400 * MB, 1 << 30
STARTS, CLIENTS, EXECS = 48, 8, 40
_BLOCK = b"a" * (1 << 20)


def measure() -> list[Figure]:
    with cluster() as layout:
        host = layout.nodes[1]
        return [*_execs(host), _starts(host), *_log(host), *_streams(host), _memory(host)]


@contextmanager
def _container(host: HostLayout, *command: str, **more: object) -> Iterator[str]:
    """A container that was made, not started; removed at the end."""
    body = {"Image": "busybox", "Cmd": [*command], "HostConfig": {"NetworkMode": "none"}, **more}
    ident = api(host.agent_socket, "POST", "/containers/create", body)["Id"]
    try:
        yield ident
    finally:
        api(host.agent_socket, "DELETE", f"/containers/{ident}?force=1")


def _execs(host: HostLayout) -> list[Figure]:
    with _container(host, "sleep", "600") as ident:
        api(host.agent_socket, "POST", f"/containers/{ident}/start")
        bare = median(_bare_execs(host, ident)) * 1e3
        times = []
        for turn in range(EXECS + 1):
            began = time.perf_counter()
            _exec(host, ident, "true").close()
            if turn:
                times.append((time.perf_counter() - began) * 1e3)
    return [Figure("API exec of `true`", median(times), "ms", bare, "bare runtime exec", 2, EXECS)]


def _exec(host: HostLayout, ident: str, *command: str, stdin: bool = False) -> socket.socket:
    """Create and start it; its connection, at the end of its output unless it takes input."""
    body = {"Cmd": [*command], "AttachStdin": stdin, "AttachStdout": True, "AttachStderr": True}
    made = api(host.agent_socket, "POST", f"/containers/{ident}/exec", body)["Id"]
    connection = _hijack(host, f"/exec/{made}/start", {})
    if not stdin:
        _drain(connection)
    return connection


def _bare_execs(host: HostLayout, ident: str) -> list[float]:
    """Seconds of each exec by the OCI runtime alone, in a mount namespace such as the agent's runtime has."""
    root = next(path.parent for path in host.run_dir.rglob(f"oci/{ident}"))
    options = ["--cgroup-manager=cgroupfs"] if runtime_name().endswith("crun") else []
    script = (
        "mount --make-rprivate / && { [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified; } && "
        'exec "$0" -m benchmarks.streams "$@"'
    )
    argv = [runtime_name(), *options, "--root", str(root), "exec", ident, "true"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, *argv], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"bare exec: {done.stderr[-1000:]}")
    times: list[float] = json.loads(done.stdout)
    return times


def _starts(host: HostLayout) -> Figure:
    body = {"Image": "busybox", "Cmd": ["sleep", "600"]}
    idents = [api(host.agent_socket, "POST", "/containers/create", body)["Id"] for _ in range(STARTS)]
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            began = time.perf_counter()
            list(pool.map(lambda ident: api(host.agent_socket, "POST", f"/containers/{ident}/start"), idents))
            took = time.perf_counter() - began
    finally:
        for ident in idents:
            api(host.agent_socket, "DELETE", f"/containers/{ident}?force=1")
    # 25 a second.
    return Figure(f"each start, bridge, {CLIENTS} clients at once", took / STARTS * 1e3, "ms", bound=40, n=STARTS)


def _log(host: HostLayout) -> list[Figure]:
    line = "x" * 99
    with _container(host, "sh", "-c", f"yes {line} | head -c {LOG_BYTES}") as ident:
        began = time.perf_counter()
        api(host.agent_socket, "POST", f"/containers/{ident}/start")
        api(host.agent_socket, "POST", f"/containers/{ident}/wait")
        written = time.perf_counter() - began
        began = time.perf_counter()
        connection = _connect(host)
        path = f"/v1.43/containers/{ident}/logs?stdout=1&stderr=1"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".encode())
        size = _drain(connection)
        read = time.perf_counter() - began
        connection.close()
    if size < LOG_BYTES:
        raise RuntimeError(f"only {size} bytes of the log came back")
    return [
        Figure("log of 200 MB in lines of 100 bytes, written", written, "s", bound=2),
        Figure("the same, read through the API", read, "s", bound=2),
    ]


def _streams(host: HostLayout) -> list[Figure]:
    quiet = {"HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "none"}}}
    taking = {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True, **quiet}
    figures = []
    with _container(host, "sh", "-c", "cat > /dev/null", **taking) as ident:
        connection = _hijack(host, f"/containers/{ident}/attach?stream=1&stdin=1&stdout=1")
        api(host.agent_socket, "POST", f"/containers/{ident}/start")
        # 200 MB/s.
        figures.append(Figure("attach, 400 MB into stdin", _fill(connection, STREAM_BYTES), "s", bound=2))
    with _container(host, "head", "-c", str(STREAM_BYTES), "/dev/zero", **quiet) as ident:
        connection = _hijack(host, f"/containers/{ident}/attach?stream=1&stdout=1")
        began = time.perf_counter()
        api(host.agent_socket, "POST", f"/containers/{ident}/start")
        _expect(_drain(connection), STREAM_BYTES)
        connection.close()
        figures.append(Figure("attach, 400 MB from stdout", time.perf_counter() - began, "s"))
    with _container(host, "sleep", "600") as ident:
        api(host.agent_socket, "POST", f"/containers/{ident}/start")
        connection = _exec(host, ident, "sh", "-c", "cat > /dev/null", stdin=True)
        figures.append(Figure("exec, 400 MB into stdin", _fill(connection, STREAM_BYTES), "s"))
        began = time.perf_counter()
        _exec(host, ident, "head", "-c", str(STREAM_BYTES), "/dev/zero").close()
        figures.append(Figure("exec, 400 MB from stdout", time.perf_counter() - began, "s"))
    return figures


def _memory(host: HostLayout) -> Figure:
    """What the agent's memory grows by while 1 GiB goes in and out of one container."""
    agent = _agent(host)
    before = _resident(agent)
    with _container(host, "sleep", "600") as ident:
        api(host.agent_socket, "POST", f"/containers/{ident}/start")
        _fill(_exec(host, ident, "sh", "-c", "cat > /dev/null", stdin=True), MEMORY_BYTES)
        _exec(host, ident, "head", "-c", str(MEMORY_BYTES), "/dev/zero").close()
        grown = max(0.0, (_resident(agent) - before) / MB)
        return Figure("agent's memory after 1 GiB in and out", grown, "MB", bound=24)


def _agent(host: HostLayout) -> int:
    for pid in hosts.host_pids(host):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"swarmlet-agent" in {os.path.basename(word) for word in words[:2]}:
            return pid
    raise LookupError("no agent")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _connect(host: HostLayout) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(host.agent_socket))
    return connection


def _hijack(host: HostLayout, path: str, body: object = None) -> socket.socket:
    connection = _connect(host)
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"POST /v1.43{path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        if not (byte := connection.recv(1)):
            raise RuntimeError(f"no answer to {path}: {answer!r}")
        answer += byte
    if b" 101 " not in answer.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{path}: {answer!r}")
    return connection


def _fill(connection: socket.socket, size: int) -> float:
    """Seconds until so many bytes, and their end, have been taken by the other side. Closes the connection."""
    began = time.perf_counter()
    for _ in range(size // len(_BLOCK)):
        connection.sendall(_BLOCK)
    connection.shutdown(socket.SHUT_WR)
    _drain(connection)
    connection.close()
    return time.perf_counter() - began


def _drain(connection: socket.socket) -> int:
    size = 0
    while data := connection.recv(1 << 20):
        size += len(data)
    return size


def _expect(size: int, wanted: int) -> None:
    if size < wanted:
        raise RuntimeError(f"{size} bytes instead of {wanted}")


def _main() -> None:
    """The measuring side of `_bare_execs`."""
    argv = [shutil.which(sys.argv[1]) or sys.argv[1], *sys.argv[2:]]
    times = []
    for turn in range(EXECS + 1):
        began = time.perf_counter()
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        if turn:
            times.append(time.perf_counter() - began)
    print(json.dumps(times))


if __name__ == "__main__":
    _main()
