"""Packets of an open TCP connection that connection tracking takes for invalid: they lie far beyond the window."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

_REPAIR, _QUEUE, _SEQUENCE = 19, 20, 21  # linux/tcp.h: TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ
_RECEIVE, _SEND = 1, 2
_ACK = 0x10
_BEYOND = 1 << 30


Ends = tuple[str, int]


def stray_segment(line: socket.socket) -> bytes:
    """A TCP segment of the client: right ports and acknowledgement, one byte in a wrong place. To be sent by a raw
    socket of the same family."""
    sent, received = _sequences(line)
    return _segment(line.getsockname()[:2], line.getpeername()[:2], sent, received)


def stray_answer(line: socket.socket, backend: Ends) -> bytes:
    """As `stray_segment`, of the backend that the client's connection was led to."""
    sent, received = _sequences(line)
    return _segment(backend, line.getsockname()[:2], received, sent)


def _segment(source: Ends, target: Ends, sent: int, received: int) -> bytes:
    header = struct.pack(
        "!HHIIBBHHH", source[1], target[1], (sent + _BEYOND) % (1 << 32), received, 5 << 4, _ACK, 64, 0, 0
    )
    segment = header + b"!"
    ends = ip_address(source[0]).packed + ip_address(target[0]).packed
    pseudo = ends + struct.pack("!IxxxB", len(segment), socket.IPPROTO_TCP)
    return segment[:16] + struct.pack("!H", _checksum(pseudo + segment)) + segment[18:]


def _sequences(line: socket.socket) -> tuple[int, int]:
    """What is sent next, and what is expected next."""
    line.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
    try:
        found = []
        for queue in (_SEND, _RECEIVE):
            line.setsockopt(socket.IPPROTO_TCP, _QUEUE, queue)
            found.append(line.getsockopt(socket.IPPROTO_TCP, _SEQUENCE) % (1 << 32))
        return found[0], found[1]
    finally:
        line.setsockopt(socket.IPPROTO_TCP, _REPAIR, -1)  # off, without a window probe


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
