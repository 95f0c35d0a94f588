"""Packets of an open TCP connection that connection tracking takes for invalid: they lie far beyond the window."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

_REPAIR, _QUEUE, _SEQUENCE = 19, 20, 21  # linux/tcp.h: TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ
_RECEIVE, _SEND = 1, 2
_ACK = 0x10
_BEYOND = 1 << 30


def stray_segment(line: socket.socket) -> bytes:
    """A TCP segment of the connection: right ports and acknowledgement, one byte in a wrong place. To be sent by a raw
    socket of the same family."""
    own, peer = line.getsockname(), line.getpeername()
    sent, received = _sequences(line)
    source, target = ip_address(own[0]).packed, ip_address(peer[0]).packed
    header = struct.pack(
        "!HHIIBBHHH", own[1], peer[1], (sent + _BEYOND) % (1 << 32), received, 5 << 4, _ACK, 64, 0, 0
    )
    segment = header + b"!"
    pseudo = source + target + struct.pack("!IxxxB", len(segment), socket.IPPROTO_TCP)
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
