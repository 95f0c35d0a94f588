"""Forgetting tracked UDP flows, by raw ctnetlink (layouts from linux/netfilter/nfnetlink_conntrack.h).

A UDP flow keeps the translation it began with for as long as packets come. When a published port appears or
goes, or the backend of a service, its flows are deleted so that the next packet is looked at anew.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from swarmlet_agent.net.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attr,
    attributes,
    nested,
    split_messages,
)

_NETLINK_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # subsystem 1 = ctnetlink
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_FILTER, _CTA_IP_V4_SRC = 1, 2, 25, 1
#: Which parts of a tuple a filter compares (nf_conntrack_netlink.c: CTA_FILTER_F_…).
_BY_SOURCE, _BY_PROTOCOL = 1 << 0, 1 << 3
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


def cut_udp(channel: socket.socket, targets: Iterable[bytes], *, filtered: bool = True) -> None:
    """Delete UDP flows that are answered by one of these addresses (packed).

    channel: a netfilter socket of the namespace, without answers under way. filtered: let the kernel pick them (since
    Linux 6.11), which takes 0.5 ms where a list of all flows takes 20: its table is one for all namespaces. Of IPv6
    addresses it picks all flows but the right ones (6.18: ctnetlink_filter_match_tuple), so these are always listed.
    """
    left = frozenset(targets)
    for target in sorted(target for target in left if len(target) == 4) if filtered else ():
        if not _flush(channel, target):
            break
        left -= {target}
    if left:
        families = {socket.AF_INET if len(target) == 4 else socket.AF_INET6 for target in left}
        _forget(channel, lambda flow: flow.target in left and flow.asked != flow.target, families)


def _flush(channel: socket.socket, target: bytes) -> bool:
    """False if the kernel cannot pick flows to delete. target: IPv4."""
    body = _NFGEN.pack(socket.AF_INET, 0, 0)
    body += nested(_CTA_FILTER, attr(1, struct.pack("=I", 0)), attr(2, struct.pack("=I", _BY_SOURCE | _BY_PROTOCOL)))
    body += nested(
        _CTA_TUPLE_REPLY,
        nested(_CTA_TUPLE_IP, attr(_CTA_IP_V4_SRC, target)),
        nested(_CTA_TUPLE_PROTO, attr(_CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))),
    )
    channel.send(_HEADER.pack(_HEADER.size + len(body), _DELETE, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
    for kind, _, _, answer in split_messages(channel.recv(65536)):
        if kind == NLMSG_ERROR and (code := -struct.unpack_from("=i", answer)[0]):
            if code in (errno.EINVAL, errno.EOPNOTSUPP):
                return False
            raise OSError(code, "forgetting tracked connections")
    return True


def _forget(
    channel: socket.socket, matches: Callable[[_Flow], bool],
    families: Iterable[int] = (socket.AF_INET, socket.AF_INET6),
) -> int:
    found = [
        flow for family in families for flow in _dump(channel, family)
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
