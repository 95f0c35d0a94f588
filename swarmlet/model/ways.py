"""Encrypted ways between nodes (WireGuard): what a node says of its part, and which keys are in use.

Private keys never leave their node. Keys change by generations, without loss: every node makes a key of a new
generation; once each has taken in all others' (`applied`), `active` names the new one; once each sends by it, the old
one goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address

from swarmlet.model.base import Record

#: Inner addresses, one per node number: of WireGuard's devices, known inside the encryption only.
_INNER = int(IPv4Address("100.65.0.0"))
#: Outer IPv6 and UDP headers, and WireGuard's own (32).
WAYS_BYTES = 80
#: UDP port of encrypted networks' VXLAN, inside: it is let through there and nowhere else.
SEALED_PORT = 51_870
#: UDP ports of two generations at a time.
WAYS_PORTS = (51_871, 51_872)


class WayKey(Record, frozen=True, kw_only=True):
    """A node's key of one generation. port: where its device listens (UDP)."""

    number: int
    public_key: bytes
    port: int


class NodeWays(Record, frozen=True, kw_only=True):
    """What a node says. lacking: why it can have no part in encrypted networks, "" = it can.

    keys: () while it is in none. active: the generation by which its packets go. applied: while keys are being
    changed, the digest of all nodes' keys as it has taken them in.
    """

    lacking: str = "it has not told whether it can"
    keys: tuple[WayKey, ...] = ()
    active: int = 0
    applied: bytes = b""


class WaysPlan(Record, frozen=True, kw_only=True):
    """Generations in use, oldest to newest, and by which packets go. since: when the newest began, ns; 0 = never."""

    oldest: int = 1
    active: int = 1
    newest: int = 1
    since: int = 0


def inner_address(number: int) -> str:
    """Of a node with this number in the routing mesh (at least 1)."""
    return str(IPv4Address(_INNER + number))


def digest_of(keys: Iterable[tuple[str, tuple[WayKey, ...]]]) -> bytes:
    """The same for the same keys of the same nodes (by inner address)."""
    parts = sorted(
        f"{inner} {key.number} {key.public_key.hex()} {key.port}" for inner, all_keys in keys for key in all_keys
    )
    return hashlib.sha256("\n".join(parts).encode()).digest()[:16]
