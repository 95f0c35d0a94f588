"""DNS messages (RFC 1035, EDNS presence of RFC 6891): just what the embedded server reads and writes. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

A, PTR, AAAA, SRV, OPT, ANY, IN = 1, 12, 28, 33, 41, 255, 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
#: Seconds; short, because containers come and go.
TTL_S = 5
_HEADER = struct.Struct(">HHHHHH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_POINTER_TO_QUESTION = 0xC00C
_UDP_DEFAULT = 512
_OWN_UDP_SIZE = 1232
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Query:
    """One question. name: lower case, no final dot. udp_size: what the asker takes; edns: it sent an OPT record."""

    ident: int
    flags: int
    name: str
    kind: int
    klass: int
    question: bytes
    udp_size: int
    edns: bool

    @property
    def opcode(self) -> int:
        return (self.flags >> 11) & 15


class Malformed(ValueError):
    """Not a query with one question."""


def parse(data: bytes) -> Query:
    """Malformed for anything but a query with exactly one question."""
    if len(data) < _HEADER.size:
        raise Malformed("shorter than a header")
    ident, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _QR or questions != 1:
        raise Malformed("not a query with one question")
    name, offset = _name(data, _HEADER.size)
    if offset + 4 > len(data):
        raise Malformed("question cut short")
    kind, klass = struct.unpack_from(">HH", data, offset)
    question = data[_HEADER.size : offset + 4]
    size, edns = _UDP_DEFAULT, False
    # An OPT record of a plain query comes first and has the root's empty name.
    at = offset + 4
    if not answers and not authorities and additional and data[at : at + 1] == b"\0" and at + 11 <= len(data):
        rr_kind, rr_size = struct.unpack_from(">HH", data, at + 1)
        if rr_kind == OPT:
            size, edns = max(rr_size, _UDP_DEFAULT), True
    return Query(ident, flags, name, kind, klass, question, size, edns)


def _name(data: bytes, offset: int) -> tuple[str, int]:
    """An uncompressed name, lower case, and the offset behind it. Bytes outside ASCII stay as Latin-1."""
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data) or offset - start > _MAX_NAME:
            raise Malformed("name cut short")
        length = data[offset]
        offset += 1
        if length == 0:
            return ".".join(labels).lower(), offset
        if length > 63:
            raise Malformed("a question has no compressed name")
        labels.append(data[offset : offset + length].decode("latin-1"))
        offset += length


@dataclass(frozen=True, slots=True)
class Extra:
    """A record beside the answer's own: the address of a name that one of them mentions. name: wire form."""

    name: bytes
    kind: int
    rdata: bytes


def answer(
    query: Query, records: Sequence[bytes], *, code: int = NOERROR, limit: int | None = None,
    extra: Sequence[Extra] = (),
) -> bytes:
    """An authoritative answer; records: rdata of the asked type.

    limit: bytes that fit. Extra records that do not fit are left out; of the others as many as fit go, with TC
    (RFC 2181, 9): who can ask again by TCP gets all, and who cannot has some.
    """
    kind = A if query.kind == ANY else query.kind
    option = struct.pack(">BHHIH", 0, OPT, _OWN_UDP_SIZE, 0, 0) if query.edns else b""
    room = 65535 if limit is None else limit
    room -= _HEADER.size + len(query.question) + len(option)
    own = [struct.pack(">HHHIH", _POINTER_TO_QUESTION, kind, IN, TTL_S, len(rdata)) + rdata for rdata in records]
    more = [
        one.name + struct.pack(">HHIH", one.kind, IN, TTL_S, len(one.rdata)) + one.rdata for one in extra
    ]
    flags = _QR | _AA | _RA | (query.flags & (_RD | 0x7800)) | code
    sent, used = _fitting(own, room)
    if sent < len(own):
        flags |= _TC
        more = []
    added, _ = _fitting(more, room - used)
    head = _HEADER.pack(query.ident, flags, 1, sent, 0, added + bool(option))
    return b"".join((head, query.question, *own[:sent], *more[:added], option))


def _fitting(records: Sequence[bytes], room: int) -> tuple[int, int]:
    """How many fit, and their bytes."""
    used = 0
    for count, record in enumerate(records):
        if used + len(record) > room:
            return count, used
        used += len(record)
    return len(records), used


def service_location(port: int, target: bytes) -> bytes:
    """SRV's rdata (RFC 2782), all of one priority and weight. target: wire form."""
    return struct.pack(">HHH", 0, 0, port) + target


def failure(data: bytes, code: int) -> bytes:
    """The shortest answer to bytes that could not be read: the ident (0 if even that is missing) and a code."""
    ident = int.from_bytes(data[:2], "big") if len(data) >= 2 else 0
    return _HEADER.pack(ident, _QR | _RA | code, 0, 0, 0, 0)


def encode_name(name: str) -> bytes:
    """Wire form of a dotted name. Malformed for empty or long labels."""
    wire = b""
    for label in name.rstrip(".").split("."):
        raw = label.encode("latin-1", errors="replace")
        if not 0 < len(raw) <= 63:
            raise Malformed(f"label {label!r}")
        wire += bytes([len(raw)]) + raw
    if len(wire) >= _MAX_NAME:
        raise Malformed("name too long")
    return wire + b"\0"


def reverse_address(name: str) -> str:
    """"10.0.0.2" of "2.0.0.10.in-addr.arpa", the same of ip6.arpa's nibbles, "" for any other name."""
    try:
        if name.endswith(".in-addr.arpa"):
            return str(IPv4Address(".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))))
        nibbles = name.removesuffix(".ip6.arpa").split(".")
        if name.endswith(".ip6.arpa") and len(nibbles) == 32 and all(len(nibble) == 1 for nibble in nibbles):
            return str(IPv6Address(int("".join(reversed(nibbles)), 16)))
    except (AddressValueError, ValueError):
        pass
    return ""
