"""Certificates for tests: two CAs, and who they vouch for."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pytest import MonkeyPatch


def make_pki(folder: Path, *addresses: str) -> None:
    """ca.pem; server.pem for 127.0.0.1 and these addresses, and client.pem, each with its key; stranger.pem of
    another CA, which is other-ca.pem."""
    now = datetime.now(UTC)

    def write(name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(encoded)

    def issue(ca: str, ca_key: ec.EllipticCurvePrivateKey, name: str) -> None:
        own = name == ca
        key = ca_key if own else ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ca)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        )
        if name == "server":
            names = x509.SubjectAlternativeName(
                [x509.IPAddress(ip_address(address)) for address in ("127.0.0.1", *addresses)]
            )
            builder = builder.add_extension(names, critical=False)
        write(name, builder.sign(ca_key, hashes.SHA256()), key)

    for ca, names in (("ca", ("ca", "server", "client")), ("other-ca", ("other-ca", "stranger"))):
        ca_key = ec.generate_private_key(ec.SECP256R1())
        for name in names:
            issue(ca, ca_key, name)


def be_strict(monkeypatch: MonkeyPatch) -> None:
    """Python's own contexts want of certificates what RFC 5280 wants, as they do from 3.13 on: ours here have less."""
    made = ssl.create_default_context

    def of_3_13(*args: Any, **more: Any) -> ssl.SSLContext:
        context = made(*args, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", of_3_13)
