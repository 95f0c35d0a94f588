"""The cluster's certificates: CA, node certificates, join tokens, and the TLS contexts made from them.

ECDSA P-256 throughout. A node's certificate has the node id as common name, its role as organizational unit
(swarm-worker, swarm-manager) and the cluster id as organization, as SwarmKit's do. Its alternative names are
the role and the node id, so that who dials can ask for "a manager" or for "this node" whatever address it
dials, and the host's addresses.

A join token is SWMTKN-1-<SHA-256 of the CA certificate, base 36, 50 characters>-<secret, 25 characters>.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmlet.errors import InvalidArgument
from swarmlet.model.states import Role

CA_LIFE = timedelta(days=20 * 365)
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


def new_ca(cluster_id: str, *, now: datetime | None = None) -> KeyPair:
    """A self-signed CA for one cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
        ]
    )
    start = (now or datetime.now(UTC)) - BACKDATE
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_pem(cert), _key_pem(key))


def new_request() -> tuple[str, str]:
    """(CSR, key), PEM. The CA decides every name; a CSR only proves that its sender has the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key)


def sign_request(
    ca: KeyPair, csr_pem: str, identity: Identity, addresses: Sequence[str], life: timedelta, *,
    now: datetime | None = None,
) -> str:
    """A node's certificate, PEM. addresses: IPs or names the host is dialled by. InvalidArgument for a bad CSR."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        sound = csr.is_signature_valid and isinstance(csr.public_key(), ec.EllipticCurvePublicKey)
    except (ValueError, TypeError) as err:
        raise InvalidArgument(f"invalid certificate signing request: {err}") from err
    if not sound:
        raise InvalidArgument("invalid certificate signing request: expected an ECDSA key that signed it")
    ca_cert = x509.load_pem_x509_certificate(ca.cert_pem.encode())
    ca_key = serialization.load_pem_private_key(ca.key_pem.encode(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    start = (now or datetime.now(UTC)) - BACKDATE
    cert = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, identity.node_id),
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, OU[identity.role]),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.cluster_id),
                ]
            )
        )
        .issuer_name(ca_cert.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(min(start + BACKDATE + life, ca_cert.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(OU[identity.role]), x509.DNSName(identity.node_id), *map(_alternative, addresses)]
            ),
            critical=False,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pem(cert)


def issue(ca: KeyPair, identity: Identity, addresses: Sequence[str], life: timedelta) -> KeyPair:
    """A key and its certificate in one go, where the CA's key is at hand (a manager's own)."""
    csr, key = new_request()
    return KeyPair(sign_request(ca, csr, identity, addresses, life), key)


def identity_of(cert_pem: str) -> Identity:
    """Whose certificate this is; it is not verified here. InvalidArgument for one that is not a node's."""
    try:
        subject = x509.load_pem_x509_certificate(cert_pem.encode()).subject
    except ValueError as err:
        raise InvalidArgument(f"invalid certificate: {err}") from err
    values = [
        "".join(str(attribute.value) for attribute in subject.get_attributes_for_oid(oid))
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME)
    ]
    return _identity(*values)


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
    cert = x509.load_pem_x509_certificate(cert_pem.encode())
    start, end = cert.not_valid_before_utc + BACKDATE, cert.not_valid_after_utc
    low, high = RENEW_BETWEEN
    return start + (end - start) * (low + (high - low) * share)


def expires_at(cert_pem: str) -> datetime:
    return x509.load_pem_x509_certificate(cert_pem.encode()).not_valid_after_utc


def ca_digest(ca_pem: str) -> str:
    """SHA-256 of the certificate (DER) in base 36, 50 digits."""
    der = x509.load_pem_x509_certificate(ca_pem.encode()).public_bytes(serialization.Encoding.DER)
    return _base36(int.from_bytes(hashlib.sha256(der).digest(), "big"), 50)


def new_join_token(ca_pem: str) -> str:
    return f"SWMTKN-1-{ca_digest(ca_pem)}-{_base36(secrets.randbits(128), 25)}"


def parse_join_token(text: str) -> JoinToken:
    """InvalidArgument, in SwarmKit's words, for anything else."""
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(
            "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"
        )
    return JoinToken(match[1], match[2])


def same_token(given: str, expected: str) -> bool:
    """In constant time; False if none is expected."""
    return bool(expected) and hmac.compare_digest(given.strip().encode(), expected.encode())


def subject_and_key(cert_pem: str) -> tuple[bytes, bytes]:
    """(subject, public key) as DER: what the API's TLSInfo shows of a CA."""
    cert = x509.load_pem_x509_certificate(cert_pem.encode())
    key = cert.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return cert.subject.public_bytes(), key


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
    except BaseException:
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


def _alternative(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=not ca, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )


def _base36(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
