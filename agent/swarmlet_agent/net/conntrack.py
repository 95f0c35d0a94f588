"""Forgetting tracked UDP flows, by raw ctnetlink (layouts from linux/netfilter/nfnetlink_conntrack.h).

A UDP flow keeps the translation it began with for as long as packets come. When a published port appears or
goes, its flows are deleted so that the next packet is looked at anew.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from swarmlet_agent.net.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attributes

_NETLINK_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # subsystem 1 = ctnetlink
_CTA_TUPLE_ORIG, _CTA_TUPLE_PROTO, _CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 2, 1, 3
_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.Struct("=BBH")
_NESTED = 0x8000


def flush_udp(ports: frozenset[int]) -> int:
    """Delete every UDP flow of this namespace whose first packet went to one of these ports; how many.

    A host that tracks no connections has nothing to forget. OSError for what the kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as channel:
        channel.bind((0, 0))
        channel.settimeout(10)
        found = [
            (family, original) for family in (socket.AF_INET, socket.AF_INET6)
            for original in _dump(channel, family) if _goes_to(original, ports)
        ]
        for sequence, (family, original) in enumerate(found, start=2):
            body = _NFGEN.pack(family, 0, 0)
            body += struct.pack("=HH", 4 + len(original), _CTA_TUPLE_ORIG | _NESTED) + original
            head = _HEADER.pack(_HEADER.size + len(body), _DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)
            channel.send(head + body)
            # A flow that ended by itself meanwhile (ENOENT) is what is wanted.
            channel.recv(65536)
        return len(found)


def _dump(channel: socket.socket, family: int) -> Iterator[bytes]:
    """The original-direction tuple (its attributes, as bytes) of every flow."""
    head = _HEADER.pack(_HEADER.size + _NFGEN.size, _GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    channel.send(head + _NFGEN.pack(family, 0, 0))
    while True:
        data, offset = channel.recv(262144), 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
                raise OSError(code, "listing tracked connections")
            body = data[offset + _HEADER.size : offset + length]
            for number, payload in attributes(body, _NFGEN.size):
                if number == _CTA_TUPLE_ORIG:
                    yield payload
            offset += (length + 3) & ~3


def _goes_to(original: bytes, ports: frozenset[int]) -> bool:
    for number, payload in attributes(original, 0):
        if number == _CTA_TUPLE_PROTO:
            found = dict(attributes(payload, 0))
            return (
                found.get(_CTA_PROTO_NUM) == bytes([socket.IPPROTO_UDP])
                and int.from_bytes(found.get(_CTA_PROTO_DST_PORT, b"\0\0"), "big") in ports
            )
    return False
