"""The native protocol of systemd's journal, as far as anything of ours speaks it.

An entry is one datagram of fields: `NAME=value` lines, or for values with newlines or bytes that are no text the
name alone, the value's length (64 bits, little-endian) and the value (systemd: "Native Journal Protocol").
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

JOURNAL_SOCKET = "/run/systemd/journal/socket"


def entry(fields: Mapping[str, bytes]) -> bytes:
    """One datagram."""
    parts = []
    for name, value in fields.items():
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


def field_name(text: str) -> str:
    """A name journald accepts: capitals, digits and underscores, not beginning with one of the latter two."""
    return re.sub(r"[^A-Z0-9_]", "_", text.upper()).lstrip("_0123456789")[:64]
