"""A network of one's own for a test: the scenario runs in a child process in new network and mount namespaces.

Containers are namespaces without processes: a socket made inside one stays there, so one event loop plays
every part. Nothing of the machine's own network is touched, and all of it is gone when the child ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import importlib
import inspect
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path

import pytest
from net_talk import Line, answer_datagrams, connect_line, open_inside, serve_lines

from swarmlet.model.ids import new_hex_id
from swarmlet_agent.journal import Journal
from swarmlet_agent.net import netlink, netns
from swarmlet_agent.net.bridge import BridgeNetworks
from swarmlet_agent.net.netlink import Netlink
from swarmlet_agent.net.types import Attachment, NetworkWish
from swarmlet_agent.runtime.shared import release_shared

OUTSIDE, HOST = "203.0.113.9", "203.0.113.1"
OUTSIDE6, HOST6 = "2001:db8::9", "2001:db8::1"
#: How much slower than a machine of one's own this one is: an emulated processor is.
SLOWNESS = float(os.environ.get("SWARMLET_SLOWNESS", "1"))
#: How long an answer may take that is expected …
PATIENCE_S = 15 * SLOWNESS
#: … and for how long one is waited for where none is expected.
SILENCE_S = 1.5 * SLOWNESS
#: Of a whole scenario.
SCENARIO_S = 200 * SLOWNESS
#: Gets the lab, then the test's parameters: strings.
Scenario = Callable[..., Awaitable[None]]


def in_own_network(scenario: Scenario) -> Callable[..., None]:
    """A test that runs `scenario` in a child process with its own network, and fails with the child's words."""

    @pytest.mark.timeout(SCENARIO_S + 40)
    @functools.wraps(scenario)
    def test(**parameters: str) -> None:
        words = [f"{name}={value}" for name, value in parameters.items()]
        command = [sys.executable, "-W", "error", __file__, scenario.__module__, scenario.__name__, *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SCENARIO_S + 20, check=False)
        assert result.returncode == 0, f"{scenario.__name__} failed in its own network:\n{result.stdout}{result.stderr}"

    test.scenario = scenario  # type: ignore[attr-defined]
    # pytest looks for fixtures and parameters there: the lab is neither.
    signature = inspect.signature(scenario)
    test.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])  # type: ignore[attr-defined]
    return test


