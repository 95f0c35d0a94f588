"""The kernel's side of services: what a VIP and a hop of the mesh cost, and how fast they are programmed.

Hosts and containers are network namespaces of a child process, those of the kernel tests.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.apart import leave_the_host
from benchmarks.figures import Figure, median
from benchmarks.traffic import connects, stream

SERVICES, ENDPOINTS, CONNECTS, CHANGES = 1000, 10, 600, 100
STREAMS = 3
_LAB = Path(__file__).parent.parent / "tests/kernel/net"


def measure() -> list[Figure]:
    command = [sys.executable, "-m", "benchmarks.dataplane"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    found = json.loads(result.stdout)
    size = f"{SERVICES} x {ENDPOINTS}"
    rows: list[tuple[str, str, str, str, str, float | None, int]] = [
        ("connecting by a VIP, one of many", "connect vip", "us", "connect direct", "direct", 1.2, CONNECTS),
        (f"services {size} in one namespace", "load", "ms", "", "", 1000, 1),
        ("one endpoint's change among them", "change many", "ms", "change one", "with one service", 2, CHANGES),
        (f"mesh of ports {size} from nothing", "mesh load", "ms", "", "", 1000, 1),
        ("one endpoint's change in that mesh", "mesh change", "ms", "", "", 100, CHANGES // 5),
        # The hop's throughput is to be at least 0.6 of the direct one.
        ("512 MiB through a hop of the mesh", "stream hop", "s", "stream direct", "routed", 1 / 0.6, STREAMS),
        ("connecting by a hop of the mesh", "connect hop", "us", "connect routed", "routed", None, CONNECTS),
    ]
    return [
        Figure(name, found[key], unit, found.get(floor), floor_name, bound, n)
        for name, key, unit, floor, floor_name, bound, n in rows
    ]


def main() -> None:
    leave_the_host()
    sys.path.insert(0, str(_LAB))
    with tempfile.TemporaryDirectory(prefix="swl-bench-") as folder:
        print(json.dumps(asyncio.run(_all(Path(folder)))))


async def _all(folder: Path) -> dict[str, float]:
    from mesh_lab import PORT, TARGET, MeshLab, backend_ip, node_ip, published  # type: ignore[import-not-found]

    from swarmlet_agent.net.balance.kernel import Balancers
    from swarmlet_agent.net.mesh.plan import Backend, Published

    async with AsyncExitStack() as stack:
        lab = MeshLab(SimpleNamespace(root=folder), stack)
        await lab.build(*published(2))
        spaces = lab.spaces
        found: dict[str, float] = {}
        # Two containers of one node: a direct connection between them, and one by a VIP.
        spaces.host_on_bridge("n1", "br0", "near", "10.7.0.99/24", via=("10.7.0.1",))
        balancers = Balancers(spaces.folder)
        stack.callback(balancers.close)
        many = {_vip(n): [f"10.7.{n % 250}.{place}" for place in range(1, ENDPOINTS + 1)] for n in range(SERVICES)}
        many[_vip(500)] = [backend_ip(1)]
        balancers.apply("near", {_vip(0): many[_vip(0)]})
        found["change one"] = _changes(balancers)
        balancers.forget("near")
        spaces.command("near", "nft", "flush", "ruleset")
        began = time.perf_counter()
        balancers.apply("near", many)
        found["load"] = (time.perf_counter() - began) * 1e3
        found["change many"] = _changes(balancers)
        connect = await asyncio.to_thread(
            connects, spaces, "near", {"connect direct": (backend_ip(1), TARGET), "connect vip": (_vip(500), TARGET)},
            CONNECTS,
        )
        # The client far away: by a route to the backend's node, and by another node's mesh.
        spaces.ip("lan", f"route add {backend_ip(2)} via {node_ip(2)}")
        spaces.command("n2", "nft", "insert", "rule", "ip", "swl", "f", "accept")  # else nobody gets in by that route
        connect |= await asyncio.to_thread(
            connects, spaces, "x", {"connect routed": (backend_ip(2), TARGET), "connect hop": (node_ip(1), PORT)},
            CONNECTS,
        )
        streams: dict[str, list[float]] = {"stream direct": [], "stream hop": []}
        lab.ensure(*published(2), Published("tcp", 5001, (Backend(backend_ip(2), 5001, 2),)))
        for _ in range(STREAMS):
            for name, host in (("stream direct", backend_ip(2)), ("stream hop", node_ip(1))):
                streams[name].append(await asyncio.to_thread(stream, spaces, "x", "c2", host))
        found |= connect | {name: median(values) for name, values in streams.items()}
        ports = [
            Published("tcp", 10000 + n, tuple(Backend(f"10.8.{n % 250}.{place}", 80, 2) for place in range(ENDPOINTS)))
            for n in range(SERVICES)
        ]
        lab.start_agent("n3")
        found["mesh load"] = _timed(lambda: lab.ensure(*ports, only=("n3",)))
        times = []
        for turn in range(CHANGES // 5):
            ports[7] = Published("tcp", 10007, (*ports[7].backends[1:], Backend(f"10.9.0.{turn + 1}", 80, 2)))
            times.append(_timed(lambda: lab.ensure(*ports, only=("n3",))))
        found["mesh change"] = median(times)
        return found


def _vip(number: int) -> str:
    return f"10.70.{number // 200}.{number % 200 + 1}"


def _timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _changes(balancers: Any) -> float:
    """Median milliseconds of one backend taking another's place, and back."""
    times = []
    for turn in range(CHANGES):
        backends = [f"10.7.0.{place + turn % 2}" for place in range(1, ENDPOINTS + 1)]
        began = time.perf_counter()
        balancers.change("near", {_vip(0): backends})
        times.append((time.perf_counter() - began) * 1e3)
    return median(times)


if __name__ == "__main__":
    main()
