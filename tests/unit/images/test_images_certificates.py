"""Which registries' certificates are believed: those that dockerd believes, whatever the Python."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from fakes.pki_made import be_strict, make_pki

from swarmlet_agent.images.certificates import system_context, tls_of


def shake_hands(client: ssl.SSLContext, folder: Path) -> None:
    """With a server of this PKI, in memory. SSLError where the client does not believe it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname="127.0.0.1"), server.wrap_bio(up, down, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


async def test_a_certificate_that_lacks_what_rfc_5280_wants_is_believed_if_its_ca_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_strict(monkeypatch)
    make_pki(tmp_path)
    folder = tmp_path / "certs.d"
    (folder / "registry.example").mkdir(parents=True)
    (folder / "registry.example/ca.crt").write_bytes((tmp_path / "ca.pem").read_bytes())
    context = await tls_of(folder, "registry.example", insecure=False)
    assert isinstance(context, ssl.SSLContext)
    shake_hands(context, tmp_path)
    with pytest.raises(ssl.SSLError, match=r"self-signed|issuer"):
        shake_hands(system_context(), tmp_path)
