"""Making keys, requests and certificates of a cluster: what `pki.py` describes.

Apart, because the cryptographic library takes 7 MB: managers have it, an agent lets a process of a moment do this.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmlet.errors import InvalidArgument
from swarmlet.pki import BACKDATE, OU, Identity, KeyPair

CA_LIFE = timedelta(days=20 * 365)


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


def requested_key(csr_pem: str) -> bytes:
    """The public key that a request is for, DER; its sender has the private one. InvalidArgument for a bad CSR."""
    return _request(csr_pem).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign_request(
    ca: KeyPair, csr_pem: str, identity: Identity, addresses: Sequence[str], life: timedelta, *,
    now: datetime | None = None,
) -> str:
    """A node's certificate, PEM. addresses: IPs or names the host is dialled by. InvalidArgument for a bad CSR."""
    csr = _request(csr_pem)
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


def _request(csr_pem: str) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        sound = csr.is_signature_valid and isinstance(csr.public_key(), ec.EllipticCurvePublicKey)
    except (ValueError, TypeError) as err:
        raise InvalidArgument(f"invalid certificate signing request: {err}") from err
    if not sound:
        raise InvalidArgument("invalid certificate signing request: expected an ECDSA key that signed it")
    return csr


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


def _pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
