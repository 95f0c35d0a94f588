"""Certificates, tokens and the TLS they make: who gets in, and who does not."""

from __future__ import annotations

import asyncio
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.certificate import read_certificate
from swarmlet.errors import Forbidden, InvalidArgument, Unauthorized
from swarmlet.issuing import issue, new_ca, new_request, sign_request
from swarmlet.model.states import Role
from swarmlet.pki import (
    Identity,
    KeyPair,
    ca_digest,
    identity_of,
    identity_of_peer,
    new_join_token,
    parse_join_token,
    renew_at,
    same_token,
    write_private,
)
from swarmlet.tls import TlsIdentity, client_context, joining_context, load_pair, require_role, server_context

CA = new_ca("cluster-1")
OTHER_CA = new_ca("cluster-2")
LIFE = timedelta(days=90)
WORKER = Identity("node-1", Role.WORKER, "cluster-1")
MANAGER = Identity("node-2", Role.MANAGER, "cluster-1")


def of(identity: Identity, ca: KeyPair = CA, life: timedelta = LIFE) -> TlsIdentity:
    return TlsIdentity(issue(ca, identity, ["127.0.0.1", "host.example"], life), ca.cert_pem)


def test_a_certificate_names_node_role_and_cluster_and_can_be_dialled_by_role_id_and_address() -> None:
    pem = of(MANAGER).pair.cert_pem
    assert identity_of(pem) == MANAGER
    names = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    assert names.get_values_for_type(x509.DNSName) == ["swarm-manager", "node-2", "host.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_node_certificate_cannot_sign_another() -> None:
    cert = x509.load_pem_x509_certificate(of(MANAGER).pair.cert_pem.encode())
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not cert.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_no_node_certificate_outlives_its_ca() -> None:
    pem = of(WORKER, life=timedelta(days=100_000)).pair.cert_pem
    assert read_certificate(pem).not_after <= read_certificate(CA.cert_pem).not_after


def test_the_names_in_a_request_do_not_count() -> None:
    csr, _ = new_request()
    assert identity_of(sign_request(CA, csr, WORKER, [], LIFE)) == WORKER


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="certificate signing request"):
        sign_request(CA, text, WORKER, [], LIFE)


@given(st.floats(0, 1))
def test_renewal_falls_between_half_and_four_fifths_of_life(share: float) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    csr, _ = new_request()
    pem = sign_request(new_ca("c", now=now), csr, WORKER, [], LIFE, now=now)
    assert now + 0.5 * LIFE <= renew_at(pem, share) <= now + 0.8 * LIFE + timedelta(seconds=1)


def test_a_token_pins_its_ca_and_has_swarms_form() -> None:
    token = new_join_token(CA.cert_pem)
    parsed = parse_join_token(f" {token}\n")
    assert len(parsed.ca_digest) == 50 and len(parsed.secret) == 25
    assert parsed.trusts(CA.cert_pem)
    assert not parsed.trusts(OTHER_CA.cert_pem)
    assert ca_digest(CA.cert_pem) != ca_digest(OTHER_CA.cert_pem)
    assert token != new_join_token(CA.cert_pem)


@given(st.text(max_size=100))
def test_anything_else_is_no_token(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_join_token(text)


def test_no_token_equals_an_empty_one() -> None:
    assert not same_token("", "")
    assert same_token("a", "a")
    assert not same_token("a", "b")


@pytest.mark.parametrize("secret", [CA, of(WORKER).pair, parse_join_token(new_join_token(CA.cert_pem))])
def test_secrets_do_not_show_when_printed(secret: object) -> None:
    assert repr(secret).endswith("(…)")


def test_private_files_are_whole_and_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "tls" / "node.pem"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["node.pem"]


def test_a_peer_without_a_node_certificate_is_nobody() -> None:
    assert identity_of_peer(None) is None
    assert identity_of_peer({}) is None
    assert identity_of_peer({"subject": ((("commonName", "x"),),)}) is None


async def answer(server: TlsIdentity, context: ssl.SSLContext, name: str, allowed: tuple[Role, ...]) -> str:
    """What a server that lets only `allowed` in says to a client, or how the handshake failed."""
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said.set_result(require_role(writer.transport, allowed).node_id)
        except (Unauthorized, Forbidden) as err:
            said.set_result(type(err).__name__)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(server, require_client=False))
    port = listener.sockets[0].getsockname()[1]
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        result = await asyncio.wait_for(said, 5)
        writer.close()
        return result
    except (ssl.SSLError, ConnectionError):
        return "refused"
    finally:
        listener.close()


async def test_roles_are_told_apart_at_the_other_end() -> None:
    server = of(MANAGER)
    both = (Role.WORKER, Role.MANAGER)
    assert await answer(server, client_context(of(WORKER)), "swarm-manager", both) == "node-1"
    assert await answer(server, client_context(of(WORKER)), "swarm-manager", (Role.MANAGER,)) == "Forbidden"
    assert await answer(server, joining_context(CA.cert_pem), "swarm-manager", both) == "Unauthorized"


async def test_a_worker_cannot_pass_for_a_manager_nor_a_stranger_for_a_member() -> None:
    assert await answer(of(WORKER), client_context(of(MANAGER)), "swarm-manager", (Role.MANAGER,)) == "refused"
    assert await answer(of(MANAGER), client_context(of(MANAGER)), "node-1", (Role.MANAGER,)) == "refused"
    strange = client_context(TlsIdentity(issue(OTHER_CA, MANAGER, [], LIFE), OTHER_CA.cert_pem))
    assert await answer(of(MANAGER), strange, "swarm-manager", (Role.MANAGER,)) == "refused"


async def test_a_renewed_certificate_takes_the_place_of_the_old_one() -> None:
    old = of(WORKER)
    context = client_context(old)
    load_pair(context, issue(CA, Identity("node-9", Role.WORKER, "cluster-1"), [], LIFE))
    assert await answer(of(MANAGER), context, "swarm-manager", (Role.WORKER,)) == "node-9"
