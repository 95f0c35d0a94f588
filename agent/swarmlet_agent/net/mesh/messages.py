"""rtnetlink messages of the mesh: its neighbours, routes and routing rules, written and read. Pure.

Layouts: linux/neighbour.h, rtnetlink.h, fib_rules.h.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from swarmlet_agent.net.mesh.plan import (
    AFTER_AT,
    DEVICE,
    ENTRY_AT,
    PROTOCOL,
    VNI,
    Address,
    Device,
    Neighbour,
    Route,
    Rule,
)
from swarmlet_agent.net.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_TABLE,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    Message,
    attr,
    attributes,
    family_of,
    mac_bytes,
)
from swarmlet_agent.net.overlay.messages import AF_BRIDGE, RTM_DELNEIGH, RTM_NEWNEIGH, new_vxlan

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_SELF = 2
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 4, 6, 10, 15, 16, 21
_TO_TABLE, _GOTO, _NOP = 1, 2, 3
_ONLINK = 4
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, -, -, action, flags
_VERSION = {AF_INET: 4, AF_INET6: 6}
_FAMILY = {4: AF_INET, 6: AF_INET6}


def new_device(device: Device, group: int) -> Message:
    """`ing0`, down. It learns nothing: where a MAC is, is written from the cluster's state."""
    local = ip_address(device.local)
    return new_vxlan(DEVICE, vni=VNI, local=local, mac=device.mac, mtu=device.mtu, group=group, port=device.port)


def add_neighbour(index: int, neighbour: Neighbour) -> Message:
    return Message(
        RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, _neighbour(index, neighbour),
        f"leading {neighbour.address} to {neighbour.mac}",
    )


def remove_neighbour(index: int, neighbour: Neighbour) -> Message:
    return Message(RTM_DELNEIGH, NLM_F_ACK, _neighbour(index, neighbour), f"forgetting {neighbour.address}")


def _neighbour(index: int, neighbour: Neighbour) -> bytes:
    if neighbour.underlay:
        body = _NDMSG.pack(AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
    else:
        body = _NDMSG.pack(family_of(neighbour.address), index, _NUD_PERMANENT, 0, 0)
    return body + attr(_NDA_DST, neighbour.address.packed) + attr(_NDA_LLADDR, mac_bytes(neighbour.mac))


NEIGHBOUR_FAMILIES = (AF_BRIDGE, AF_INET, AF_INET6)


def parse_neighbour(body: bytes) -> Neighbour | None:
    """None for what we would not have written (a multicast group's, one that was looked for)."""
    family, _, state, _, _ = _NDMSG.unpack_from(body)
    found = dict(attributes(body, _NDMSG.size))
    if not state & _NUD_PERMANENT or _NDA_DST not in found or len(found.get(_NDA_LLADDR, b"")) != 6:
        return None
    return Neighbour(found[_NDA_LLADDR].hex(":"), ip_address(found[_NDA_DST]), underlay=family == AF_BRIDGE)


def add_route(index: int, route: Route) -> Message:
    return Message(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, _route(index, route), f"adding {route}")


def remove_route(index: int, route: Route) -> Message:
    return Message(RTM_DELROUTE, NLM_F_ACK, _route(index, route), f"removing {route}")


def _route(index: int, route: Route) -> bytes:
    length = 0 if route.to is None else route.to.max_prefixlen
    family = family_of(route.gateway)
    body = _RTMSG.pack(family, length, 0, 0, 0, PROTOCOL, 0, RTN_UNICAST, _ONLINK)
    if route.to is not None:
        body += attr(RTA_DST, route.to.packed)
    body += attr(RTA_GATEWAY, route.gateway.packed) + attr(RTA_OIF, struct.pack("=I", index))
    return body + attr(RTA_TABLE, struct.pack("=I", route.table))


def routes_query(version: int) -> bytes:
    """All tables' routes of our protocol."""
    return _RTMSG.pack(_FAMILY[version], 0, 0, 0, 0, PROTOCOL, 0, 0, 0)


def parse_route(body: bytes) -> Route | None:
    """None for what is not of our making."""
    family, length, _, _, _, protocol, *_ = _RTMSG.unpack_from(body)
    found = dict(attributes(body, _RTMSG.size))
    if family not in _VERSION or protocol != PROTOCOL or RTA_GATEWAY not in found or RTA_TABLE not in found:
        return None
    to: Address | None = ip_address(found[RTA_DST]) if length and RTA_DST in found else None
    return Route(int.from_bytes(found[RTA_TABLE], "little"), ip_address(found[RTA_GATEWAY]), to)


def add_rule(rule: Rule) -> Message:
    return Message(RTM_NEWRULE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, _rule(rule), f"adding {rule}")


def remove_rule(rule: Rule) -> Message:
    return Message(RTM_DELRULE, NLM_F_ACK, _rule(rule), f"removing {rule}")


def _rule(rule: Rule) -> bytes:
    action = _TO_TABLE if rule.table else _GOTO if rule.goto else _NOP
    body = _RULE.pack(_FAMILY[rule.family], 0, 0, 0, 0, 0, 0, action, 0)
    body += attr(_FRA_PRIORITY, struct.pack("=I", rule.at)) + attr(_FRA_PROTOCOL, bytes([PROTOCOL]))
    if rule.mask:
        body += attr(_FRA_FWMARK, struct.pack("=I", rule.mark)) + attr(_FRA_FWMASK, struct.pack("=I", rule.mask))
    if rule.table:
        body += attr(_FRA_TABLE, struct.pack("=I", rule.table))
    if rule.goto:
        body += attr(_FRA_GOTO, struct.pack("=I", rule.goto))
    return body


def rules_query(version: int) -> bytes:
    return _RULE.pack(_FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)


def parse_rule(body: bytes) -> Rule | None:
    """None for what is not of our making."""
    family, *_, action, _ = _RULE.unpack_from(body)
    found = {key: int.from_bytes(value, "little") for key, value in attributes(body, _RULE.size)}
    at = found.get(_FRA_PRIORITY, 0)
    if family not in _VERSION or found.get(_FRA_PROTOCOL) != PROTOCOL or not ENTRY_AT <= at <= AFTER_AT:
        return None
    return Rule(
        _VERSION[family], at, found.get(_FRA_FWMARK, 0), found.get(_FRA_FWMASK, 0),
        found.get(_FRA_TABLE, 0) if action == _TO_TABLE else 0, found.get(_FRA_GOTO, 0) if action == _GOTO else 0,
    )
