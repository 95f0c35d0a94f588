"""A large network on one node: programmed from nothing, changed, and its names asked for. No container runs.

In network and mount namespaces of its own; whoever asks is a process of its own in the container's namespace. What
else the machine does falsifies the clock, so programming and queries are counted in processor time, too. The queries'
peer is the same run's bare echo: datagrams sent back by the same kind of socket and loop without a look at them.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec.structs import replace

from benchmarks.apart import leave_the_host
from benchmarks.figures import Figure, median
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet.wire.networking import EndpointInfo, NetworkInfo, Networking, ServiceInfo, ServicePort
from swarmlet_agent.journal import Journal
from swarmlet_agent.net import dns_codec, netns
from swarmlet_agent.net.bridge import BridgeNetworks
from swarmlet_agent.net.types import NetworkWish
from swarmlet_agent.runtime.shared import release_shared

SERVICES, TASKS, CHANGES, QUERIES, ROUNDS, WINDOW = 1000, 10, 100, 20_000, 5, 32
#: Queries a second that one node must answer.
LEAST = 20_000
NETWORK, HERE = "n" * 25, "192.0.2.1"


def measure() -> list[Figure]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.names"], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    size = f"{SERVICES} x {TASKS}"
    figures = [
        Figure(f"fresh node, network of {size}: programmed", found["fresh cpu"], "ms of processor", bound=1000),
        Figure("   by the clock", found["fresh"], "ms"),
        Figure("a task has moved: programmed", found["moved"], "ms", bound=100, n=CHANGES),
        Figure("a task has ended: programmed", found["ended"], "ms", bound=100, n=CHANGES),
    ]
    for name, key in (
        ("one name again and again", "one"), (f"{SERVICES} names in turn", "many"),
        ("the same while tasks come and go", "changing"),
    ):  # fmt: skip
        cost, count = found[f"{key} cpu"], QUERIES * ROUNDS
        figures += [
            Figure(f"DNS query: {name}", cost, "us", found["echo cpu"], "bare echo", n=count),
            Figure("   the least rate, to that of one core", LEAST * cost / 1e6, "", bound=1, n=count),
            Figure("   answers by the clock", found[f"{key} rate"], "/s", found["echo rate"], "bare echo", n=count),
        ]
    return figures


def network_of(services: int, tasks: int) -> Networking:
    """One network with so many services of so many tasks each, all but the first one elsewhere."""
    info = NetworkInfo(id=NETWORK, name="app", subnet="10.0.0.0/16", gateway="10.0.0.1", vni=4097, mtu=1450)
    endpoints = tuple(
        endpoint(service, task, HERE if service == task == 0 else f"192.0.2.{2 + (service + task) % 200}")
        for service in range(services) for task in range(tasks)
    )  # fmt: skip
    known = tuple(
        ServiceInfo(
            network_id=NETWORK, id=f"s{number}", name=f"web{number}", ports=(ServicePort(name="http", port=80),),
            vip=f"10.0.{200 + number // 250}.{number % 250 + 1}",
        )
        for number in range(services)
    )  # fmt: skip
    return Networking(full=True, networks=(info,), endpoints=endpoints, services=known)


def endpoint(service: int, task: int, node: str) -> EndpointInfo:
    number = service * TASKS + task
    return EndpointInfo(
        network_id=NETWORK, id=f"t{number}", address=f"10.0.{1 + number // 250}.{number % 250 + 1}", node_id=node,
        node_addr=node, names=(f"web{service}.{task + 1}.t{number}",), service_id=f"s{service}", slot=task + 1,
        serving=True,
    )  # fmt: skip


async def _measured(folder: Path) -> dict[str, float]:
    journal = Journal(folder / "journal.sqlite")
    networks = BridgeNetworks(folder / "run", folder / "data", journal)
    await networks.start()
    found: dict[str, float] = {}
    try:
        tell = functools.partial(networks.cluster.update, node_id="here", underlay=HERE)
        ident = new_hex_id()
        wish = NetworkWish(
            container_id=ident, container_name="asker", hostname="asker", mode="app", of_task=True,
            endpoints={"app": EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.0.1.1"))},
        )  # fmt: skip
        everything = network_of(SERVICES, TASKS)
        began, used = time.perf_counter(), time.process_time()
        await tell(everything)
        await networks.attach(wish)
        found["fresh"], found["fresh cpu"] = (time.perf_counter() - began) * 1e3, (time.process_time() - used) * 1e3
        times: dict[str, list[float]] = {"moved": [], "ended": []}
        for turn in range(CHANGES):
            for name, change in (
                ("moved", Networking(endpoints=(endpoint(turn, 1, f"192.0.2.{202 + turn % 2}"),))),
                ("ended", Networking(gone_endpoints=((NETWORK, f"t{turn * TASKS + 2}"),))),
            ):
                began = time.perf_counter()
                await tell(change)
                times[name].append((time.perf_counter() - began) * 1e3)
        found |= {name: median(values) for name, values in times.items()}
        found |= await _queries(folder / "run" / "netns" / ident, tell)
        return found
    finally:
        await tell(Networking(full=True))
        await networks.detach(ident)
        await networks.teardown()
        await networks.close()
        journal.close()


async def _queries(space: Path, tell: Callable[[Networking], Awaitable[None]]) -> dict[str, float]:
    """Medians over the rounds, the kinds in turns."""
    await tell(Networking(endpoints=tuple(endpoint(turn, 2, HERE) for turn in range(CHANGES))))
    with netns.inside(space):
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    echo.bind(("127.0.0.1", 5353))
    asyncio.get_running_loop().add_reader(echo.fileno(), _echo, echo)
    cpu: dict[str, list[float]] = {"echo": [], "one": [], "many": [], "changing": []}
    rate: dict[str, list[float]] = {name: [] for name in cpu}
    try:
        for _ in range(ROUNDS):
            for name in cpu:
                changing = asyncio.create_task(_change(tell)) if name == "changing" else None
                asker = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "benchmarks.names", "ask", str(space), name, stdout=subprocess.PIPE,
                    stdin=subprocess.PIPE,
                )  # fmt: skip
                assert asker.stdout is not None and asker.stdin is not None
                await asker.stdout.readline()  # it is ready
                before = time.process_time()
                asker.stdin.write(b"\n")
                took = float(await asker.stdout.readline())
                cpu[name].append((time.process_time() - before) * 1e6 / QUERIES)
                rate[name].append(QUERIES / took)
                await asker.wait()
                if changing is not None:
                    changing.cancel()
    finally:
        asyncio.get_running_loop().remove_reader(echo.fileno())
        echo.close()
    return {f"{name} cpu": median(cpu[name]) for name in cpu} | {f"{name} rate": median(rate[name]) for name in rate}


def _echo(channel: socket.socket) -> None:
    for _ in range(WINDOW):
        try:
            data, source = channel.recvfrom(4096)
        except BlockingIOError:
            return
        channel.sendto(data, source)


async def _change(tell: Callable[[Networking], Awaitable[None]]) -> None:
    """A hundred times a second a task comes or goes."""
    for turn in itertools.count():
        await asyncio.sleep(0.01)
        await tell(Networking(endpoints=(replace(endpoint(turn % SERVICES, 3, HERE), serving=bool(turn % 2)),)))


def _ask(space: str, name: str) -> None:
    """In the container's namespace: QUERIES questions, WINDOW of them under way; prints the seconds it took."""
    with netns.inside(Path(space)):
        channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    channel.connect(("127.0.0.1", 5353) if name == "echo" else ("127.0.0.11", 53))
    channel.settimeout(10)
    head = struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0)
    names = [f"web{number}" for number in range(SERVICES if name in ("many", "changing") else 1)]
    questions = [head + dns_codec.encode_name(text) + struct.pack(">HH", dns_codec.A, dns_codec.IN) for text in names]
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for number in range(QUERIES + WINDOW):
        if number >= WINDOW:
            answer = channel.recv(512)
            assert name == "echo" or (answer[3] & 15, answer[7]) == (0, 1)
        if number < QUERIES:
            channel.send((number & 0xFFFF).to_bytes(2, "big") + questions[number % len(questions)])
    print(time.perf_counter() - began, flush=True)


def _child() -> None:
    leave_the_host()
    with tempfile.TemporaryDirectory(prefix="names-bench-") as folder:
        try:
            print(json.dumps(asyncio.run(_measured(Path(folder)))))
        finally:
            netns.remove_folder(Path(folder) / "run" / "netns")
            release_shared(Path(folder) / "run")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        _ask(*sys.argv[2:])
    else:
        _child()
