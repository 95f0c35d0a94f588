"""Other firewalls on the host: those that drop what we forward are found, ours and harmless ones are not."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest
from net_lab import Lab, in_own_network

from swarmlet_agent.net.firewall_check import find_dropping
from swarmlet_agent.net.mesh.rules import ruleset as mesh_ruleset
from swarmlet_agent.net.plan_rules import ruleset

pytestmark = pytest.mark.kernel

#: As `nft list ruleset` shows what each has made of the host.
UFW = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"
FIREWALLD = """table inet firewalld {
  chain filter_FORWARD { type filter hook forward priority 10; policy accept;
    ct state established,related accept
    ct state invalid drop
    reject with icmpx type admin-prohibited
  }
}"""
HARMLESS = """table inet site {
  chain forward { type filter hook forward priority 0; policy accept;
    ip saddr 192.0.2.0/24 drop
    counter
  }
  chain incoming { type filter hook input priority 0; policy drop; }
}"""


async def load(text: str) -> None:
    await asyncio.to_thread(subprocess.run, ["nft", "-f", "-"], input=text, text=True, check=True)


@in_own_network
async def test_only_foreign_chains_that_drop_are_found(lab: Lab) -> None:
    assert await find_dropping() == []
    await load(HARMLESS)
    await load(ruleset([], []))
    await load(mesh_ruleset(4))
    assert await find_dropping() == []
    await load(UFW)
    await load(FIREWALLD)
    assert sorted(await find_dropping()) == ["inet firewalld filter_FORWARD", "ip filter FORWARD"]


@in_own_network
async def test_a_policy_set_by_iptables_is_found(lab: Lab) -> None:
    if shutil.which("iptables") is None:
        pytest.skip("the package iptables is not installed")
    await asyncio.to_thread(subprocess.run, ["iptables", "-P", "FORWARD", "DROP"], check=True)
    found = await find_dropping()
    assert len(found) == 1 and found[0].endswith("filter FORWARD")
    await asyncio.to_thread(subprocess.run, ["iptables", "-P", "FORWARD", "ACCEPT"], check=True)
    assert await find_dropping() == []
