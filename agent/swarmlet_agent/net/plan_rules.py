"""The host's nftables rules as text. Pure; applied by the kernel rim.

One table, `ip swl`, in the agent's network namespace; nobody else's table is touched. Rules are static and
loaded once; networks and published ports are elements of its sets and maps, so the cost of a packet does not
grow with their number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from swarmlet_agent.net.plan_ports import ANY
from swarmlet_agent.net.records import NetworkRecord, PortRecord

TABLE = "ip swl"
#: In every container's namespace with embedded DNS.
DNS_ADDRESS = "127.0.0.11"

# A bridged packet's input interface is not known in postrouting, so a hairpin is told by its addresses.
# nft 1.0.6 refuses the word "dstnat" in the output hook: hence -100.
# route_localnet is on for our bridges (127.0.0.1 publishing): `guard` keeps containers off the host's loopback.
_RULES = """
  set masq { type ipv4_addr; flags interval; }
  set hair { type ipv4_addr . ipv4_addr; flags interval; }
  set br { type ifname; }
  set internal { type ifname; }
  set same { type ifname . ifname; }
  map pub { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
  map pubany { type inet_proto . inet_service : ipv4_addr . inet_service; }
  chain guard { type filter hook prerouting priority -300; policy accept;
    iifname @br ip daddr 127.0.0.0/8 drop; }
  chain pubs {
    dnat ip to ip daddr . meta l4proto . th dport map @pub
    dnat ip to meta l4proto . th dport map @pubany
  }
  chain pre { type nat hook prerouting priority -100; policy accept; fib daddr type local jump pubs; }
  chain out { type nat hook output priority -100; policy accept; fib daddr type local jump pubs; }
  chain post { type nat hook postrouting priority 100; policy accept;
    ct status dnat ip saddr . ip daddr @hair masquerade
    ip saddr 127.0.0.0/8 oifname @br masquerade
    oifname != @br ip saddr @masq masquerade; }
  chain f { type filter hook forward priority 0; policy accept;
    ct state established,related accept
    iifname . oifname @same accept
    iifname @internal drop
    ct status dnat accept
    oifname @br drop; }
"""


def ruleset(networks: Iterable[NetworkRecord], ports: Iterable[PortRecord]) -> str:
    """The whole table with its elements, replacing what is there in one transaction: no packet sees a gap."""
    parts = [f"table {TABLE} {{}}", f"delete table {TABLE}", f"table {TABLE} {{{_RULES}}}"]
    parts += [add_network(network) for network in networks if network.bridge]
    parts += [add_ports(list(ports))]
    return "\n".join(part for part in parts if part)


def no_ruleset() -> str:
    """Remove the table; not there is fine."""
    return f"table {TABLE} {{}}\ndelete table {TABLE}"


def add_network(network: NetworkRecord) -> str:
    return _network("add", network)


def remove_network(network: NetworkRecord) -> str:
    return _network("delete", network)


def add_ports(ports: Collection[PortRecord]) -> str:
    """"" for no ports."""
    return "\n".join(f"add element {TABLE} {_port_key(port)} : {port.target_ip} . {port.port} }}" for port in ports)


def remove_ports(ports: Collection[PortRecord]) -> str:
    return "\n".join(f"delete element {TABLE} {_port_key(port)} }}" for port in ports)


def dns_ruleset(port: int) -> str:
    """For a container's own namespace: 127.0.0.11:53 leads to the agent's sockets, port 53 stays free."""
    return (
        f"table {TABLE} {{ chain dns {{ type nat hook output priority -100; policy accept; "
        f"ip daddr {DNS_ADDRESS} udp dport 53 dnat to {DNS_ADDRESS}:{port}; "
        f"ip daddr {DNS_ADDRESS} tcp dport 53 dnat to {DNS_ADDRESS}:{port}; }}; }}"
    )


def _network(verb: str, network: NetworkRecord) -> str:
    name, subnet = f'"{network.bridge}"', network.subnet
    elements = [("br", name), ("same", f"{name} . {name}"), ("hair", f"{subnet} . {subnet}")]
    if network.internal:
        elements.append(("internal", name))
    elif network.masquerade:
        elements.append(("masq", subnet))
    return "\n".join(f"{verb} element {TABLE} {where} {{ {what} }}" for where, what in elements)


def _port_key(port: PortRecord) -> str:
    if port.host_ip == ANY:
        return f"pubany {{ {port.protocol} . {port.host_port}"
    return f"pub {{ {port.host_ip} . {port.protocol} . {port.host_port}"
