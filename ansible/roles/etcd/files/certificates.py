"""The CA of an etcd cluster and the certificates of its members and clients; made on the controller if not there.

Prints a JSON object: `changed`. A member's certificate is good for its address, as server and as client of its peers
(etcd wants both of it); `client` is who the managers are. Keys are readable by their owner alone. A certificate that
names another address, or ends within 30 days, is made anew; the CA is for ten years.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
CA_LIFE, LIFE, RENEW_BEFORE = 3650 * DAY, 825 * DAY, 30 * DAY

Key = ec.EllipticCurvePrivateKey


def write(path: Path, content: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    partial.replace(path)


def save(folder: Path, name: str, certificate: x509.Certificate, key: Key) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(folder / f"{name}.key", private, 0o600)
    write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def load(folder: Path, name: str) -> tuple[x509.Certificate, Key] | None:
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    except FileNotFoundError:
        return None
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # we made it
    return certificate, key


def builder(name: str, issuer: x509.Name | None, key: Key, life: datetime.timedelta) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - DAY).not_valid_after(now + life)
    )


def ensure_ca(folder: Path) -> tuple[x509.Certificate, Key, bool]:
    if (found := load(folder, "ca")) is not None:
        return *found, False
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )
    certificate = (
        builder("swarmlet etcd CA", None, key, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    save(folder, "ca", certificate, key)
    return certificate, key, True


def is_good(certificate: x509.Certificate, ca: x509.Certificate, address: str) -> bool:
    if certificate.issuer != ca.subject:
        return False
    if certificate.not_valid_after_utc - RENEW_BEFORE < datetime.datetime.now(datetime.UTC):
        return False
    if not address:
        return True
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ipaddress.ip_address(address) in names.get_values_for_type(x509.IPAddress)


def ensure(folder: Path, name: str, address: str, ca: x509.Certificate, ca_key: Key) -> bool:
    """A certificate signed by the CA; address "" is a client's. True if it was made."""
    found = load(folder, name)
    if found is not None and is_good(found[0], ca, address):
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if address else [])
    made = (
        builder(name, ca.subject, key, LIFE)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if address:
        addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in (address, "127.0.0.1")]
        made = made.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
    save(folder, name, made.sign(ca_key, hashes.SHA256()), key)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the CA and all keys are kept")
    parser.add_argument("--member", action="append", default=[], metavar="NAME=ADDRESS", help="one of etcd's members")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca, ca_key, changed = ensure_ca(args.folder)
    wanted = {"client": ""} | dict(member.split("=", 1) for member in args.member)
    made = [name for name, address in wanted.items() if ensure(args.folder, name, address, ca, ca_key)]
    print(json.dumps({"changed": changed or bool(made)}))


if __name__ == "__main__":
    main()
