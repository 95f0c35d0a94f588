"""Does somebody else's firewall drop what we forward? Looked at, to say so instead of failing dumbly.

A host whose FORWARD policy is "drop" (Docker sets it, ufw and firewalld may), or whose forward chain ends by refusing
everything (firewalld), drops containers' packets whatever our own tables accept: every base chain has a say.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from swarmlet_agent.commands import output_of

_TIMEOUT_S = 10.0
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")
#: The beginning of our tables' names.
_OURS = "swl"
#: Foreign chains whose rules are looked at, at most: each costs a process.
_MOST = 16
_REMEDIES = (
    ("firewalld", "firewall-cmd --permanent --zone=trusted --add-interface=swl0 --add-interface=ing0 (and the other "
                  "bridges), then firewall-cmd --reload"),
    ("ufw", "ufw default allow routed, or ufw route allow in on and out on the bridges of Swarmlet and ing0"),
    ("FORWARD", "iptables -P FORWARD ACCEPT, or where Docker runs too, accept packets of the bridges of Swarmlet and "
                "of ing0 in its chain DOCKER-USER (for IPv6: ip6tables)"),
)  # fmt: skip


def explain(chain: str) -> str:
    """What an operator is told of one chain."""
    return (
        f"another firewall drops forwarded packets ({chain}): containers do not reach the outside, and published ports "
        f"do not answer; {remedy(chain)}"
    )


def remedy(chain: str) -> str:
    """What to do about it."""
    return next((words for name, words in _REMEDIES if name in chain), "accept packets of the bridges of Swarmlet and "
                "of ing0 there, or set the chain's policy to accept")  # fmt: skip


def forward_chains(chains: Any) -> Iterator[tuple[str, str, str, str]]:
    """(family, table, chain, policy) of each foreign base chain on the forward hook.

    chains: what `nft -j list chains` prints.
    """
    for item in chains.get("nftables", ()):
        chain = item.get("chain", {})
        ours = chain.get("family") in ("ip", "ip6") and str(chain.get("table", "")).startswith(_OURS)
        if chain.get("hook") == "forward" and chain.get("family") in ("ip", "ip6", "inet") and not ours:
            yield chain["family"], chain["table"], chain["name"], chain.get("policy", "accept")


def refuses_at_last(chain: Any) -> bool:
    """Whether a chain ends with a rule that refuses whatever has come so far. chain: `nft -j list chain …`."""
    rules = [item["rule"] for item in chain.get("nftables", ()) if "rule" in item]
    words = [key for part in (rules[-1].get("expr", ()) if rules else ()) for key in part]
    return bool(words) and words[-1] in ("drop", "reject") and set(words) <= {"drop", "reject", "counter", "log"}


async def find_dropping() -> list[str]:
    """Foreign chains that drop forwarded packets. OSError, TimeoutError if that cannot be found out."""
    nft = shutil.which("nft")
    found: list[str] = []
    if nft is not None:
        output = await output_of(nft, "-j", "list", "chains", timeout_s=_TIMEOUT_S)
        chains = list(forward_chains(msgspec.json.decode(output))) if output else []
        for family, table, name, policy in chains[:_MOST]:
            if policy == "drop" or await _refuses(nft, family, table, name):
                found.append(f"{family} {table} {name}")
    legacy = shutil.which("iptables-legacy")
    tables = _LEGACY_TABLES.read_text(encoding="ascii").split() if _LEGACY_TABLES.exists() else []
    if legacy is not None and "filter" in tables:
        output = await output_of(legacy, "-S", "FORWARD", timeout_s=_TIMEOUT_S)
        if b"-P FORWARD DROP" in output:
            found.append("iptables-legacy filter FORWARD")
    return found


async def _refuses(nft: str, family: str, table: str, name: str) -> bool:
    output = await output_of(nft, "-j", "list", "chain", family, table, name, timeout_s=_TIMEOUT_S)
    return bool(output) and refuses_at_last(msgspec.json.decode(output))
