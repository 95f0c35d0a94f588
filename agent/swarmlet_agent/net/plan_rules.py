"""The host's nftables rules as text. Pure; applied by the kernel rim.

Two tables, `ip swl` and `ip6 swl`, in the agent's network namespace; nobody else's table is touched. Rules are static
and loaded once; networks and published ports are elements of its sets and maps, so the cost of a packet does not
grow with their number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from swarmlet.model.ways import SEALED_PORT
from swarmlet_agent.net.plan_ports import ANY_OF_ALL
from swarmlet_agent.net.records import NetworkRecord, PortRecord
from swarmlet_agent.net.wireguard.plan import PREFIX

TABLE, TABLE6 = "ip swl", "ip6 swl"
TABLES = (TABLE, TABLE6)
#: In every container's namespace with embedded DNS.
DNS_ADDRESS = "127.0.0.11"

# Packets of encrypted networks come and go by the encrypted ways alone: without one they are not sent at all, and what
# somebody sends past them is not heard.
# A stray lies outside its connection's window and is not translated: to the host itself, or with a container's address
# to a client outside, it would be answered with a reset, which ends the connection.
# A bridged packet's input interface is not known in postrouting, so a hairpin is told by its addresses.
# nft 1.0.6 refuses the word "dstnat" in the output hook: hence -100.
_RULES = """
  set masq { type FAM_addr; flags interval; }
  set hair { type FAM_addr . FAM_addr; flags interval; }
  set br { type ifname; }
  set internal { type ifname; }
  set same { type ifname . ifname; }
  set routed { type ifname; }
  set unprotected { type ifname; }
  set open { type FAM_addr . inet_proto . inet_service; }
  map pub { type FAM_addr . inet_proto . inet_service : FAM_addr . inet_service; }
  map pubany { type inet_proto . inet_service : FAM_addr . inet_service; }
  chain pubs {
    dnat IP to IP daddr . meta l4proto . th dport map @pub
    dnat IP to meta l4proto . th dport map @pubany
  }
  chain pre { type nat hook prerouting priority -100; policy accept; fib daddr type local jump pubs; }
  chain f { type filter hook forward priority 0; policy accept;
    ct state established,related accept
    oifname != @br IP saddr @masq STRAY drop
    iifname . oifname @same accept
    iifname "ing0" accept
    iifname @internal drop
    ct status dnat accept
    oifname @unprotected accept
    IP daddr . meta l4proto . th dport @open accept
    oifname @routed meta l4proto ECHO accept
    oifname @br drop; }
  chain strays { type filter hook input priority 0; policy accept; STRAY drop; }
  chain sealedin { type filter hook input priority 0; policy accept;
    udp dport SEALED iifname != "WAYS*" drop; }
  chain sealedout { type filter hook output priority 0; policy accept;
    udp dport SEALED oifname != "WAYS*" drop; }
"""
# route_localnet is on for our bridges (127.0.0.1 publishing): `guard` keeps containers off the host's loopback.
_ONLY_4 = """
  chain guard { type filter hook prerouting priority -300; policy accept;
    iifname @br ip daddr 127.0.0.0/8 drop; }
  chain out { type nat hook output priority -100; policy accept; fib daddr type local jump pubs; }
  chain post { type nat hook postrouting priority 100; policy accept;
    ct status dnat ip saddr . ip daddr @hair masquerade
    ip saddr 127.0.0.0/8 oifname @br masquerade
    oifname != @br ip saddr @masq masquerade; }
"""
# IPv6 knows no route_localnet: what goes to ::1 is left to the relay (net/relay.py).
_ONLY_6 = """
  chain out { type nat hook output priority -100; policy accept; ip6 daddr != ::1 fib daddr type local jump pubs; }
  chain post { type nat hook postrouting priority 100; policy accept;
    ct status dnat ip6 saddr . ip6 daddr @hair masquerade
    oifname != @br ip6 saddr @masq masquerade; }
