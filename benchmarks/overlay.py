"""A network across hosts against a bare veth pair between the same containers, and how soon a moved task is reached.

Hosts and containers are network namespaces of a child process; the bridges, VXLAN devices and entries are the agent's.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from benchmarks.apart import leave_the_host
from benchmarks.figures import Figure, median
from benchmarks.traffic import STREAM_PORT, connects, stream
from swarmlet.errors import Internal
from swarmlet.ipam import mac_of
from swarmlet_agent.net import netns
from swarmlet_agent.net.netlink import Netlink
from swarmlet_agent.net.overlay.links import OverlayLinks, Remote
from swarmlet_agent.net.records import NetworkRecord

STREAMS, CONNECTS, MOVES, CONNECT_PORT = 7, 400, 20, 5002
HOSTS = {"n1": "192.0.2.1", "n2": "192.0.2.2", "n3": "192.0.2.3"}
#: Containers: their host and their address in the network. m2 and m3 are the same task, before and after its move.
MOVED = "10.9.0.13"
CONTAINERS = {"c1": ("n1", "10.9.0.11"), "c2": ("n2", "10.9.0.12"), "m2": ("n2", MOVED), "m3": ("n3", MOVED)}
BARE = {"c1": "10.99.0.1", "c2": "10.99.0.2"}
_LAB = Path(__file__).parent.parent / "tests/kernel/net"


def measure() -> list[Figure]:
    command = [sys.executable, "-m", "benchmarks.overlay"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    found = json.loads(result.stdout)
    return [
        # The throughput is to be at least 0.8 of the bare one.
        Figure("512 MiB across hosts", found["stream"], "s", found["stream bare"], "bare veth", 1 / 0.8, STREAMS),
        Figure("connecting across hosts", found["connect"], "us", found["connect bare"], "bare veth", None, CONNECTS),
        Figure("a moved task is reached at its new place", found["moved"], "ms", bound=100, n=MOVES),
    ]


def main() -> None:
    leave_the_host()
    sys.path.insert(0, str(_LAB))
    from net_spaces import Spaces  # type: ignore[import-not-found]

    from swarmlet_agent.runtime.shared import release_shared

    with tempfile.TemporaryDirectory(prefix="swl-bench-") as folder:
        spaces = Spaces(Path(folder) / "spaces")
        try:
            print(json.dumps(_measured(spaces)))
        finally:
            subprocess.run(["umount", "-l", *map(str, spaces.folder.iterdir())], check=False)
            release_shared(Path(folder))


def _measured(spaces: Any) -> dict[str, float]:
    links = _build(spaces)
    found: dict[str, list[float]] = {"stream": [], "stream bare": []}
    for _ in range(STREAMS):
        for name, host in (("stream", CONTAINERS["c2"][1]), ("stream bare", BARE["c2"])):
            found[name].append(stream(spaces, "c1", "c2", host))
    listener = spaces.open("c2", socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", CONNECT_PORT))
    listener.listen(2 * CONNECTS)
    connected = connects(spaces, "c1", {
        "connect": (CONTAINERS["c2"][1], CONNECT_PORT), "connect bare": (BARE["c2"], CONNECT_PORT),
    }, CONNECTS)  # fmt: skip
    listener.close()
    return {name: median(times) for name, times in found.items()} | connected | {"moved": _moved(spaces, links)}


def _build(spaces: Any) -> OverlayLinks:
    """The hosts on one switch, the containers on the network; the links of n1."""
    spaces.add("switch")
    spaces.ip("switch", "link add sw type bridge", "link set sw up")
    for family in ("ip", "ip6", "arp"):  # a switch of the site's network has no firewall
        with contextlib.suppress(Internal), netns.inside(spaces.path("switch")):  # where there is no br_netfilter
            netns.write_sysctl(f"net/bridge/bridge-nf-call-{family}tables", "0")
    own: dict[str, OverlayLinks] = {}
    for name, address in HOSTS.items():
        spaces.host_on_bridge("switch", "sw", name, f"{address}/24")
        record = _record(address)
        own[name] = spaces.inside(name, lambda: OverlayLinks(Netlink()))
        spaces.inside(name, lambda links=own[name], record=record: links.ensure(record))
        remotes = {
            place: Remote(place, mac_of(ip_address(place)), HOSTS[host])
            for host, place in CONTAINERS.values() if host != name
        }  # fmt: skip
        spaces.inside(name, lambda links=own[name], record=record, r=remotes: links.program(record, {}, r))
    for name, (host, address) in CONTAINERS.items():
        spaces.host_on_bridge(host, _record("").bridge, name, f"{address}/24")
        spaces.ip(name, f"link set eth0 mtu {_record('').mtu} address {mac_of(ip_address(address))}")
    spaces.wire("c1", "bare", "c2", "bare")
    for name, address in BARE.items():
        spaces.ip(name, f"addr add {address}/24 dev bare", "link set bare up")
    return own["n1"]


def _record(underlay: str) -> NetworkRecord:
    return NetworkRecord(
        id="b" * 25, name="bench", driver="overlay", bridge="ov-bench", subnet="10.9.0.0/24", gateway="10.9.0.1",
        vni=4097, underlay=underlay, mtu=1450,
    )  # fmt: skip


def _moved(spaces: Any, links: OverlayLinks) -> float:
    """Median milliseconds from the order to the first answer from the new place, datagrams every half millisecond."""
    stop = threading.Event()
    threads = [threading.Thread(target=_answer, args=(spaces, name, stop)) for name in ("m2", "m3")]
    for thread in threads:
        thread.start()
    channel = spaces.open("c1", socket.AF_INET, socket.SOCK_DGRAM)
    channel.settimeout(0.0005)
    record = _record(HOSTS["n1"])
    at = {name: Remote(MOVED, mac_of(ip_address(MOVED)), HOSTS[name]) for name in ("n2", "n3")}
    times = []
    try:
        for turn in range(MOVES + 1):
            old, new, place = (at["n2"], at["n3"], b"m3") if turn % 2 == 0 else (at["n3"], at["n2"], b"m2")
            began = time.perf_counter()
            spaces.inside("n1", lambda old=old, new=new: links.program(record, {MOVED: old}, {MOVED: new}))
            while time.perf_counter() - began < 5:
                channel.sendto(b"?", (MOVED, STREAM_PORT))
                try:
                    if channel.recv(16) == place:
                        break
                except (TimeoutError, BlockingIOError):
                    continue
            else:
                raise RuntimeError("the moved task was not reached within 5 s")
            if turn:  # the first one finds neighbours that nobody knows yet
                times.append((time.perf_counter() - began) * 1e3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        channel.close()
    return median(times)


def _answer(spaces: Any, name: str, stop: threading.Event) -> None:
    """Each datagram with the container's name."""
    channel = spaces.open(name, socket.AF_INET, socket.SOCK_DGRAM)
    channel.bind(("0.0.0.0", STREAM_PORT))
    channel.settimeout(0.2)
    with channel:
        while not stop.is_set():
            try:
                _, source = channel.recvfrom(16)
            except TimeoutError:
                continue
            channel.sendto(name.encode(), source)


if __name__ == "__main__":
    main()
