"""Namespaces that play hosts and containers, wired by `ip`, and traffic between them in both address families.

For tests of one part of the data plane without the agent around it. Runs inside the child process of `net_lab`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from net_talk import Line, answer_datagrams, connect_line, open_inside, serve_lines

from swarmlet_agent.net import netns

T = TypeVar("T")
#: How long an answer may take.
PATIENCE_S = 15.0


class Spaces:
    """Network namespaces by name, mounted in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def path(self, name: str) -> Path:
        return self.folder / name

    def add(self, name: str) -> Path:
        with netns.new_namespace(self.path(name)):
            # Link addresses at once: else the first packet to a neighbour waits for its end.
            netns.write_sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.ip(name, "link set lo up")
        return self.path(name)

    def ip(self, where: str, *commands: str) -> None:
        """Lines of `ip -batch`, in a namespace."""
        self.command(where, "ip", "-batch", "-", text="\n".join(commands) + "\n")

    def command(self, where: str, *words: str, text: str = "") -> str:
        result = subprocess.run(
            ["nsenter", f"--net={self.path(where)}", *words], input=text, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{words} in {where}: {result.stderr}"
        return result.stdout

    def as_of_an_earlier_release(self, where: str, table: str, former: str) -> None:
        """Call a table of both families as an earlier release did, in one transaction."""
        text = ""
        for family in ("ip", "ip6"):
            text += self.command(where, "nft", "list", "table", family, table).replace(table, former)
            text += f"delete table {family} {table}\n"
        self.command(where, "nft", "-f", "-", text=text)

    def syns_again(self, where: str) -> int:
        """How often a connection of this namespace was asked for again so far: the kernel does so a second after it got
        no answer of any kind, so that a refusal which it never needed was one at once."""
        names, values = (
            line.split() for line in self.command(where, "cat", "/proc/net/netstat").splitlines()
            if line.startswith("TcpExt:")
        )
        return int(dict(zip(names, values, strict=True))["TCPSynRetrans"])

    def ask_ip(self, where: str, *words: str) -> list[dict[str, Any]]:
        found = json.loads(self.command(where, "ip", "-j", *words) or "[]")
        return [entry for entry in found if entry]

    def wire(self, one: str, name: str, other: str, other_name: str) -> None:
        """A veth pair between two namespaces, both ends down."""
        descriptor = os.open(self.path(other), os.O_RDONLY)
        try:
            command = f"ip link add {name} type veth peer name {other_name} netns /proc/{os.getpid()}/fd/{descriptor}"
            self.command(one, *command.split())
        finally:
            os.close(descriptor)

    def host_on_bridge(self, host: str, bridge: str, name: str, *addresses: str, via: tuple[str, ...] = ()) -> None:
        """A new namespace whose eth0 hangs on a bridge of another."""
        self.add(name)
        self.wire(host, f"v{name[:14]}", name, "eth0")
        port = f"v{name[:14]}"
        self.ip(host, f"link set {port} master {bridge} up", f"link set {port} type bridge_slave hairpin on")
        self.ip(
            name, *(f"addr add {address} dev eth0 {'nodad' if ':' in address else ''}" for address in addresses),
            "link set eth0 up", *(f"route add default via {gateway}" for gateway in via),
        )

    def inside(self, where: str, work: Callable[[], T]) -> T:
        with netns.inside(self.path(where)):
            return work()

    def open(self, where: str, family: int, kind: int) -> socket.socket:
        return open_inside(self.path(where), family, kind)

    @asynccontextmanager
    async def serve(self, where: str, port: int, tag: str) -> AsyncIterator[None]:
        """TCP and UDP on a port of both families: every line or datagram is answered with "tag peer-address"."""
        listener = self.open(where, socket.AF_INET6, socket.SOCK_STREAM)
        datagrams = self.open(where, socket.AF_INET6, socket.SOCK_DGRAM)
        for channel in (listener, datagrams):
            channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            channel.bind(("::", port))
        async with serve_lines(listener, tag), answer_datagrams(datagrams, lambda peer: f"{tag} {peer}\n".encode()):
            yield

    async def connect(self, where: str, host: str, port: int, kind: int = socket.SOCK_STREAM) -> Line:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return await connect_line(self.open(where, family, kind), host, port, PATIENCE_S)

    async def ask(self, where: str, host: str, port: int, kind: int = socket.SOCK_STREAM) -> str:
        """One exchange with `serve`, on a connection of its own."""
        with await self.connect(where, host, port, kind) as line:
            return await line.ask()

    async def ask_until(self, ended: asyncio.Event, where: str, host: str, port: int, names: Collection[str]) -> int:
        """How often it was asked before that, each time answered by one of these."""
        count = 0
        while not ended.is_set():
            assert (await self.ask(where, host, port)).split()[0] in names
            count += 1
        return count
