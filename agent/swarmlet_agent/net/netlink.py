"""A small rtnetlink client: just the messages that attaching a container needs.

Messages are built as bytes by pure functions (struct layouts from linux/rtnetlink.h, if_link.h, veth.h,
neighbour.h) and sent many at a time: the kernel answers each with an acknowledgement before `send` returns,
so one system call does a container's whole set-up. A general netlink library costs about ten times as much.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from swarmlet.errors import Internal

NETLINK_ROUTE = 0
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 20, 24, 25, 26
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE, NLM_F_REPLACE = 1, 4, 0x300, 0x200, 0x400, 0x100
NLMSG_ERROR, NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_STATS64, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 23, 27, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
VETH_INFO_PEER = IFLA_MACVLAN_MODE = IFLA_VLAN_ID = IFLA_IPVLAN_MODE = 1
IFLA_IPVLAN_FLAGS = 2
_NESTED = 0x8000
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
#: No gateway in between.
_SCOPE_LINK = 253
#: Leave statistics out of a dump of links.
_RTEXT_FILTER_SKIP_STATS = 8

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
_ATTR = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Message:
    """One request: the body after the netlink header, and what to call it in an error."""

    kind: int
    flags: int
    body: bytes
    purpose: str


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel reports it. master 0: none. counters: rtnl_link_stats64 in order."""

    index: int
    name: str
    up: bool
    group: int
    master: int
    kind: str
    mtu: int
    mac: str
    counters: tuple[int, ...] = ()


class NetlinkError(Internal):
    """The kernel refused a message. `code` is the errno."""

    def __init__(self, code: int, purpose: str, detail: str = "") -> None:
        super().__init__(f"{purpose}: {os.strerror(code)}" + (f" ({detail})" if detail else ""))
        self.code = code


def attr(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTR.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attr(kind | _NESTED, b"".join(attributes))


def _u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def mac_bytes(mac: str) -> bytes:
    """Six bytes of "02:42:…". ValueError if it is no MAC address."""
    data = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    if len(data) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return data


def encode(message: Message, sequence: int) -> bytes:
    """The bytes to send."""
    length = _HEADER.size + len(message.body)
    flags = message.flags | NLM_F_REQUEST
    return _HEADER.pack(length, message.kind, flags, sequence, 0) + message.body + b"\0" * (-length % 4)


def new_bridge(name: str, *, mac: str, mtu: int, group: int) -> Message:
    """A bridge, down. Its MAC is pinned: an unpinned one follows its lowest port and neighbours lose it."""
    body = _IFINFO.pack(0, 0, 0, 0, 0)
    body += _text(IFLA_IFNAME, name) + attr(IFLA_ADDRESS, mac_bytes(mac))
    body += _u32(IFLA_MTU, mtu) + _u32(IFLA_GROUP, group)
    body += nested(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"bridge"))
    return Message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, f"creating bridge {name}")


def new_veth(
    name: str, *, bridge: int, mtu: int, group: int, peer_name: str, peer_mac: str, peer_netns_fd: int
) -> Message:
    """A veth pair in one message: our end up and in the bridge, the other end in the container's namespace."""
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, peer_name) + attr(IFLA_ADDRESS, mac_bytes(peer_mac))
    peer += _u32(IFLA_MTU, mtu) + _u32(IFLA_NET_NS_FD, peer_netns_fd)
    info = nested(IFLA_INFO_DATA, attr(VETH_INFO_PEER, peer))
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + _u32(IFLA_MTU, mtu)
    body += _u32(IFLA_MASTER, bridge) + _u32(IFLA_GROUP, group)
    body += nested(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"veth"), info)
    return Message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, f"creating veth {name}")


