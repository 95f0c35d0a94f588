"""What TLS with a registry is held to: the files in `<folder>/<host[:port]>/`, as dockerd has it.

`*.crt` are further CAs, `*.cert` with `*.key` of the same name a client certificate.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from swarmlet.errors import Internal


def system_context() -> ssl.SSLContext:
    """What is held to the system's CAs alone. Blocks for some ms.

    As dockerd, not as Python 3.13 has it: a certificate made by `openssl x509 -req`, which has not all extensions that
    RFC 5280 wants, is good.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    return context


async def tls_of(folder: Path, host: str, *, insecure: bool) -> ssl.SSLContext | bool:
    """What aiohttp takes as `ssl`. True where nothing is out of the ordinary. Internal names the file that is wrong."""
    return await asyncio.to_thread(_tls_of, folder / host, insecure)


def _tls_of(folder: Path, insecure: bool) -> ssl.SSLContext | bool:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if not files and not insecure:
        return True
    context = system_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for file in files:
        try:
            _take(context, file)
        except (OSError, ssl.SSLError) as err:
            raise Internal(f"the registry's certificate {file} cannot be used: {err}") from err
    return context


def _take(context: ssl.SSLContext, file: Path) -> None:
    match file.suffix:
        case ".crt":
            context.load_verify_locations(file)
        case ".cert":
            key = file.with_suffix(".key")
            if not key.exists():
                raise Internal(
                    f"missing key {key.name} for client certificate {file.name}. "
                    "CA certificates must use the extension .crt"
                )
            context.load_cert_chain(file, key)
        case ".key":
            certificate = file.with_suffix(".cert")
            if not certificate.exists():
                raise Internal(f"missing client certificate {certificate.name} for key {file.name}")
