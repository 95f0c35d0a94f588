"""Addresses of init and join: what a host is told to be reached at, and what a new cluster is to have."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument, NotSupported, SwarmletError
from swarmlet.wire.joining import Founding
from swarmlet_agent.addresses import (
    Address,
    advertised,
    data_path,
    founding_of,
    host_of,
    listening,
    with_port,
)
from swarmlet_agent.net.host_addresses import host_interfaces, mtu_of

INTERFACES: dict[str, tuple[Address, ...]] = {
    "eth0": (ip_address("192.0.2.1"), ip_address("2001:db8::1")), "six": (ip_address("2001:db8::2"),), "bare": (),
    "two": (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
}  # fmt: skip


def interfaces(name: str) -> Sequence[Address] | None:
    return INTERFACES.get(name)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", "198.51.100.9"), ("192.0.2.7", "192.0.2.7"), ("192.0.2.7:2377", "192.0.2.7"), ("eth0", "192.0.2.1"),
        ("eth0:2377", "192.0.2.1"), ("six", "2001:db8::2"), ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:2377", "2001:db8::7"),
    ],
)  # fmt: skip
def test_an_address_is_advertised_as_asked_for(text: str, address: str) -> None:
    assert advertised(text, lambda: "198.51.100.9", interfaces) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0", "must be a non-zero IP address"), ("[::]:2377", "must be a non-zero IP address"),
        ("1:2:3", "must be a non-zero IP address"), ("nope", "no such interface nope"),
        ("two", "more than one IPv4 address"), ("bare", "no usable IPv4 or IPv6 address"),
    ],
)  # fmt: skip
def test_an_address_that_nobody_can_reach_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        advertised(text, lambda: "198.51.100.9", interfaces)
    with pytest.raises(InvalidArgument, match=words):
        data_path(host_of(text), interfaces)


def test_without_a_default_route_an_address_must_be_named() -> None:
    with pytest.raises(InvalidArgument, match="--advertise-addr"):
        advertised("", lambda: "", interfaces)


def test_a_data_path_is_an_address_without_a_port() -> None:
    assert data_path("", interfaces) == ""
    assert data_path("192.0.2.7", interfaces) == "192.0.2.7"
    assert data_path("eth0", interfaces) == "192.0.2.1"
    with pytest.raises(InvalidArgument, match="without a port number"):
        data_path("192.0.2.7:4789", interfaces)


def test_the_loopback_has_no_address_for_others_but_is_an_interface() -> None:
    assert host_interfaces("lo") is not None and host_interfaces("no-such-link") is None
    assert mtu_of("127.0.0.1") > 1500 and mtu_of("192.0.2.77") == 0


def test_a_port_is_added_where_none_is() -> None:
    assert with_port("192.0.2.1", 2377) == "192.0.2.1:2377" and with_port("192.0.2.1:9", 2377) == "192.0.2.1:9"
    assert with_port("2001:db8::1", 2377) == with_port("[2001:db8::1]:2377", 9) == "[2001:db8::1]:2377"


@pytest.mark.parametrize(
    ("request_", "founding"),
    [
        ({}, Founding()), ({"DefaultAddrPool": None, "SubnetSize": 24, "DataPathPort": 0}, Founding()),
        ({"DefaultAddrPool": ["10.20.0.0/16", "10.30.0.0/16"], "SubnetSize": 26},
         Founding(address_pools=("10.20.0.0/16", "10.30.0.0/16"), subnet_size=26)),
        ({"DefaultAddrPool": ["10.20.0.1/16"]}, Founding(address_pools=("10.20.0.0/16",), subnet_size=24)),
        ({"SubnetSize": 22, "DataPathPort": 7777}, Founding(subnet_size=22, data_path_port=7777)),
    ],
)  # fmt: skip
def test_a_cluster_is_founded_as_asked_for(request_: dict[str, Any], founding: Founding) -> None:
    assert founding_of(request_) == founding


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"DefaultAddrPool": ["10.20.0.0/24"], "SubnetSize": 16}, InvalidArgument,
         'invalid CIDR: "10.20.0.0/24". Subnet size is too small for pool: 16'),
        ({"DefaultAddrPool": ["10.20.0.0/16"], "SubnetSize": 30}, InvalidArgument, "subnet size is out of range: 30"),
        ({"DefaultAddrPool": ["10.20.0.0"]}, InvalidArgument, "invalid base pool 10.20.0.0: invalid CIDR address"),
        ({"DefaultAddrPool": ["ten"]}, InvalidArgument, "invalid base pool ten: invalid CIDR address"),
        ({"DefaultAddrPool": ["10.20.0.0/16", "10.20.128.0/20"]}, InvalidArgument, "Pool overlaps with other one"),
        ({"DefaultAddrPool": ["fd00::/48"], "SubnetSize": 24}, NotSupported, "is for IPv4"),
        ({"DefaultAddrPool": "10.20.0.0/16"}, InvalidArgument, "must be a list"),
        ({"DataPathPort": 80}, InvalidArgument, "not in valid range (1024-49151) : 80"),
        ({"DataPathPort": "x"}, InvalidArgument, "must be a number"),
    ],
)  # fmt: skip
def test_what_no_cluster_can_be_is_refused(request_: dict[str, Any], error: type[SwarmletError], words: str) -> None:
    with pytest.raises(error) as raised:
        founding_of(request_)
    assert words in str(raised.value)


pools = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(4, 28)).map(
        lambda base: str(ip_network((base[0] >> (32 - base[1]) << (32 - base[1]), base[1])))
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@given(pools, st.integers(1, 32))
def test_pools_that_are_accepted_have_room_for_a_subnet_and_none_lies_in_another(wanted: list[str], size: int) -> None:
    try:
        founding = founding_of({"DefaultAddrPool": wanted, "SubnetSize": size})
    except InvalidArgument:
        return
    kept = [ip_network(pool) for pool in founding.address_pools]
    assert all(pool.prefixlen <= founding.subnet_size <= 29 for pool in kept)
    assert not any(one.overlaps(other) for place, one in enumerate(kept) for other in kept[:place])


@pytest.mark.parametrize(
    ("said", "port"),
    [("", 2399), ("0.0.0.0:2377", 2399), ("0.0.0.0", 2399), ("0.0.0.0:18642", 18642), ("[::]:5000", 5000), (":7", 7)],
)
def test_a_manager_listens_at_the_port_that_was_asked_for_or_that_of_the_settings(said: str, port: int) -> None:
    assert listening(said, default=2399, node_port=2378) == port


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("192.0.2.1:2377", NotSupported, "managers listen on every address"), ("eth0", NotSupported, "eth0"),
        ("0.0.0.0:x", InvalidArgument, "0.0.0.0:x"), ("0.0.0.0:0", InvalidArgument, "port number"),
        ("0.0.0.0:65536", InvalidArgument, "port number"), ("0.0.0.0:2378", InvalidArgument, "node_port"),
    ],
)
def test_where_a_manager_cannot_listen_is_refused_by_name(said: str, error: type[SwarmletError], words: str) -> None:
    with pytest.raises(error, match=words):
        listening(said, default=2377, node_port=2378)
