"""Reading certificates without the library that makes them: the same comes out, and nothing else than one is taken."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.certificate import COMMON_NAME, ORGANIZATION, ORGANIZATIONAL_UNIT, read_certificate
from swarmlet.errors import InvalidArgument
from swarmlet.issuing import new_ca
from swarmlet.pki import ca_digest, new_join_token, parse_join_token, subject_and_key

CA = new_ca("cluster-1").cert_pem
OTHER = new_ca("cluster-2").cert_pem
KEY = ec.generate_private_key(ec.SECP256R1())
OIDS = {
    COMMON_NAME: x509.NameOID.COMMON_NAME, ORGANIZATION: x509.NameOID.ORGANIZATION_NAME,
    ORGANIZATIONAL_UNIT: x509.NameOID.ORGANIZATIONAL_UNIT_NAME,
}
#: Up to 64 bytes, as the library that makes them counts.
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=64).filter(
    lambda text: len(text.encode()) <= 64
)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(OIDS)), _TEXTS), max_size=4),
    st.datetimes(datetime(1951, 1, 1), datetime(2200, 1, 1)), st.timedeltas(timedelta(1), timedelta(days=9000)),
)
def test_a_certificate_reads_as_the_library_that_made_it_reads_it(
    names: list[tuple[bytes, str]], start: datetime, life: timedelta
) -> None:
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(OIDS[oid], text) for oid, text in names]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + life)
        .sign(KEY, hashes.SHA256())
    )
    read = read_certificate(made.public_bytes(serialization.Encoding.PEM).decode())

    assert read.names == tuple(names)
    assert (read.not_before, read.not_after) == (made.not_valid_before_utc, made.not_valid_after_utc)
    assert read.subject == made.subject.public_bytes()
    assert read.der == made.public_bytes(serialization.Encoding.DER)
    assert read.public_key == KEY.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert read.not_before.tzinfo is UTC


def test_a_ca_shows_its_subject_and_its_key() -> None:
    made = x509.load_pem_x509_certificate(CA.encode())
    key = made.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert subject_and_key(CA) == (made.subject.public_bytes(), key)


@given(st.data())
def test_a_broken_certificate_is_an_error_of_its_own_or_reads_as_another(data: st.DataObject) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(CA))
    der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    del der[data.draw(st.integers(1, len(der))):]
    try:
        read_certificate(ssl.DER_cert_to_PEM_cert(bytes(der)))
    except InvalidArgument as err:
        assert "invalid certificate" in str(err)


@given(st.binary(max_size=200))
def test_what_is_no_certificate_is_refused(der: bytes) -> None:
    with pytest.raises(InvalidArgument, match="invalid certificate"):
        read_certificate(ssl.DER_cert_to_PEM_cert(der))


HEADER, FOOTER = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@pytest.mark.parametrize(
    "text",
    [
        "", "text", HEADER, HEADER + FOOTER, CA + OTHER, OTHER + CA, f"a name\n{CA}", CA + "more",
        CA.strip() + OTHER.replace("BEGIN", "BEGIN X509").replace("END", "END X509"),
        CA.replace(FOOTER, "") + OTHER,
    ],
)
def test_only_one_certificate_and_nothing_beside_it_is_taken(text: str) -> None:
    """All of the text would be trusted because of the digest of one: a join token vouches for one CA."""
    token = parse_join_token(new_join_token(CA))
    with pytest.raises(InvalidArgument, match="invalid certificate"):
        token.trusts(text)


def test_white_space_around_and_in_it_means_nothing() -> None:
    body = base64.b64encode(ssl.PEM_cert_to_DER_cert(CA)).decode()
    assert ca_digest(f"\n{HEADER}\r\n{body}\r\n{FOOTER}\n\n") == ca_digest(CA)
