"""The cluster's certificates and join tokens: what they say. `issuing.py` makes them, `tls.py` uses them.

ECDSA P-256 throughout. A node's certificate has the node id as common name, its role as organizational unit
(swarm-worker, swarm-manager) and the cluster id as organization, as SwarmKit's do. Its alternative names are
the role and the node id, so that who dials can ask for "a manager" or for "this node" whatever address it
dials, and the host's addresses.

A join token is SWMTKN-1-<SHA-256 of the CA certificate, base 36, 50 characters>-<secret, 25 characters>.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from swarmlet.certificate import COMMON_NAME, ORGANIZATION, ORGANIZATIONAL_UNIT, read_certificate
from swarmlet.errors import InvalidArgument
from swarmlet.model.states import Role

#: Certificates are valid from a while ago: hosts' clocks differ.
BACKDATE = timedelta(hours=1)
#: A certificate is renewed at a moment between these shares of its life (SwarmKit's; random so that nodes spread).
RENEW_BETWEEN = (0.5, 0.8)
OU = {Role.WORKER: "swarm-worker", Role.MANAGER: "swarm-manager"}
_ROLE = {unit: role for role, unit in OU.items()}
_TOKEN = re.compile(r"SWMTKN-1-([0-9a-z]{50})-([0-9a-z]{25})")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM. The key never reaches a log."""

    cert_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return "KeyPair(…)"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate says of its holder."""

    node_id: str
    role: Role
    cluster_id: str


@dataclass(frozen=True, slots=True)
class JoinToken:
    """The two halves of a token: which CA to trust, and the right to join."""

    ca_digest: str
    secret: str

    def __repr__(self) -> str:
        return "JoinToken(…)"

    def trusts(self, ca_pem: str) -> bool:
        return hmac.compare_digest(self.ca_digest, ca_digest(ca_pem))


def identity_of(cert_pem: str) -> Identity:
    """Whose certificate this is; it is not verified here. InvalidArgument for one that is not a node's."""
    cert = read_certificate(cert_pem)
    return _identity(*(cert.name(attribute) for attribute in (COMMON_NAME, ORGANIZATIONAL_UNIT, ORGANIZATION)))


def identity_of_peer(peer: object) -> Identity | None:
    """As `identity_of`, from what `SSLObject.getpeercert()` gave; None without a (verified) certificate."""
    if not isinstance(peer, dict) or not peer:
        return None
    fields = {name: str(value) for part in peer.get("subject", ()) for name, value in part}
    try:
        return _identity(
            fields.get("commonName", ""), fields.get("organizationalUnitName", ""), fields.get("organizationName", "")
        )
    except InvalidArgument:
        return None


def renew_at(cert_pem: str, share: float) -> datetime:
    """When to renew; share 0..1 picks the moment within RENEW_BETWEEN."""
    cert = read_certificate(cert_pem)
    start, end = cert.not_before + BACKDATE, cert.not_after
    low, high = RENEW_BETWEEN
    return start + (end - start) * (low + (high - low) * share)


def ca_digest(ca_pem: str) -> str:
    """SHA-256 of the certificate (DER) in base 36, 50 digits. InvalidArgument for what is none."""
    return _base36(int.from_bytes(hashlib.sha256(read_certificate(ca_pem).der).digest(), "big"), 50)


def new_join_token(ca_pem: str) -> str:
    return f"SWMTKN-1-{ca_digest(ca_pem)}-{_base36(secrets.randbits(128), 25)}"


def parse_join_token(text: str) -> JoinToken:
    """InvalidArgument, in dockerd's words, for anything else."""
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument("invalid join token")
    return JoinToken(match[1], match[2])


def same_token(given: str, expected: str) -> bool:
    """In constant time; False if none is expected."""
    return bool(expected) and hmac.compare_digest(given.strip().encode(), expected.encode())


def subject_and_key(cert_pem: str) -> tuple[bytes, bytes]:
    """(subject, public key) as DER: what the API's TLSInfo shows of a CA."""
    cert = read_certificate(cert_pem)
    return cert.subject, cert.public_key


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner only, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # of any kind: undo, and pass it on
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _identity(name: str, unit: str, organization: str) -> Identity:
    role = _ROLE.get(unit)
    if role is None or not name:
        raise InvalidArgument("the certificate is not a node's")
    return Identity(name, role, organization)


def _base36(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
