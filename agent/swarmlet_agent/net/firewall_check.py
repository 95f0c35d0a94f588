"""Does somebody else's firewall drop what we forward? Looked at once, at start, to say so instead of failing dumbly.

A host whose FORWARD policy is "drop" (Docker sets it, ufw and firewalld may) drops containers' packets whatever
our own table accepts: every base chain has a say.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec

_TIMEOUT_S = 10.0
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")


def dropping_chains(chains: Any) -> list[str]:
    """"family table chain" of each foreign base chain on the forward hook with policy drop.

    chains: what `nft -j list chains` prints.
    """
    found = []
    for item in chains.get("nftables", ()):
        chain = item.get("chain", {})
        ours = chain.get("family") in ("ip", "ip6") and chain.get("table") == "swl"
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and not ours:
            found.append(f"{chain['family']} {chain['table']} {chain['name']}")
    return found


async def find_dropping() -> list[str]:
    """Foreign chains that drop forwarded packets by policy. OSError, TimeoutError if that cannot be found out."""
    nft = shutil.which("nft")
    found: list[str] = []
    if nft is not None:
        output = await _output(nft, "-j", "list", "chains")
        if output:
            found += dropping_chains(msgspec.json.decode(output))
    legacy = shutil.which("iptables-legacy")
    tables = _LEGACY_TABLES.read_text(encoding="ascii").split() if _LEGACY_TABLES.exists() else []
    if legacy is not None and "filter" in tables:
        output = await _output(legacy, "-S", "FORWARD")
        if b"-P FORWARD DROP" in output:
            found.append("iptables-legacy filter FORWARD")
    return found


async def _output(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return output