class Lab:
    """A host with a default route to an outside host, and the networks under test on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outside = root / "outside"
        self.events: list[tuple[str, str]] = []
        self.networks = self.make()
        self._journal: Journal | None = None

    def make(self, **options: object) -> BridgeNetworks:
        self._journal = Journal(self.root / "journal.sqlite")
        (self.root / "resolv.conf").write_text(f"nameserver {OUTSIDE}\nsearch lab.example\n")
        (self.root / "hosts").write_text("127.0.0.1 localhost\n")
        settings: dict[str, object] = {
            "host_resolv_conf": self.root / "resolv.conf",
            "host_hosts": self.root / "hosts",
            "on_event": lambda action, network, attributes: self.events.append((action, network.name)),
            **options,
        }
        return BridgeNetworks(self.root / "run", self.root / "data", self._journal, **settings)  # type: ignore[arg-type]

    async def close(self) -> None:
        await self.networks.close()
        if self._journal is not None:
            self._journal.close()

    async def restart(self) -> None:
        """A new object on the same journal and kernel, as after the agent's end."""
        await self.close()
        self.networks = self.make()
        await self.networks.start()

    async def attach(self, name: str, mode: str = "bridge", **more: object) -> tuple[str, Attachment]:
        ident = new_hex_id()
        wish = NetworkWish(container_id=ident, container_name=name, hostname=name, mode=mode, **more)  # type: ignore[arg-type]
        return ident, await self.networks.attach(wish)

    # Sockets in namespaces

    async def socket(self, where: Path | str | None, kind: int, address: str = "") -> socket.socket:
        """address: one of the family that the socket is for."""
        return await asyncio.to_thread(open_inside, where, socket.AF_INET6 if ":" in address else socket.AF_INET, kind)

    @asynccontextmanager
    async def serve(
        self, where: Path | str | None, port: int, tag: str, address: str = "0.0.0.0"
    ) -> AsyncIterator[None]:
        """A TCP server that answers every line with "tag peer-address"."""
        listener = await self.socket(where, socket.SOCK_STREAM, address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        async with serve_lines(listener, tag):
            yield

    async def connect(self, where: Path | str | None, host: str, port: int) -> Line:
        return await connect_line(await self.socket(where, socket.SOCK_STREAM, host), host, port, PATIENCE_S)

    async def ask(self, where: Path | str | None, host: str, port: int) -> str:
        """One exchange with `serve`: "tag peer". OSError or TimeoutError where nobody answers."""
        with await self.connect(where, host, port) as line:
            return await line.ask()

    async def cut_off(self, where: Path | str | None, host: str, port: int) -> bool:
        """True if no connection comes about."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self.ask(where, host, port)
        except (OSError, TimeoutError):
            return True
        return False

    @asynccontextmanager
    async def echo_udp(self, where: Path | str, port: int, tag: str, address: str = "0.0.0.0") -> AsyncIterator[None]:
        channel = await self.socket(where, socket.SOCK_DGRAM, address)
        channel.bind((address, port))
        async with answer_datagrams(channel, lambda peer: tag.encode()):
            yield

    async def ask_udp(
        self, where: Path | str | None, host: str, port: int, channel: socket.socket | None = None, data: bytes = b"?"
    ) -> bytes:
        loop, own = asyncio.get_running_loop(), channel is None
        channel = channel or await self.socket(where, socket.SOCK_DGRAM, host)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await loop.sock_sendto(channel, data, (host, port))
                return (await loop.sock_recvfrom(channel, 4096))[0]
        finally:
            if own:
                channel.close()

    def links(self) -> set[str]:
        host = Netlink()
        try:
            return {link.name for link in host.links()}
        finally:
            host.close()


def _build_world(lab: Lab) -> None:
    """Loopback up, and a veth pair to the outside host, which has no route to container networks."""
    host = Netlink()
    with netns.new_namespace(lab.outside) as descriptor:
        inner = Netlink()
        inner.send([netlink.set_up(1)])
        bridge = netlink.new_bridge("uplink", mac="02:42:cb:00:71:01", mtu=1500, group=0)
        host.send([netlink.set_up(1), bridge])
        index = host.link("uplink").index  # type: ignore[union-attr]
        host.send(
            [
                netlink.add_address(index, IPv4Interface(f"{HOST}/24")),
                netlink.add_address(index, IPv6Interface(f"{HOST6}/64")),
                netlink.set_up(index),
                netlink.new_veth(
                    "out0",
                    bridge=index,
                    mtu=1500,
                    group=0,
                    peer_name="eth0",
                    peer_mac="02:42:cb:00:71:09",
                    peer_netns_fd=descriptor,
                ),
                netlink.default_route(index, IPv4Address(OUTSIDE)),
            ]
        )
        eth0 = inner.link("eth0").index  # type: ignore[union-attr]
        inner.send(
            [
                netlink.add_address(eth0, IPv4Interface(f"{OUTSIDE}/24")),
                netlink.add_address(eth0, IPv6Interface(f"{OUTSIDE6}/64")),
                netlink.set_up(eth0),
            ]
        )
        inner.close()
    host.close()


async def _run(scenario: Scenario, root: Path, parameters: dict[str, str]) -> None:
    lab = Lab(root)
    _build_world(lab)
    async with AsyncExitStack() as stack:
        await lab.networks.start()
        stack.push_async_callback(lab.close)
        async with asyncio.timeout(SCENARIO_S):
            await scenario(lab, **parameters)


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000 | 0x00020000):  # CLONE_NEWNET, CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(b"none", b"/", None, 16384 | (1 << 18), None):  # MS_REC, MS_PRIVATE
        raise OSError(ctypes.get_errno(), "mount")
    sys.path.insert(0, str(Path(__file__).parent))
    parameters = dict(word.split("=", 1) for word in sys.argv[3:])
    scenario = getattr(importlib.import_module(sys.argv[1]), sys.argv[2]).scenario
    with tempfile.TemporaryDirectory(prefix="swl-net-") as folder:
        try:
            asyncio.run(_run(scenario, Path(folder), parameters))
        finally:
            netns.remove_folder(Path(folder) / "run" / "netns")
            release_shared(Path(folder) / "run")
            netns.forget(Path(folder) / "outside")


if __name__ == "__main__":
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    main()