def new_link(kind: str, name: str, *, group: int, info: bytes = b"", more: bytes = b"") -> Message:
    """A link of some kind, down. info: the kind's own attributes; more: others."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _u32(IFLA_GROUP, group) + more
    data = (nested(IFLA_INFO_DATA, info),) if info else ()
    body += nested(IFLA_LINKINFO, attr(IFLA_INFO_KIND, kind.encode()), *data)
    return Message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, f"creating {kind} {name}")


def new_pair(name: str, other: str, *, group: int) -> Message:
    """A veth pair with both ends here, down."""
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, other) + _u32(IFLA_GROUP, group)
    return new_link("veth", name, group=group, info=attr(VETH_INFO_PEER, peer))


def new_vlan(name: str, *, below: int, number: int, group: int) -> Message:
    """A VLAN of the link `below`, down."""
    info = attr(IFLA_VLAN_ID, struct.pack("=H", number))
    return new_link("vlan", name, group=group, info=info, more=_u32(IFLA_LINK, below))


def new_macvlan(
    name: str, *, parent: int, mode: int, group: int, mac: str = "", netns_fd: int | None = None
) -> Message:
    """A macvlan of a link of this namespace, down; netns_fd: in that namespace."""
    more = _u32(IFLA_LINK, parent)
    if mac:
        more += attr(IFLA_ADDRESS, mac_bytes(mac))
    if netns_fd is not None:
        more += _u32(IFLA_NET_NS_FD, netns_fd)
    return new_link("macvlan", name, group=group, info=_u32(IFLA_MACVLAN_MODE, mode), more=more)


def new_ipvlan(name: str, *, parent: int, mode: int, flag: int, group: int, netns_fd: int | None = None) -> Message:
    """An ipvlan of a link of this namespace, down; netns_fd: in that namespace. Mode and flag are 16 bits wide."""
    more = _u32(IFLA_LINK, parent)
    if netns_fd is not None:
        more += _u32(IFLA_NET_NS_FD, netns_fd)
    info = attr(IFLA_IPVLAN_MODE, struct.pack("=H", mode)) + attr(IFLA_IPVLAN_FLAGS, struct.pack("=H", flag))
    return new_link("ipvlan", name, group=group, info=info, more=more)


def set_bridge_port(name: str, *, hairpin: bool, isolated: bool) -> Message:
    """A port's flags. isolated: no frames to or from other isolated ports (inter-container traffic off)."""
    data = attr(IFLA_BRPORT_MODE, bytes([hairpin])) + attr(IFLA_BRPORT_ISOLATED, bytes([isolated]))
    info = nested(IFLA_LINKINFO, attr(IFLA_INFO_SLAVE_KIND, b"bridge"), nested(IFLA_INFO_SLAVE_DATA, data))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + info
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"setting bridge port {name}")


def set_up(index: int) -> Message:
    return Message(RTM_NEWLINK, NLM_F_ACK, _IFINFO.pack(0, 0, index, IFF_UP, IFF_UP), f"setting link {index} up")


def set_mtu(index: int, mtu: int) -> Message:
    body = _IFINFO.pack(0, 0, index, 0, 0) + _u32(IFLA_MTU, mtu)
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"setting the MTU of link {index} to {mtu}")


def set_group(index: int, group: int) -> Message:
    body = _IFINFO.pack(0, 0, index, 0, 0) + _u32(IFLA_GROUP, group)
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"setting the group of link {index}")


def set_master(index: int, master: int) -> Message:
    """Put a link into a bridge."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + _u32(IFLA_MASTER, master)
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"putting link {index} into bridge {master}")


def delete_link(index: int) -> Message:
    """Waits for a grace period of the kernel (about 20 ms) and holds its lock: never on the way of an attach."""
    return Message(RTM_DELLINK, NLM_F_ACK, _IFINFO.pack(0, 0, index, 0, 0), f"deleting link {index}")


def family_of(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def add_address(index: int, address: IPv4Interface | IPv6Interface) -> Message:
    """An address with its prefix length; there already is fine. An IPv6 one is usable at once: nobody else has it."""
    packed = address.ip.packed
    body = _IFADDR.pack(family_of(address.ip), address.network.prefixlen, 0, 0, index)
    body += attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    if address.version == 6:
        body += _u32(IFA_FLAGS, _IFA_F_NODAD)
    elif address.network.prefixlen < 31:
        body += attr(IFA_BROADCAST, address.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body, f"adding address {address}")


def default_route(index: int, gateway: IPv4Address | IPv6Address) -> Message:
    """The default route (there already is fine: it is replaced). Unspecified gateway: all is right behind the link."""
    direct = gateway.is_unspecified
    scope = _SCOPE_LINK if direct else 0
    body = _RTMSG.pack(family_of(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    body += (b"" if direct else attr(RTA_GATEWAY, gateway.packed)) + _u32(RTA_OIF, index)
    return Message(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body, f"adding the route via {gateway}")


def host_route(index: int, address: IPv4Address | IPv6Address) -> Message:
    """The route to one address that is right behind a link, in the place of one there is."""
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return Message(RTM_NEWROUTE, flags, _host_route(index, address), f"adding the route to {address}")


def remove_host_route(index: int, address: IPv4Address | IPv6Address) -> Message:
    return Message(RTM_DELROUTE, NLM_F_ACK, _host_route(index, address), f"removing the route to {address}")


def _host_route(index: int, address: IPv4Address | IPv6Address) -> bytes:
    length = address.max_prefixlen
    body = _RTMSG.pack(family_of(address), length, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, _SCOPE_LINK, RTN_UNICAST, 0)
    return body + attr(RTA_DST, address.packed) + _u32(RTA_OIF, index)


def attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """(type without flags, payload) of each attribute from offset on."""
    while offset + 4 <= len(data):
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse_link(body: bytes) -> Link:
    """A Link from the body of an RTM_NEWLINK."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    name = kind = mac = ""
    group = master = mtu = 0
    counters: tuple[int, ...] = ()
    for number, payload in attributes(body, _IFINFO.size):
        match number:
            case 3:
                name = payload.rstrip(b"\0").decode()
            case 1:
                mac = payload.hex(":")
            case 4:
                mtu = int.from_bytes(payload, "little")
            case 10:
                master = int.from_bytes(payload, "little")
            case 27:
                group = int.from_bytes(payload, "little")
            case 23:
                counters = struct.unpack_from("=8Q", payload)
            case 18:
                found = dict(attributes(payload, 0))
                kind = found.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
            case _:
                pass
    return Link(index, name, bool(flags & IFF_UP), group, master, kind, mtu, mac, counters)


