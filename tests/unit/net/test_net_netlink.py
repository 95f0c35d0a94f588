"""rtnetlink messages, byte by byte."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.net import netlink
from swarmlet_agent.net.netlink import Link, attr, attributes, encode, nested, parse_link, parse_route


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_survive_a_round_trip(given_: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attr(kind, data) for kind, data in given_)

    assert len(packed) % 4 == 0
    assert list(attributes(packed, 0)) == given_


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    for _, payload in attributes(data, 0):
        assert len(payload) <= len(data)


def test_a_message_carries_its_length_flags_and_sequence() -> None:
    data = encode(netlink.set_up(5), 77)

    assert struct.unpack_from("=IHHII", data) == (32, 16, 5, 77, 0)  # RTM_NEWLINK, REQUEST|ACK
    assert struct.unpack_from("=BxHiII", data, 16) == (0, 0, 5, 1, 1)


def test_a_veth_names_both_ends_and_the_namespace() -> None:
    message = netlink.new_veth(
        "vethx", bridge=7, mtu=1450, group=9, peer_name="eth0", peer_mac="02:42:0a:00:00:02", peer_netns_fd=12
    )
    outer = dict(attributes(message.body, 16))
    info = dict(attributes(outer[netlink.IFLA_LINKINFO], 0))
    peer = dict(attributes(dict(attributes(info[netlink.IFLA_INFO_DATA], 0))[netlink.VETH_INFO_PEER], 16))

    assert outer[netlink.IFLA_IFNAME] == b"vethx\0" and info[netlink.IFLA_INFO_KIND] == b"veth"
    assert struct.unpack("=I", outer[netlink.IFLA_MASTER]) == (7,)
    assert struct.unpack("=I", outer[netlink.IFLA_GROUP]) == (9,)
    assert peer[netlink.IFLA_IFNAME] == b"eth0\0" and peer[netlink.IFLA_ADDRESS] == bytes.fromhex("02420a000002")
    assert struct.unpack("=I", peer[netlink.IFLA_NET_NS_FD]) == (12,)
    assert struct.unpack("=I", peer[netlink.IFLA_MTU]) == struct.unpack("=I", outer[netlink.IFLA_MTU]) == (1450,)


def test_an_address_has_its_prefix_and_broadcast() -> None:
    message = netlink.add_address(3, IPv4Interface("10.1.2.3/20"))

    assert struct.unpack_from("=BBBBi", message.body) == (2, 20, 0, 0, 3)
    assert dict(attributes(message.body, 8)) == {
        netlink.IFA_LOCAL: bytes([10, 1, 2, 3]),
        netlink.IFA_ADDRESS: bytes([10, 1, 2, 3]),
        netlink.IFA_BROADCAST: bytes([10, 1, 15, 255]),
    }


def test_a_link_is_read_back() -> None:
    body = struct.pack("=BxHiII", 0, 0, 4, 1, 0) + attr(3, b"swl0\0") + attr(1, bytes.fromhex("0242ac110001"))
    body += attr(4, struct.pack("=I", 1500)) + attr(27, struct.pack("=I", 9)) + attr(10, struct.pack("=I", 2))
    body += nested(18, attr(1, b"bridge")) + attr(23, struct.pack("=24Q", *range(24)))

    assert parse_link(body) == Link(4, "swl0", True, 9, 2, "bridge", 1500, "02:42:ac:11:00:01", tuple(range(8)))


def test_routes_are_read_back_without_the_default_route() -> None:
    default = netlink.default_route(3, IPv4Address("10.0.0.1")).body
    subnet = struct.pack("=BBBBBBBBI", 2, 16, 0, 0, 254, 3, 0, 1, 0) + attr(1, bytes([10, 4, 0, 0]))

    assert parse_route(default) is None
    assert parse_route(subnet) == IPv4Network("10.4.0.0/16")


@pytest.mark.parametrize("text", ["", "02:42", "02:42:ac:11:00:zz", "02:42:ac:11:00:01:02"])
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MAC address|hexadecimal"):
        netlink.mac_bytes(text)
