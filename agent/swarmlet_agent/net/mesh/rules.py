"""The mesh's nftables rules as text, one table for each address family, loaded once. Pure.

What each chain is for:

* lb: a connection to a published port gets a backend, and the mark that routes it to the backend's node. The client's
  address stays. The connection's mark has the slot in it too, from here until post: the packet's is ENTRY alone.
* remember: on the backend's node, the connection remembers which node it came from; its answers go back there, for
  only that node can undo the translation. On the entry node, later packets get the mark of the first one again; again:
  those of the host's own clients.
* unmark: VXLAN's outer packet inherits the mark, and would be routed into the device again by our own rule.
* post: who is hidden behind the entry node. A client that is another node itself (the backend's node would take the
  answer to its own address for its own), the host's loopback, and containers (answers would go to them directly, past
  the entry node).
* none: a published port without backends refuses at once, whoever else listens there; on ::1 each one, for what goes
  there is led nowhere, and the agent holds the port by a socket that nobody serves. A packet that cannot be tracked
  (it lies outside the window) is not translated and arrives here too: refusing it would end the client's connection.
"""

from __future__ import annotations

from swarmlet_agent.net.mesh.plan import BACK, DEVICE, ENTRY
from swarmlet_agent.net.slots import SIZES, maps_text, no_table, rules_text

#: A changed ruleset needs a new number: a table of this name is taken to be as we made it.
TABLE = "swlmesh4"
#: What they were called before, by agents that this one may follow.
FORMER = ("swlmesh1", "swlmesh2", "swlmesh3")

# nft 1.0.6 refuses the word "dstnat" in the output hook: hence -100.
_RULES = f"""
  set ports {{ type inet_proto . inet_service; }}
  set oneports {{ type ipvV_addr . inet_proto . inet_service; }}
  map peer {{ type ether_addr : mark; }}
  set nodes {{ type ipvV_addr; }}
  set containers {{ type ipvV_addr; flags interval; }}
  chain lb_one {{
    ct mark set {ENTRY:#x} meta mark set {ENTRY:#x}
    LB_ONE
    ct mark set 0 meta mark set 0
  }}
  chain lb_any {{
    ct mark set {ENTRY:#x} meta mark set {ENTRY:#x}
    LB_ANY
    ct mark set 0 meta mark set 0
  }}
  chain lb {{
    IP daddr . meta l4proto . th dport @oneports goto lb_one
    meta l4proto . th dport @ports goto lb_any
  }}
  chain pre {{ type nat hook prerouting priority -100; policy accept;
    iifname != "{DEVICE}" fib daddr type local jump lb; }}
  chain out {{ type nat hook output priority -100; policy accept; NOT_LOOP fib daddr type local jump lb; }}
  chain remember {{ type filter hook prerouting priority -150; policy accept;
    iifname "{DEVICE}" ct direction original ct mark set ether saddr map @peer
    iifname != "{DEVICE}" ct direction original ct mark & {ENTRY:#x} != 0 meta mark set {ENTRY:#x}
    iifname != "{DEVICE}" ct direction reply ct mark & {BACK:#x} != 0 meta mark set ct mark; }}
  chain again {{ type route hook output priority -150; policy accept;
    ct direction original ct mark & {ENTRY:#x} != 0 meta mark set {ENTRY:#x}; }}
  chain post {{ type nat hook postrouting priority 100; policy accept;
    ct mark & {ENTRY:#x} == 0 accept
    ct mark set {ENTRY:#x}
    oifname "{DEVICE}" IP saddr @nodes masquerade
    LOOPBACK
    IP saddr @containers masquerade; }}
  chain unmark {{ type filter hook postrouting priority 200; policy accept;
    oifname "{DEVICE}" meta mark set 0; }}
  chain clamp {{ type filter hook postrouting priority -150; policy accept;
    oifname "{DEVICE}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu; }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain none {{ type filter hook input priority 0; policy accept;
    ct direction reply accept
    ct state invalid drop
    IP daddr . meta l4proto . th dport @oneports goto refuse
    meta l4proto . th dport @ports goto refuse; }}
"""
# The device lets packets of 127.0.0.0/8 through, for the host's own clients of 127.0.0.1: not for other nodes'.
_ONLY_4 = f"""
  chain guard {{ type filter hook prerouting priority -300; policy accept;
    iifname "{DEVICE}" ip daddr 127.0.0.0/8 drop; }}
"""


def ruleset(family: int) -> str:
    """One family's table, without elements, in the place of the one of its name."""
    ip = "ip" if family == 4 else "ip6"
    rules = _RULES.replace("ipvV", f"ipv{family}").replace("IP ", f"{ip} ")
    # What goes to ::1 stays local: IPv6 knows no route_localnet.
    rules = rules.replace("NOT_LOOP ", "" if family == 4 else "ip6 daddr != ::1 ")
    rules = rules.replace("LOOPBACK", "ip saddr 127.0.0.0/8 masquerade" if family == 4 else "")
    port = "meta l4proto . th dport"
    maps = []
    for name, place, key in (("any", "LB_ANY", port), ("one", "LB_ONE", f"{ip} daddr . {port}")):
        rules = rules.replace(place, "\n    ".join(rules_text(f"dnat {ip} to", key, name, ENTRY)))
        maps += maps_text(key, name, f"{ip} daddr . th dport")
    whole = "\n  ".join(maps) + rules + (_ONLY_4 if family == 4 else "")
    return f"{no_table(family, TABLE)}table {ip} {TABLE} {{\n  {whole}\n}}\n"


#: Names of all that has elements.
SETS = (
    "ports", "oneports", "peer", "nodes", "containers", *(f"{name}{size}" for name in ("any", "one") for size in SIZES),
)
