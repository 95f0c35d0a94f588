"""TLS contexts between managers, agents and their peers: TLS 1.3, the cluster's CA and nothing else."""

from __future__ import annotations

import asyncio.sslproto
import os
import ssl
from collections.abc import Collection
from dataclasses import dataclass

from swarmlet.errors import Forbidden, Unauthorized
from swarmlet.model.states import Role
from swarmlet.pki import Identity, KeyPair, identity_of_peer

#: asyncio reads each TLS connection that is dialled through a buffer of this size (those that are accepted have
#: none: engine_api/tls_transport.py); its own 256 KiB would be most of what a connection to a node costs.
READ_BUFFER_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A node's certificate and key, and the CA it trusts."""

    pair: KeyPair
    ca_pem: str


def shrink_buffers() -> None:
    """Once per process, before the first connection."""
    if hasattr(asyncio.sslproto.SSLProtocol, "max_size"):
        asyncio.sslproto.SSLProtocol.max_size = READ_BUFFER_BYTES


def server_context(own: TlsIdentity, *, require_client: bool) -> ssl.SSLContext:
    """For listening. With require_client=False a client may come without a certificate (to join) and has to be
    checked per request; a certificate that is shown must always be of this cluster."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    context.num_tickets = 0  # sessions live long: tickets only cost the handshake a fifth more
    return _with(context, own)


def client_context(own: TlsIdentity) -> ssl.SSLContext:
    """For dialling; pass server_hostname: a role ("swarm-manager") or a node id."""
    return _with(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), own)


def joining_context(ca_pem: str) -> ssl.SSLContext:
    """For a host without a certificate that knows whom to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    return context


def unverified_context() -> ssl.SSLContext:
    """Only to fetch a CA certificate whose digest is known: nothing else may be said over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def require_role(transport: asyncio.BaseTransport | None, allowed: Collection[Role]) -> Identity:
    """Who is at the other end. Unauthorized without a certificate, Forbidden for another role."""
    identity = None if transport is None else identity_of_peer(transport.get_extra_info("peercert"))
    if identity is None:
        raise Unauthorized("a certificate of this cluster is needed here")
    if identity.role not in allowed:
        raise Forbidden(f"node {identity.node_id} is a {identity.role} and may not do this")
    return identity


def load_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Use this certificate for all handshakes to come; also replaces an older one in place."""
    # The ssl module takes a chain from a file only: give it one that never touches a disk.
    handle = os.memfd_create("certificate")
    try:
        os.write(handle, (pair.cert_pem + pair.key_pem).encode())
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _with(context: ssl.SSLContext, own: TlsIdentity) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=own.ca_pem)
    load_pair(context, own.pair)
    return context
