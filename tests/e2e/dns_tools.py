"""Asking a container's resolver as its processes would, and a server outside that it may ask."""

from __future__ import annotations

import contextlib
import random
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from e2e_cluster import View

from swarmlet_agent.net import netns

RESOLVER = ("127.0.0.11", 53)
KINDS = {"A": 1, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "OPT": 41}
OK, SERVFAIL, NXDOMAIN = 0, 2, 3
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Reply:
    """code: the response code; records: data of the asked type, as text; extra: (name, data) of addresses beside."""

    code: int
    records: frozenset[str]
    extra: frozenset[tuple[str, str]]
    truncated: bool
    edns: bool

    @property
    def empty(self) -> bool:
        """The name exists, and has no such record."""
        return self.code == OK and not self.records


def ask(node: View, ident: str, name: str, kind: str = "A", *, tcp: bool = False, edns: int = 0) -> Reply:
    """One question from inside a container. edns: the size the asker takes, by an OPT record."""
    pid = node("inspect", "-f", "{{.State.Pid}}", ident)
    number = random.randrange(65536)
    option = b"\0" + struct.pack(">HHIH", KINDS["OPT"], edns, 0, 0) if edns else b""
    data = question(name, KINDS[kind], number, extra=option)
    with netns.inside(Path(f"/proc/{pid}/ns/net")):
        channel = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with channel:
        channel.settimeout(TIMEOUT_S)
        channel.connect(RESOLVER)
        channel.sendall(len(data).to_bytes(2, "big") + data if tcp else data)
        answer = _framed(channel) if tcp else channel.recv(65535)
    return read(answer, number)


def question(name: str, kind: int, number: int, *, extra: bytes = b"") -> bytes:
    head = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, bool(extra))
    return head + wire(name) + struct.pack(">HH", kind, 1) + extra


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def reverse(address: str) -> str:
    return ".".join(reversed(address.split("."))) + ".in-addr.arpa"


def read(data: bytes, number: int) -> Reply:
    """AssertionError for what does not answer question `number`."""
    ident, flags, questions, *counts = struct.unpack_from(">HHHHHH", data)
    assert ident == number and flags & 0x8000 and questions == 1
    asked, at = _name(data, 12)
    kind = int(struct.unpack_from(">H", data, at)[0])
    at += 4
    records: set[str] = set()
    extra: set[tuple[str, str]] = set()
    edns = False
    for turn in range(sum(counts)):
        name, at = _name(data, at)
        its_kind, _, _, size = struct.unpack_from(">HHIH", data, at)
        at += 10
        if its_kind == KINDS["OPT"]:
            edns = True
        elif turn < counts[0]:
            assert (name.lower(), its_kind) == (asked.lower(), kind)
            records.add(_text(data, at, size, its_kind))
        else:
            extra.add((name, _text(data, at, size, its_kind)))
        at += size
    assert at == len(data)
    return Reply(flags & 15, frozenset(records), frozenset(extra), bool(flags & 0x0200), edns)


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name, and where what follows begins; pointers are followed backwards only."""
    labels: list[str] = []
    end = 0
    while (length := data[at]) != 0:
        if length >= 0xC0:
            end = end or at + 2
            target = struct.unpack_from(">H", data, at)[0] & 0x3FFF
            assert target < at
            at = target
            continue
        labels.append(data[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), end or at + 1


def _text(data: bytes, at: int, size: int, kind: int) -> str:
    if kind == KINDS["A"]:
        return socket.inet_ntoa(data[at : at + size])
    if kind == KINDS["AAAA"]:
        return socket.inet_ntop(socket.AF_INET6, data[at : at + size])
    if kind == KINDS["PTR"]:
        return _name(data, at)[0]
    if kind == KINDS["SRV"]:
        return f"{struct.unpack_from('>H', data, at + 4)[0]} {_name(data, at + 6)[0]}"
    return data[at : at + size].decode("latin-1")


def _framed(channel: socket.socket) -> bytes:
    with channel.makefile("rb") as stream:
        return stream.read(int.from_bytes(stream.read(2), "big"))


@dataclass
class Outside:
    """What the server outside knows: name -> addresses; any number fits over TCP only. heard: (protocol, name, had an
    OPT record)."""

    zone: dict[str, list[str]]
    heard: list[tuple[str, str, bool]] = field(default_factory=list)

    def answer(self, data: bytes, protocol: str) -> bytes:
        name, at = _name(data, 12)
        kind = struct.unpack_from(">H", data, at)[0]
        self.heard.append((protocol, name.lower(), bool(struct.unpack_from(">H", data, 10)[0])))
        known = self.zone.get(name.lower())
        found = [socket.inet_aton(address) for address in known or ()] if kind == KINDS["A"] else []
        flags = 0x8180 | (0 if known is not None else NXDOMAIN)
        if protocol == "udp" and len(found) > 20:
            flags, found = flags | 0x0200, []
        body = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 5, len(rdata)) + rdata for rdata in found)
        return data[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + data[12 : at + 4] + body


@contextlib.contextmanager
def outside(address: str, zone: dict[str, list[str]]) -> Iterator[Outside]:
    """A DNS server on this address, port 53."""
    known = Outside(zone)

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, channel = self.request
            channel.sendto(known.answer(data, "udp"), self.client_address)

    class Tcp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            said = known.answer(_framed(self.request), "tcp")
            self.request.sendall(len(said).to_bytes(2, "big") + said)

    socketserver.TCPServer.allow_reuse_address = True
    with socketserver.UDPServer((address, 53), Udp) as udp, socketserver.TCPServer((address, 53), Tcp) as tcp:
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in (udp, tcp)]
        for thread in threads:
            thread.start()
        try:
            yield known
        finally:
            for server, thread in zip((udp, tcp), threads, strict=True):
                server.shutdown()
                thread.join()