def parse_route(body: bytes) -> IPv4Network | IPv6Network | None:
    """The destination of a route of any table; None for a default route and host-only answers."""
    family, length, *_ = _RTMSG.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6) or length == 0:
        return None
    for number, payload in attributes(body, _RTMSG.size):
        if number == RTA_DST:
            return IPv4Network((payload, length)) if family == socket.AF_INET else IPv6Network((payload, length))
    return None


class Netlink:
    """A netlink socket (rtnetlink, if not another protocol) of the network namespace its opener's thread is in.

    For one thread.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        # Acknowledgements are there when send returns; the bound is for a kernel that answers nothing.
        self._socket.settimeout(10)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[Message], *, ignore: frozenset[int] = frozenset()) -> None:
        """All messages in one system call, in order. NetlinkError for the first refused (the rest were tried too).

        ignore: errno values that are fine.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        self._socket.send(b"".join(encode(message, first + place) for place, message in enumerate(messages)))
        failure: NetlinkError | None = None
        missing = len(messages)
        while missing:
            for kind, _, sequence, body in split_messages(self._socket.recv(65536)):
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                missing -= 1
                code = -struct.unpack_from("=i", body)[0]
                if code and code not in ignore and failure is None:
                    failure = NetlinkError(code, messages[sequence - first].purpose, _explanation(body))
        if failure is not None:
            raise failure

    def links(self, *, counters: bool = False) -> list[Link]:
        """Every interface of this namespace."""
        body = _IFINFO.pack(0, 0, 0, 0, 0)
        if not counters:
            body += _u32(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
        request = Message(RTM_GETLINK, NLM_F_DUMP, body, "listing links")
        return [parse_link(answer) for answer in self._ask(request)]

    def link(self, name: str) -> Link | None:
        """One interface by name, None if there is none."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name)
        try:
            return parse_link(self._ask(Message(RTM_GETLINK, 0, body, f"looking up link {name}"))[0])
        except NetlinkError as err:
            if err.code == errno.ENODEV:
                return None
            raise

    def routes(self) -> list[IPv4Network | IPv6Network]:
        """Destinations of this namespace's routes (main table), without default routes."""
        answers = []
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + _u32(RTA_TABLE, RT_TABLE_MAIN)
            try:
                answers += self._ask(Message(RTM_GETROUTE, NLM_F_DUMP, body, "listing routes"))
            except NetlinkError:
                if family == socket.AF_INET:
                    raise  # a kernel without IPv6 has no such routes
        return [route for answer in answers if (route := parse_route(answer)) is not None]

    def get(self, kind: int, body: bytes, purpose: str) -> bytes:
        """The body of the one answer."""
        return self._ask(Message(kind, 0, body, purpose))[0]

    def dump(self, kind: int, body: bytes, purpose: str) -> list[bytes]:
        """The bodies of all answers to a listing."""
        return self._ask(Message(kind, NLM_F_DUMP, body, purpose))

    def _ask(self, message: Message) -> list[bytes]:
        self._sequence += 1
        wanted = self._sequence
        bodies: list[bytes] = []
        self._socket.send(encode(message, wanted))
        while True:
            for kind, _, sequence, body in split_messages(self._socket.recv(262144)):
                if sequence != wanted:
                    continue
                if kind == NLMSG_ERROR and (code := -struct.unpack_from("=i", body)[0]):
                    raise NetlinkError(code, message.purpose, _explanation(body))
                if kind == NLMSG_DONE:
                    return bodies
                bodies.append(body)
                if not message.flags & NLM_F_DUMP:
                    return bodies


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in what was received."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _explanation(body: bytes) -> str:
    """The kernel's own words in an extended acknowledgement, "" if it gave none."""
    # error code, then (capped) the request's header, then attributes; 1 = NLMSGERR_ATTR_MSG.
    for kind, payload in attributes(body, 4 + _HEADER.size):
        if kind == 1:
            return payload.rstrip(b"\0").decode(errors="replace")
    return ""
