"""Where docker clients may connect besides the unix socket: `tcp://ADDRESS:PORT`, with TLS both ways.

Whoever can talk to an engine is root on its host. So a TCP address needs certificates on both sides (what
`docker --tlsverify` speaks), unless it is one of this host's loopback addresses.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from swarmlet.config import TlsFiles
from swarmlet.engine_api.server import Server
from swarmlet.errors import InvalidArgument
from swarmlet.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """One address to listen on; `address` is an IP address, "::" meaning all of both families."""

    address: str
    port: int

    @property
    def loopback(self) -> bool:
        return ip_address(self.address).is_loopback

    def __str__(self) -> str:
        return f"tcp://[{self.address}]:{self.port}" if ":" in self.address else f"tcp://{self.address}:{self.port}"


def parse_hosts(texts: Sequence[str], tls: TlsFiles) -> list[Host]:
    """The addresses of a setting. InvalidArgument names the one that is wrong, or that needs certificates."""
    hosts = [_parse(text) for text in texts]
    if any((tls.ca, tls.cert, tls.key)) and not tls.complete:
        raise InvalidArgument("hosts_tls needs ca, cert and key: the clients' CA, and this host's certificate and key")
    for host in hosts:
        if not host.loopback and not tls.complete:
            raise InvalidArgument(
                f"{host} without TLS would make root of everyone who reaches it: set hosts_tls (ca, cert, key)"
            )
    return hosts


def _parse(text: str) -> Host:
    expected = f"invalid host {text!r}: expected tcp://ADDRESS:PORT with an IP address"
    try:
        parts = urlsplit(text)
        address, port = ip_address(parts.hostname or ""), parts.port
    except ValueError as err:
        raise InvalidArgument(expected) from err
    if parts.scheme != "tcp" or not port or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise InvalidArgument(expected)
    return Host(str(address), port)


def clients_context(files: TlsFiles) -> ssl.SSLContext:
    """For `docker --tlsverify`: a client needs a certificate of this CA. InvalidArgument names an unusable file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError) as err:
        raise InvalidArgument(f"hosts_tls.ca: {files.ca}: {err.strerror or err}") from err
    try:
        context.load_cert_chain(files.cert, files.key, password=_refuse_encrypted)
    except (OSError, ssl.SSLError) as err:
        why = err.strerror or err
        raise InvalidArgument(f"hosts_tls.cert, hosts_tls.key: {files.cert}, {files.key}: {why}") from err
    return context


def _refuse_encrypted() -> str:
    raise InvalidArgument("hosts_tls.key: the key is encrypted, and nobody is there to type its password")


async def listen_on(server: Server, texts: Sequence[str], files: TlsFiles) -> None:
    """Open these addresses. InvalidArgument if a setting cannot be followed, an address in use included."""
    hosts = parse_hosts(texts, files)
    tls = await asyncio.to_thread(clients_context, files) if hosts and files.complete else None
    for host in hosts:
        try:
            await server.listen_tcp(host.address, host.port, tls)
        except OSError as err:
            raise InvalidArgument(f"cannot listen on {host}: {err.strerror or err}") from err
        log.info("docker clients may connect", address=str(host), tls=tls is not None)
