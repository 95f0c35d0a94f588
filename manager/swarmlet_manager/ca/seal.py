"""Sealing of what is kept in the store and must not lie there in clear (registry credentials, secrets, configs).

ChaCha20-Poly1305: a dump, a log or a fixture of a record gives nothing away.
The nonce is random and stands in front; `about` binds the sealed bytes to their place.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarmlet.errors import Internal

KEY_BYTES = 32
_NONCE_BYTES = 12


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)


def seal(key: bytes, text: str, about: str) -> bytes:
    """b"" for an empty text."""
    return seal_bytes(key, text.encode(), about) if text else b""


def unseal(key: bytes, sealed: bytes, about: str) -> str:
    """Internal if the bytes were not sealed with this key for this place."""
    return unseal_bytes(key, sealed, about).decode() if sealed else ""


def seal_bytes(key: bytes, data: bytes, about: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, data, about.encode())


def unseal_bytes(key: bytes, sealed: bytes, about: str) -> bytes:
    """Internal if the bytes were not sealed with this key for this place."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())
    except (InvalidTag, ValueError) as err:
        raise Internal(f"what was sealed for {about} cannot be opened with this cluster's key") from err
