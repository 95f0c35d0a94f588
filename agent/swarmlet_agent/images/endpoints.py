"""Where a registry is: its address, whether plain HTTP is allowed there, and mirrors of Docker Hub."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.reference import DOCKER_HUB

_HUB_HOST = "registry-1.docker.io"
_LOOKUP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """host[:port]; insecure: HTTPS is not verified and HTTP is tried after it."""

    host: str
    insecure: bool = False
    scheme: str = "https"
    prefix: str = ""
    is_mirror: bool = False


async def endpoints_of(domain: str, insecure: Sequence[str], mirrors: Sequence[str]) -> list[Endpoint]:
    """Best first. A name is looked up only if a network range could make it insecure."""
    if domain == DOCKER_HUB:
        return [*(_mirror(url) for url in mirrors), Endpoint(_HUB_HOST)]
    return [Endpoint(domain, is_insecure(domain, await _addresses(domain, insecure), insecure))]


def is_insecure(domain: str, addresses: Sequence[str], insecure: Sequence[str]) -> bool:
    """Whether `host[:port]`, or one of its addresses, is listed: by name, or inside a CIDR range. Pure."""
    host = _host(domain)
    if domain in insecure or host in insecure:
        return True
    for entry in insecure:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            continue
        for address in (host, *addresses):
            try:
                if ipaddress.ip_address(address) in network:
                    return True
            except ValueError:
                continue
    return False


def check_registries(insecure: Sequence[str], mirrors: Sequence[str]) -> None:
    """InvalidArgument for settings that cannot be meant."""
    for entry in insecure:
        if not entry or "://" in entry or any(char.isspace() for char in entry):
            raise InvalidArgument(f"insecure registry {entry!r} is not valid: expected host[:port] or a network range")
    for entry in mirrors:
        _mirror(entry)


def registry_config(insecure: Sequence[str], mirrors: Sequence[str]) -> dict[str, Any]:
    """SystemInfo.RegistryConfig: ranges, names and mirrors as they were set. Pure."""
    named = [entry for entry in insecure if not _is_range(entry)]
    shown_mirrors = [f"{url.rstrip('/')}/" for url in mirrors]
    return {
        "InsecureRegistryCIDRs": [entry for entry in insecure if _is_range(entry)],
        "IndexConfigs": {
            DOCKER_HUB: {"Name": DOCKER_HUB, "Mirrors": shown_mirrors, "Secure": True, "Official": True},
            **{name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False} for name in named},
        },
        "Mirrors": shown_mirrors,
    }


def _is_range(entry: str) -> bool:
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
    return "/" in entry


def _mirror(url: str) -> Endpoint:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or "@" in parts.netloc:
        raise InvalidArgument(f"invalid registry mirror {url!r}: expected http(s)://host[:port]")
    return Endpoint(parts.netloc, scheme=parts.scheme, prefix=parts.path.rstrip("/"), is_mirror=True)


def _host(domain: str) -> str:
    if domain.startswith("["):
        return domain[1:].partition("]")[0]
    return domain.partition(":")[0]


async def _addresses(domain: str, insecure: Sequence[str]) -> list[str]:
    """The addresses of a name; none if it is an address itself, or cannot be looked up (connecting will tell)."""
    host = _host(domain)
    if domain in insecure or host in insecure or not any("/" in entry for entry in insecure):
        return []
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return []
    try:
        async with asyncio.timeout(_LOOKUP_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]
