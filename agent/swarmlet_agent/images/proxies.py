"""Which HTTP proxy a request goes through: the environment's HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as Go reads them.

aiohttp could look for itself (trust_env), but would then send what ~/.netrc has in place of a registry's token.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit


def proxy_for(url: str) -> str | None:
    """The proxy's URL by this process's environment; None to go there directly."""
    return choose_proxy(url, os.environ)


def choose_proxy(url: str, environ: Mapping[str, str]) -> str | None:
    """Pure. The host itself is never reached through a proxy."""
    parts = urlsplit(url)
    name = f"{parts.scheme}_proxy"
    proxy = environ.get(name.upper()) or environ.get(name, "")
    host = (parts.hostname or "").lower()
    address = _address(host)
    if not proxy or not host or host == "localhost" or (address is not None and address.is_loopback):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    excepted = environ.get("NO_PROXY") or environ.get("no_proxy", "")
    if any(_is_meant(entry.strip().lower(), host, port) for entry in excepted.split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def shown_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """SystemInfo's HttpProxy, HttpsProxy and NoProxy: what is set, credentials masked as dockerd does. Pure."""
    found = {key: environ.get(key) or environ.get(key.lower(), "") for key in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")}
    return {
        "HttpProxy": _masked(found["HTTP_PROXY"]), "HttpsProxy": _masked(found["HTTPS_PROXY"]),
        "NoProxy": found["NO_PROXY"],
    }


def _masked(url: str) -> str:
    scheme, mark, rest = url.rpartition("://")
    who, at, host = rest.rpartition("@")
    return f"{scheme}{mark}xxxxx:xxxxx@{host}" if at and who else url


def _is_meant(entry: str, host: str, port: int) -> bool:
    """An entry of NO_PROXY: "*", an address or a range of them, or a domain with those below it; perhaps a port."""
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and _address(entry) is None:
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*")
    if not entry:
        return False
    if address is not None:
        return _address(entry) == address
    return host == entry or host.endswith(f".{entry.removeprefix('.')}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
