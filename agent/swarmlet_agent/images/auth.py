"""Registry credentials: how clients hand them over, and how registries ask for them (RFC 7235 challenges).

Pure. Credentials never get into a message: errors here tell what is wrong with the form, not what was sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.types import RegistryAuth

T = TypeVar("T")
#: What reading credentials may raise, for whatever was sent.
_WRONG = (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, ValueError)
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)(?:\s+|$)")
_PARAM = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*))\s*,?")


class _Given(msgspec.Struct, frozen=True):
    username: str | None = None
    password: str | None = None
    auth: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None
    serveraddress: str | None = None


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers: "bearer" with realm, service and scope, or "basic".

    error: why the token that was shown is not good enough (RFC 6750 section 3.1).
    """

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""
    error: str = ""


def decode_auth(header: str) -> RegistryAuth | None:
    """X-Registry-Auth: base64url of JSON, padding optional; None for nothing. InvalidArgument if it is neither."""
    if not header.strip():
        return None
    auth = _of_header("X-Registry-Auth", header, _read)
    return auth if auth.username or auth.identity_token or auth.registry_token else None


def decode_registry_config(header: str) -> dict[str, RegistryAuth]:
    """X-Registry-Config: the same of a JSON map from registries to credentials. InvalidArgument if it is not that."""
    return _of_header("X-Registry-Config", header, _read_map) if header.strip() else {}


def decode_body(body: bytes) -> RegistryAuth:
    """The JSON of POST /auth; empty fields for what it leaves out. InvalidArgument if it is no such JSON."""
    try:
        return _read(body)
    except _WRONG:
        raise InvalidArgument("invalid JSON: expected the credentials for a registry") from None


def _of_header(name: str, header: str, read: Callable[[bytes], T]) -> T:
    try:
        text = header.strip().replace("+", "-").replace("/", "_").rstrip("=")
        return read(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except _WRONG:
        # Not chained: the cause would quote what was sent.
        raise InvalidArgument(f"invalid {name} header: expected base64url-encoded JSON") from None


def _read(raw: bytes) -> RegistryAuth:
    return _auth(msgspec.json.decode(raw or b"{}", type=_Given))


def _read_map(raw: bytes) -> dict[str, RegistryAuth]:
    given = msgspec.json.decode(raw or b"{}", type=dict[str, _Given] | None) or {}
    return {name: _auth(entry) for name, entry in given.items()}


def _auth(given: _Given) -> RegistryAuth:
    username, password = given.username or "", given.password or ""
    if given.auth and not username:
        username, _, password = base64.b64decode(given.auth).decode().partition(":")
    return RegistryAuth(
        username, password, given.identitytoken or "", given.registrytoken or "", given.serveraddress or ""
    )


def basic(auth: RegistryAuth) -> str:
    """The Authorization header of RFC 7617."""
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """Values of WWW-Authenticate, in order; schemes other than Bearer and Basic are left out."""
    found = []
    for header in headers:
        at = 0
        while (scheme := _SCHEME.match(header, at)) is not None:
            at = scheme.end()
            params: dict[str, str] = {}
            while (param := _PARAM.match(header, at)) is not None:
                at = param.end()
                quoted = param[2]
                params[param[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else param[3]
            if scheme[1].lower() in ("bearer", "basic"):
                found.append(Challenge(
                    scheme[1].lower(), params.get("realm", ""), params.get("service", ""), params.get("scope", ""),
                    params.get("error", ""),
                ))
    return found
