"""A container's networks: made and taken away, in the agent's own (processor) time. No container runs.

In network and mount namespaces of its own. The floor is the same run's bare kernel: a namespace, a veth pair into a
bridge, an address and a route by raw netlink, and closing the namespace again; no plan, journal, files, DNS or rules.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path

from benchmarks.apart import leave_the_host
from benchmarks.figures import Figure, median
from swarmlet.model.container import PortBinding
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.journal import Journal
from swarmlet_agent.net import netlink, netns
from swarmlet_agent.net.bridge import BridgeNetworks
from swarmlet_agent.net.netlink import Netlink
from swarmlet_agent.net.requests import NetworkCreate
from swarmlet_agent.net.types import NetworkWish
from swarmlet_agent.runtime.shared import release_shared

COUNT = 100
#: Milliseconds of the agent's processor time for one container.
SET_UP_MS, DETACH_MS = 5.0, 2.0


def measure() -> list[Figure]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.network"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, tuple[float, float]] = json.loads(done.stdout)
    figures = []
    bare = found.pop("bare")
    for name, times in found.items():
        for part, value, floor, bound in zip(
            ("set-up", "detach"), times, bare, (SET_UP_MS, DETACH_MS), strict=True
        ):  # fmt: skip
            figures.append(Figure(f"{part}: {name}", value, "ms", bound=bound, n=COUNT))
            figures.append(Figure("   against", value, "ms", floor, "bare netlink", n=COUNT))
    return figures


async def _measured(folder: Path) -> dict[str, tuple[float, float]]:
    journal = Journal(folder / "journal.sqlite")
    networks = BridgeNetworks(folder / "run", folder / "data", journal)
    await networks.start()
    try:
        await networks.create(NetworkCreate(name="app"))
        await networks.create(NetworkCreate(name="six", enable_ipv6=True))
        port: dict[str, tuple[PortBinding, ...]] = {"80/tcp": (PortBinding(),)}

        async def attach(mode: str, ports: dict[str, tuple[PortBinding, ...]]) -> Callable[[], Awaitable[None]]:
            ident = new_hex_id()
            name = f"c{ident[:8]}"
            await networks.attach(
                NetworkWish(container_id=ident, container_name=name, hostname=name, mode=mode, ports=ports)
            )
            return lambda: networks.detach(ident)

        return await _times({
            "bare": lambda: asyncio.to_thread(_bare, folder / "run" / "netns"),
            "default bridge": lambda: attach("bridge", {}),
            "the same with a published port": lambda: attach("bridge", port),
            "network with names": lambda: attach("app", {}),
            "network with names, IPv6, a port": lambda: attach("six", port),
        })
    finally:
        await networks.teardown()
        await networks.close()
        journal.close()


async def _times(
    kinds: dict[str, Callable[[], Awaitable[Callable[[], Awaitable[None]]]]],
) -> dict[str, tuple[float, float]]:
    """Medians of making and of taking away, in milliseconds of this process: what others do meanwhile is left out.

    The kinds take turns: what else the machine does slows all of them alike.
    """
    made: dict[str, list[float]] = {name: [] for name in kinds}
    gone: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(COUNT + 5):
        for name, make in kinds.items():
            began = time.process_time()
            undo = await make()
            between = time.process_time()
            await undo()
            ended = time.process_time()
            if turn >= 5:
                made[name].append((between - began) * 1e3)
                gone[name].append((ended - between) * 1e3)
            await asyncio.sleep(0.02)  # the kernel takes old interfaces down in its own time, as between containers
    return {name: (median(made[name]), median(gone[name])) for name in kinds}


def _bare(folder: Path) -> Callable[[], Awaitable[None]]:
    path = folder / f"bare{new_hex_id()[:8]}"
    host = Netlink()
    with netns.new_namespace(path) as descriptor:
        inner = Netlink()
        bridge = host.link("swl0")
        assert bridge is not None
        host.send([netlink.new_veth(
            f"bv{path.name[4:]}", bridge=bridge.index, mtu=1500, group=0, peer_name="eth0",
            peer_mac="02:42:ac:11:00:63", peer_netns_fd=descriptor,
        )])
        link = inner.link("eth0")
        assert link is not None
        inner.send([
            netlink.set_up(1), netlink.add_address(link.index, ip_interface("172.17.0.99/16")),
            netlink.set_up(link.index), netlink.default_route(link.index, ip_address("172.17.0.1")),
        ])
        inner.close()
    host.close()
    return lambda: asyncio.to_thread(netns.forget, path)


def _child() -> None:
    leave_the_host()
    with tempfile.TemporaryDirectory(prefix="net-bench-") as folder:
        try:
            print(json.dumps(asyncio.run(_measured(Path(folder)))))
        finally:
            netns.remove_folder(Path(folder) / "run" / "netns")
            release_shared(Path(folder) / "run")


if __name__ == "__main__":
    _child()
