"""What an X.509 certificate says of itself (RFC 5280, in DER: X.690), read and not verified. Pure.

Apart from `issuing.py`, which makes certificates, because a daemon that only reads its own need not carry a
cryptographic library for as long as it lives. Whom to believe is for TLS to check.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from swarmlet.errors import InvalidArgument

_HEADER, _FOOTER = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_OID, _SEQUENCE, _SET, _VERSION = 0x06, 0x30, 0x31, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
#: Attributes of a subject by their object identifiers, encoded (2.5.4.x).
COMMON_NAME, ORGANIZATION, ORGANIZATIONAL_UNIT = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x04\x0b"
#: String types: UTF-8 or what is part of it.
_STRINGS = frozenset({0x0C, 0x13, 0x16})


@dataclass(frozen=True, slots=True)
class Certificate:
    """der: all of it; subject: DER of the whole name; names: its (attribute, text) in order; public_key: DER of
    SubjectPublicKeyInfo."""

    der: bytes
    subject: bytes
    names: tuple[tuple[bytes, str], ...]
    not_before: datetime
    not_after: datetime
    public_key: bytes

    def name(self, attribute: bytes) -> str:
        """All values of an attribute of the subject together, "" without one."""
        return "".join(text for oid, text in self.names if oid == attribute)


@dataclass(frozen=True, slots=True)
class _Value:
    """A value with its tag; whole: both and the length, as they stand."""

    tag: int
    content: bytes
    whole: bytes


def read_certificate(pem: str) -> Certificate:
    """A PEM text with one certificate and nothing else: whoever trusts the text by it must not trust a second one that
    came along. InvalidArgument for any other."""
    try:
        return _certificate(_unwrapped(pem.strip()))
    except (ValueError, IndexError) as err:
        raise InvalidArgument(f"invalid certificate: {err}") from err


def _unwrapped(text: str) -> bytes:
    if not text.startswith(_HEADER) or not text.endswith(_FOOTER):
        raise ValueError("expected one certificate as PEM")
    lines = text.removeprefix(_HEADER).removesuffix(_FOOTER).split()
    return base64.b64decode("".join(lines), validate=True)


def _certificate(der: bytes) -> Certificate:
    outer = _only(der, _SEQUENCE)
    fields = list(_values(_expect(next(_values(outer.content), None), _SEQUENCE).content))
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) < 6:
        raise ValueError("it is cut short")
    _serial, _signature, _issuer, validity, subject, public_key = fields[:6]
    not_before, not_after = (_time(value) for value in _values(_expect(validity, _SEQUENCE).content))
    return Certificate(
        der, subject.whole, tuple(_names(_expect(subject, _SEQUENCE).content)), not_before, not_after,
        _expect(public_key, _SEQUENCE).whole,
    )


def _names(content: bytes) -> Iterator[tuple[bytes, str]]:
    for part in _values(content):
        for pair in _values(_expect(part, _SET).content):
            oid, text = _values(_expect(pair, _SEQUENCE).content)
            if text.tag in _STRINGS:
                yield _expect(oid, _OID).content, text.content.decode()


def _time(value: _Value) -> datetime:
    """RFC 5280, 4.1.2.5: both forms end with seconds and Z; years of two digits are 1950 to 2049."""
    text = value.content.decode("ascii")
    if value.tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif value.tag != _GENERALIZED_TIME:
        raise ValueError("a time of an unknown type")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _values(content: bytes) -> Iterator[_Value]:
    """The values that stand behind each other. ValueError, IndexError if they are broken."""
    at = 0
    while at < len(content):
        start, tag, length = at, content[at], content[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            if not 0 < count <= 4:
                raise ValueError("a length that DER does not have")
            length = int.from_bytes(content[at : at + count], "big")
            at += count
        if at + length > len(content):
            raise ValueError("a value longer than what holds it")
        yield _Value(tag, content[at : at + length], content[start : at + length])
        at += length


def _only(content: bytes, tag: int) -> _Value:
    (value,) = _values(content)
    return _expect(value, tag)


def _expect(value: _Value | None, tag: int) -> _Value:
    if value is None or value.tag != tag:
        raise ValueError("not the structure of a certificate")
    return value

