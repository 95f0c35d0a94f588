"""What a registry's refusals and a broken connection to it are called: errors in the words Docker's users know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp

from swarmlet.errors import NotFound, SwarmletError, Unauthorized, Unavailable
from swarmlet_agent.images.auth import Challenge
from swarmlet_agent.images.reference import Reference

#: (code, message) of each entry in the body of a registry's error answer.
Entries = Sequence[tuple[str, str]]


class RegistryUnreachable(Unavailable):
    """No answer, or none that makes sense. Trying again later may help. Engine API: 500, as dockerd answers.

    retry_after_s: when the registry wants to be asked again; 0 if it has not said.
    """

    status = 500
    retry_after_s = 0.0


class RegistryDenied(Unauthorized):
    """Credentials are missing or wrong. Engine API: 500 for a pull, as dockerd answers."""

    status = 500


class RegistryRefused(SwarmletError):
    """The registry understood and will not: asking again would not help. Engine API: 500, as dockerd answers."""

    status = 500


def refusal(ref: Reference, method: str, url: str, status: int, entries: Entries) -> SwarmletError:
    """A registry's error answer in dockerd's words. entries: (code, message) from the body, if there was one."""
    code, message = entries[0] if entries else ("", "")
    detail = f"{code.lower().replace('_', ' ')}: {message}" if code else f"unexpected HTTP status {status}"
    if code == "MANIFEST_UNKNOWN" or (status == 404 and not code and "/manifests/" in url):
        detail = detail if code else "manifest unknown: manifest unknown"
        return NotFound("manifest", ref.familiar, f"manifest for {ref.familiar} not found: {detail}")
    if code == "NAME_UNKNOWN":
        return NotFound("repository", ref.familiar_name, f"repository {ref.familiar_name} not found: {detail}")
    if code == "DENIED" or status == 403 or (status == 401 and ref.domain == "docker.io"):
        return NotFound(
            "repository", ref.familiar_name,
            f"pull access denied for {ref.familiar_name}, repository does not exist or may require 'docker login': "
            f"denied: {message or 'requested access to the resource is denied'}",
        )
    if status == 401:
        return RegistryDenied(f'{method.capitalize()} "{url}": {detail if code else "unauthorized"}')
    if status == 429:
        return RegistryUnreachable(f"toomanyrequests: {message or 'the registry limits the rate of requests'}")
    if status == 404:
        return NotFound("blob", url, detail)
    return RegistryUnreachable(f'{method.capitalize()} "{url}": {detail}')


def unreachable(method: str, url: str, err: BaseException) -> RegistryUnreachable:
    """A connection's failure in the words of Go's net package."""
    return RegistryUnreachable(f'{method} "{url}": {_reason(url, err)}')


def _reason(url: str, err: BaseException) -> str:
    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    host = address.hostname or ""
    match err:
        case aiohttp.ClientConnectorDNSError():
            return f"dial tcp: lookup {host}: no such host"
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: x509: {err.certificate_error}"
        case aiohttp.ClientConnectorSSLError() if "WRONG_VERSION_NUMBER" in str(err) or "RECORD_LAYER" in str(err):
            return "http: server gave HTTP response to HTTPS client"
        case aiohttp.ClientConnectorSSLError():
            return f"tls: {err}"
        case aiohttp.ClientConnectorError():
            reason = (err.os_error.strerror or str(err.os_error)) if err.os_error else str(err)
            reason = reason.partition("[")[0].strip() if reason.startswith("Connect call failed") else reason
            return f"dial tcp {host}:{port}: connect: {_plain(err.os_error, reason)}"
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return f"dial tcp {host}:{port}: i/o timeout"
        case aiohttp.ServerDisconnectedError():
            return "EOF"
        case _:
            return str(err) or type(err).__name__


def _plain(err: OSError | None, otherwise: str) -> str:
    """asyncio words connection errors in its own way; the kernel's text is what people search for."""
    if err is not None and err.errno is not None and err.errno > 0:
        return os.strerror(err.errno).lower()
    return otherwise.lower()


def push_refusal(
    method: str, url: str, status: int, entries: Entries, challenges: Sequence[Challenge]
) -> SwarmletError:
    """A refusal on the way of a push. A token that is good for less than asked is told by the challenge (RFC 6750)."""
    code, message = entries[0] if entries else ("", "")
    detail = f"{code.lower().replace('_', ' ')}: {message}" if code else ""
    if any(challenge.error == "insufficient_scope" for challenge in challenges):
        return RegistryDenied("denied: requested access to the resource is denied")
    if status == 401:
        return RegistryDenied(detail or "unauthorized: authentication required")
    if status == 403:
        return RegistryDenied(detail or "denied: requested access to the resource is denied")
    if status == 429:
        return RegistryUnreachable(f"toomanyrequests: {message or 'the registry limits the rate of requests'}")
    where = f'{method.capitalize()} "{url}": '
    if status >= 500:
        return RegistryUnreachable(f"{where}{detail or f'received unexpected HTTP status: {status}'}")
    if status == 404:
        return NotFound("repository", url, detail or f"{where}unexpected HTTP status 404")
    return RegistryRefused(detail or f"{where}unexpected HTTP status {status}")