"""


def _rules(family: str) -> str:
    echo = "icmp" if family == "ip" else "ipv6-icmp"
    text = _RULES.replace("STRAY", "meta l4proto tcp ct state invalid")
    text = text.replace("SEALED", str(SEALED_PORT)).replace("WAYS", PREFIX)
    return text.replace("FAM", f"ipv{family[2:] or 4}").replace("IP", family).replace("ECHO", echo)


def ruleset(networks: Iterable[NetworkRecord], ports: Iterable[PortRecord]) -> str:
    """Both tables with their elements, replacing what is there in one transaction: no packet sees a gap."""
    parts = []
    for table, own in ((TABLE, _ONLY_4), (TABLE6, _ONLY_6)):
        parts += [f"table {table} {{}}", f"delete table {table}", f"table {table} {{{_rules(table.split()[0])}{own}}}"]
    parts += [add_network(network) for network in networks]
    parts += [add_ports(list(ports))]
    return "\n".join(part for part in parts if part)


def without_ipv6(text: str) -> str:
    """What is left of any of this module's texts for a kernel that has no IPv6."""
    whole_table = re.compile(rf"^table {TABLE6} \{{\n.*?^\}}$", re.MULTILINE | re.DOTALL)
    lines = whole_table.sub("", text).splitlines()
    return "\n".join(line for line in lines if line and f" {TABLE6} " not in f"{line} ")


def no_ruleset() -> str:
    """Remove the tables; not there is fine."""
    return "\n".join(f"table {table} {{}}\ndelete table {table}" for table in TABLES)


def add_network(network: NetworkRecord) -> str:
    return _network("add", network)


def remove_network(network: NetworkRecord) -> str:
    return _network("delete", network)


def add_ports(ports: Collection[PortRecord]) -> str:
    """"" for no ports."""
    return "\n".join(
        f"add element {_port_key(port)}" + (f" : {port.target_ip} . {port.port} }}" if port.host_port else " }")
        for port in direct_ports(ports)
    )


def dns_ruleset(port: int) -> str:
    """For a container's own namespace: 127.0.0.11:53 leads to the agent's sockets, port 53 stays free."""
    return (
        f"table {TABLE} {{ chain dns {{ type nat hook output priority -100; policy accept; "
        f"ip daddr {DNS_ADDRESS} udp dport 53 dnat to {DNS_ADDRESS}:{port}; "
        f"ip daddr {DNS_ADDRESS} tcp dport 53 dnat to {DNS_ADDRESS}:{port}; }}; }}"
    )


def _network(verb: str, network: NetworkRecord) -> str:
    if not network.bridge:
        return ""
    name, lines = f'"{network.bridge}"', []
    parts = ((TABLE, network.subnet, network.reach4), (TABLE6, network.v6.subnet, network.reach6))
    for table, subnet, reach in parts:
        # The bridge is known to both tables: what is not the network's family is nobody's to forward.
        elements = [("br", name), ("same", f"{name} . {name}")]
        if network.internal:
            elements.append(("internal", name))
        if subnet:
            elements.append(("hair", f"{subnet} . {subnet}"))
            if network.masquerade and not network.internal and reach != "routed":
                elements.append(("masq", subnet))
            if reach in ("routed", "nat-unprotected"):
                elements.append(("routed" if reach == "routed" else "unprotected", name))
        lines += [f"{verb} element {table} {where} {{ {what} }}" for where, what in elements]
    return "\n".join(lines)


def direct_ports(ports: Iterable[PortRecord]) -> list[PortRecord]:
    """Those that the kernel's address translation leads to."""
    return [port for port in ports if port.direct]


def _port_key(port: PortRecord) -> str:
    table = TABLE6 if ":" in port.host_ip else TABLE
    if not port.host_port:
        return f"{table} open {{ {port.target_ip} . {port.protocol} . {port.port}"
    if port.host_ip in ANY_OF_ALL:
        return f"{table} pubany {{ {port.protocol} . {port.host_port}"
    return f"{table} pub {{ {port.host_ip} . {port.protocol} . {port.host_port}"
