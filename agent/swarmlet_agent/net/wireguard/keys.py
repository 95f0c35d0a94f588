"""X25519 keys. Not for the agent itself, which would keep the cryptographic library (`swarmlet_agent/keymaker.py`)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from swarmlet_agent.net.wireguard.plan import WayKeys


def new_keys() -> WayKeys:
    return _both(X25519PrivateKey.generate())


def with_public(private: bytes) -> WayKeys:
    """ValueError if it has not 32 bytes."""
    return _both(X25519PrivateKey.from_private_bytes(private))


def _both(key: X25519PrivateKey) -> WayKeys:
    return WayKeys(key.private_bytes_raw(), key.public_key().public_bytes_raw())
