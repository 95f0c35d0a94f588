"""Connections that this machine tracked of a cluster's hosts, forgotten when those are gone. Needs root.

An open connection is remembered for days; another cluster may get the same addresses sooner. By raw ctnetlink: layouts
from linux/netfilter/nfnetlink_conntrack.h. An agent forgets single flows within its own host in the same way.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102  # subsystem 1 = ctnetlink
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _TUPLE_IP = 1, 2, 1
_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.pack("=BBH", socket.AF_INET, 0, 0)
_NESTED = 0x8000


def forget_connections(subnet: str) -> int:
    """Forget every connection from or to an address of the subnet; how many. OSError for what the kernel refuses."""
    network = IPv4Network(subnet)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as channel:
        channel.bind((0, 0))
        channel.settimeout(10)
        found = [original for original, addresses in _dump(channel) if any(one in network for one in addresses)]
        for original in found:
            body = _NFGEN + struct.pack("=HH", 4 + len(original), _TUPLE_ORIG | _NESTED) + original
            channel.send(_HEADER.pack(_HEADER.size + len(body), _DELETE, _REQUEST | _ACK, 2, 0) + body)
            channel.recv(65536)  # one that ended by itself meanwhile (ENOENT) is what is wanted
        return len(found)


def _dump(channel: socket.socket) -> Iterator[tuple[bytes, list[IPv4Address]]]:
    """The tuple of each connection as it began, by which it is deleted, and the addresses of both directions."""
    channel.send(_HEADER.pack(_HEADER.size + len(_NFGEN), _GET, _REQUEST | _DUMP, 1, 0) + _NFGEN)
    while True:
        heard, offset = channel.recv(262144), 0
        while offset + _HEADER.size <= len(heard):
            length, kind, *_ = _HEADER.unpack_from(heard, offset)
            body = heard[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                if code == errno.EINVAL:
                    return  # a kernel without ctnetlink: what it tracks cannot be told, and ends in its own time
                raise OSError(code, "listing tracked connections")
            parts = dict(_attributes(body[len(_NFGEN) :]))
            tuples = [parts[key] for key in (_TUPLE_ORIG, _TUPLE_REPLY) if key in parts]
            addresses = [
                IPv4Address(value) for one in tuples
                for _, value in _attributes(dict(_attributes(one)).get(_TUPLE_IP, b"")) if len(value) == 4
            ]
            if tuples:
                yield tuples[0], addresses


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type without flags, payload) of each attribute."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
