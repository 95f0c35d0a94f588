"""rtnetlink messages of overlay networks: VXLAN devices, and where in the cluster an address is. Pure.

Layouts: linux/if_link.h (IFLA_VXLAN_…, IFLA_BRPORT_…) and linux/neighbour.h. Nothing is learnt and nothing unknown is
flooded: an address leads exactly where the cluster's state says.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet_agent.net.netlink import (
    IFLA_ADDRESS,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_NEWLINK,
    Message,
    attr,
    attributes,
    family_of,
    mac_bytes,
    nested,
    new_link,
)

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_IFLA_VXLAN_ID, _IFLA_VXLAN_LOCAL, _IFLA_VXLAN_LEARNING, _IFLA_VXLAN_PORT, _IFLA_VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_BRPORT_LEARNING, _BRPORT_UNICAST_FLOOD, _BRPORT_MCAST_FLOOD, _BRPORT_BCAST_FLOOD, _BRPORT_NEIGH_SUPPRESS = (
    8, 9, 27, 30, 32,
)  # fmt: skip
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_NTF_SELF, _NTF_MASTER = 2, 4
_NUD_REACHABLE, _NUD_NOARP, _NUD_PERMANENT = 0x02, 0x40, 0x80
AF_BRIDGE = 7
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_IFINFO = struct.Struct("=BxHiII")

Address = IPv4Address | IPv6Address


def new_vxlan(
    name: str, *, vni: int, local: Address, mac: str, mtu: int, group: int, port: int = DATA_PATH_PORT
) -> Message:
    """A VXLAN device, down. local: this node's address, from which its packets go out; port: every node's (UDP)."""
    key = _IFLA_VXLAN_LOCAL if local.version == 4 else _IFLA_VXLAN_LOCAL6
    info = attr(_IFLA_VXLAN_ID, struct.pack("=I", vni)) + attr(key, local.packed)
    info += attr(_IFLA_VXLAN_LEARNING, b"\0") + attr(_IFLA_VXLAN_PORT, struct.pack("!H", port))
    more = attr(IFLA_ADDRESS, mac_bytes(mac)) + attr(IFLA_MTU, struct.pack("=I", mtu))
    return new_link("vxlan", name, group=group, info=info, more=more)


def set_port(index: int) -> Message:
    """The VXLAN device as its bridge's port: the bridge answers for remote addresses itself (ARP and ND suppression),
    and sends there only what is known to be there."""
    flags = (
        (_BRPORT_LEARNING, 0), (_BRPORT_UNICAST_FLOOD, 0), (_BRPORT_MCAST_FLOOD, 0), (_BRPORT_BCAST_FLOOD, 0),
        (_BRPORT_NEIGH_SUPPRESS, 1),
    )  # fmt: skip
    data = b"".join(attr(key, bytes([value])) for key, value in flags)
    body = _IFINFO.pack(0, 0, index, 0, 0)
    body += nested(IFLA_LINKINFO, attr(IFLA_INFO_SLAVE_KIND, b"bridge"), nested(IFLA_INFO_SLAVE_DATA, data))
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"setting VXLAN device {index} as a bridge port")


def add_remote(vxlan: int, bridge: int, *, address: Address, mac: str, node: Address) -> tuple[Message, Message]:
    """An endpoint on another node: which node has its MAC, and which MAC its address has. Replaces what is there."""
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    # Both tables at once: the VXLAN device's (SELF) and its bridge's (MASTER). Not PERMANENT: to a bridge that means
    # an address of its own. NOARP keeps both from ageing.
    state = _NUD_REACHABLE | _NUD_NOARP
    forward = _NDMSG.pack(AF_BRIDGE, vxlan, state, _NTF_SELF | _NTF_MASTER, 0)
    forward += attr(_NDA_LLADDR, mac_bytes(mac)) + attr(_NDA_DST, node.packed)
    neighbour = _NDMSG.pack(family_of(address), bridge, _NUD_PERMANENT, 0, 0)
    neighbour += attr(_NDA_DST, address.packed) + attr(_NDA_LLADDR, mac_bytes(mac))
    return (
        Message(RTM_NEWNEIGH, flags, forward, f"leading {mac} to node {node}"),
        Message(RTM_NEWNEIGH, flags, neighbour, f"naming {mac} the neighbour {address}"),
    )


def neighbours_query(family: int, index: int) -> bytes:
    """Body of a listing (RTM_GETNEIGH) of one link's neighbours, or with AF_BRIDGE its forwarding entries."""
    return _NDMSG.pack(family, 0, 0, 0, 0) + attr(_NDA_IFINDEX, struct.pack("=I", index))


def parse_forward(body: bytes) -> str | None:
    """The MAC of a forwarding entry as `add_remote` writes it; None for others, such as the device's own."""
    _, _, state, _, _ = _NDMSG.unpack_from(body)
    mac = dict(attributes(body, _NDMSG.size)).get(_NDA_LLADDR, b"")
    return mac.hex(":") if state & _NUD_NOARP and not state & _NUD_PERMANENT else None


def parse_neighbour(body: bytes) -> Address | None:
    """The address of a neighbour as `add_remote` writes it; None for those that the kernel has found by itself."""
    _, _, state, _, _ = _NDMSG.unpack_from(body)
    address = dict(attributes(body, _NDMSG.size)).get(_NDA_DST, b"")
    return ip_address(address) if state & _NUD_PERMANENT and address else None


def remove_remote(vxlan: int, bridge: int, *, address: Address, mac: str) -> tuple[Message, Message]:
    return remove_forward(vxlan, mac), remove_neighbour(bridge, address)


def remove_forward(vxlan: int, mac: str) -> Message:
    """From both tables."""
    body = _NDMSG.pack(AF_BRIDGE, vxlan, 0, _NTF_SELF | _NTF_MASTER, 0) + attr(_NDA_LLADDR, mac_bytes(mac))
    return Message(RTM_DELNEIGH, NLM_F_ACK, body, f"forgetting where {mac} is")


def remove_neighbour(bridge: int, address: Address) -> Message:
    body = _NDMSG.pack(family_of(address), bridge, 0, 0, 0) + attr(_NDA_DST, address.packed)
    return Message(RTM_DELNEIGH, NLM_F_ACK, body, f"forgetting the neighbour {address}")
