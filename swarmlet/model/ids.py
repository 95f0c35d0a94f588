"""Identifiers: how they are made and shortened."""

from __future__ import annotations

import hashlib
import secrets
from typing import NewType

NodeId = NewType("NodeId", str)
ServiceId = NewType("ServiceId", str)
TaskId = NewType("TaskId", str)
NetworkId = NewType("NetworkId", str)
ContainerId = NewType("ContainerId", str)

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_CLUSTER_ID_LENGTH = 25


def new_cluster_id() -> str:
    """An id for a cluster object: 25 characters of [0-9a-z], 128 random bits, as Swarm's ids look."""
    return _cluster_id(secrets.randbits(128))


def cluster_id_of(content: bytes) -> str:
    """The id that always belongs to this content."""
    return _cluster_id(int.from_bytes(hashlib.sha256(content).digest()[:16], "big"))


def _cluster_id(number: int) -> str:
    digits = []
    for _ in range(_CLUSTER_ID_LENGTH):
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def new_hex_id() -> str:
    """An id for an engine object (container, exec, local network): 64 hex characters."""
    return secrets.token_hex(32)


def short_id(ident: str) -> str:
    """The 12 leading characters clients print."""
    return ident.removeprefix("sha256:")[:12]
