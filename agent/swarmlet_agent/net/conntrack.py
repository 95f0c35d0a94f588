"""Forgetting tracked UDP flows, by raw ctnetlink (layouts from linux/netfilter/nfnetlink_conntrack.h).

A UDP flow keeps the translation it began with for as long as packets come. When a published port appears or
goes, or the backend of a service, its flows are deleted so that the next packet is looked at anew.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from swarmlet_agent.net.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    split_messages,
)

_NETLINK_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # subsystem 1 = ctnetlink
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY = 1, 2
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO, _CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 2, 1, 3
_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.Struct("=BBH")
_NESTED = 0x8000


@dataclass(frozen=True, slots=True)
class _Flow:
    """A tracked flow. original: its tuple as it came, by which it is deleted. target: who answers."""

    family: int
    original: bytes
    protocol: int
    port: int
    asked: bytes
    target: bytes


def flush_udp(ports: frozenset[int]) -> int:
    """Delete every UDP flow of this namespace whose first packet went to one of these ports; how many.

    A host that tracks no connections has nothing to forget. OSError for what the kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as channel:
        channel.bind((0, 0))
        channel.settimeout(10)
        return _forget(channel, lambda flow: flow.port in ports)


def cut_udp(channel: socket.socket, targets: frozenset[bytes]) -> int:
    """Delete UDP flows that are translated to one of these addresses (packed); how many.

    channel: a netfilter socket of the namespace, without answers under way.
    """
    return _forget(channel, lambda flow: flow.target in targets and flow.asked != flow.target)


def _forget(channel: socket.socket, matches: Callable[[_Flow], bool]) -> int:
    found = [
        flow for family in (socket.AF_INET, socket.AF_INET6) for flow in _dump(channel, family)
        if flow.protocol == socket.IPPROTO_UDP and matches(flow)
    ]
    for sequence, flow in enumerate(found, start=2):
        body = _NFGEN.pack(flow.family, 0, 0)
        body += struct.pack("=HH", 4 + len(flow.original), _CTA_TUPLE_ORIG | _NESTED) + flow.original
        head = _HEADER.pack(_HEADER.size + len(body), _DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)
        channel.send(head + body)
        # A flow that ended by itself meanwhile (ENOENT) is what is wanted.
        channel.recv(65536)
    return len(found)


def _dump(channel: socket.socket, family: int) -> Iterator[_Flow]:
    """Every flow of one family."""
    head = _HEADER.pack(_HEADER.size + _NFGEN.size, _GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    channel.send(head + _NFGEN.pack(family, 0, 0))
    while True:
        for kind, _, _, body in split_messages(channel.recv(262144)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "listing tracked connections")
            tuples = dict(attributes(body, _NFGEN.size))
            if _CTA_TUPLE_ORIG in tuples and _CTA_TUPLE_REPLY in tuples:
                yield _flow(family, tuples[_CTA_TUPLE_ORIG], tuples[_CTA_TUPLE_REPLY])


def _flow(family: int, original: bytes, reply: bytes) -> _Flow:
    first, answer = dict(attributes(original, 0)), dict(attributes(reply, 0))
    ports = dict(attributes(first.get(_CTA_TUPLE_PROTO, b""), 0))
    source, destination = (1, 2) if family == socket.AF_INET else (3, 4)  # CTA_IP_V4_SRC, …
    return _Flow(
        family, original,
        protocol=int.from_bytes(ports.get(_CTA_PROTO_NUM, b""), "big"),
        port=int.from_bytes(ports.get(_CTA_PROTO_DST_PORT, b""), "big"),
        asked=dict(attributes(first.get(_CTA_TUPLE_IP, b""), 0)).get(destination, b""),
        target=dict(attributes(answer.get(_CTA_TUPLE_IP, b""), 0)).get(source, b""),
    )
