"""Subnets and addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet.ipam import PoolExhausted, mac_of, pick_subnet
from swarmlet.model.network import Subnet
from swarmlet_agent.net.plan_ipam import AddressPool, FamilyPool, Pools, default_pools, parse_pools
from swarmlet_agent.net.records import AddressTaken, NetworkRecord

subnets = st.builds(
    lambda number, length: IPv4Network(((10 << 24) | number, length), strict=False),
    st.integers(0, (1 << 24) - 1),
    st.integers(20, 29),
)


def network(subnet: str, **more: object) -> NetworkRecord:
    gateway = str(next(IPv4Network(subnet).hosts()))
    return NetworkRecord(**{"id": "n1", "name": "app", "subnet": subnet, "gateway": gateway, **more})  # type: ignore[arg-type]


@given(subnet=subnets, steps=st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=60))
def test_an_address_is_never_leased_twice_and_always_a_hosts(subnet: IPv4Network, steps: list[int | None]) -> None:
    record = network(str(subnet))
    pool, leased = AddressPool(record), []
    for step in steps:  # None takes, a number gives back
        if step is None:
            try:
                address = pool.take()
            except PoolExhausted:
                assert len(leased) == subnet.num_addresses - 3
                continue
            assert address not in leased
            assert address in subnet
            assert str(address) != record.gateway
            assert address not in (subnet.network_address, subnet.broadcast_address)
            leased.append(address)
        elif leased:
            pool.give_back(str(leased.pop(step % len(leased))))
    assert pool.taken == len(leased)


def test_every_address_of_a_small_network_can_be_leased() -> None:
    pool = AddressPool(network("10.0.0.0/29"))

    assert {str(pool.take()) for _ in range(5)} == {f"10.0.0.{last}" for last in range(2, 7)}
    with pytest.raises(PoolExhausted, match=r"no available IPv4 addresses on this network's address pools: app \(n1\)"):
        pool.take()


def test_an_address_that_was_given_back_rests_while_others_are_free() -> None:
    pool = AddressPool(network("10.0.0.0/24"))
    first = pool.take()
    pool.give_back(str(first))

    assert pool.take() == first + 1


def test_addresses_come_from_the_range_and_spare_what_is_reserved() -> None:
    record = network("10.0.0.0/24", ip_range="10.0.0.64/30", auxiliary={"router": "10.0.0.65"})
    pool = AddressPool(record)

    assert [str(pool.take()) for _ in range(3)] == ["10.0.0.64", "10.0.0.66", "10.0.0.67"]
    with pytest.raises(PoolExhausted):
        pool.take()
    assert str(pool.take("10.0.0.200")) == "10.0.0.200"  # a wanted address need not be in the range


@pytest.mark.parametrize("wanted", ["10.0.0.1", "10.0.0.0", "10.0.0.255", "10.0.0.9"])
def test_a_wanted_address_that_is_not_free_is_refused(wanted: str) -> None:
    pool = AddressPool(network("10.0.0.0/24"))
    pool.hold("10.0.0.9")

    with pytest.raises(AddressTaken, match="Address already in use"):
        pool.take(wanted)


def test_a_wanted_address_of_another_subnet_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"no configured subnet or ip-range contain the IP address 10\.1\.0\.9"):
        AddressPool(network("10.0.0.0/24")).take("10.1.0.9")


@given(used=st.lists(st.sampled_from(list(default_pools())), max_size=40), routes=st.lists(subnets, max_size=3))
def test_a_picked_subnet_overlaps_nothing(used: list[IPv4Network], routes: list[IPv4Network]) -> None:
    try:
        picked = pick_subnet(used, routes, default_pools())
    except PoolExhausted:
        assert set(used) == set(default_pools())
        return
    assert not any(picked.overlaps(other) for other in (*used, *routes))


def test_pools_are_dockers() -> None:
    pools = [str(pool) for pool in default_pools()]

    assert (pools[0], pools[14], pools[15], pools[-1]) == (
        "172.17.0.0/16",
        "172.31.0.0/16",
        "192.168.0.0/20",
        "192.168.240.0/20",
    )
    assert str(pick_subnet([], [IPv4Network("172.16.0.0/14")], default_pools())) == "172.20.0.0/16"


def test_a_mac_address_follows_from_the_ip_address() -> None:
    assert mac_of(IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"


@given(steps=st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=40))
def test_ipv6_addresses_are_leased_once_and_never_the_routers(steps: list[int | None]) -> None:
    part = Subnet(subnet="fd00::/125", gateway="fd00::1")
    pool, leased = AddressPool(NetworkRecord(id="n1", name="app", v6=part), part), []
    for step in steps:
        if step is None:
            try:
                leased.append(pool.take())
            except PoolExhausted as err:
                assert "no available IPv6 addresses" in str(err) and len(leased) == 6
        elif leased:
            pool.give_back(str(leased.pop(step % len(leased))))
    assert len(set(leased)) == len(leased) == pool.taken
    assert not {IPv6Address("fd00::"), IPv6Address("fd00::1")} & set(leased)


def test_ipv6_addresses_of_a_big_network_come_in_turn() -> None:
    part = Subnet(subnet="fd00::/64", gateway="fd00::1")
    pool = AddressPool(NetworkRecord(id="n1", name="app", v6=part), part)

    assert [str(pool.take()) for _ in range(2)] == ["fd00::2", "fd00::3"]
    assert str(pool.take("fd00::abcd")) == "fd00::abcd"


def test_configured_pools_stand_instead_of_dockers_family_by_family() -> None:
    pools = parse_pools(["10.200.0.0/22:24", "10.210.0.0/16:16"])

    assert [str(pool) for pool in pools.of(4)] == [
        "10.200.0.0/24",
        "10.200.1.0/24",
        "10.200.2.0/24",
        "10.200.3.0/24",
        "10.210.0.0/16",
    ]
    assert str(next(iter(pools.of(6, "me")))).startswith("fd")
    assert list(Pools().of(4)) == list(default_pools())
    six = parse_pools(["fd00:a::/48:64"])
    assert str(next(iter(six.of(6, "me")))) == "fd00:a::/64" and next(iter(six.of(4))) == next(default_pools())


@pytest.mark.parametrize(
    "text", ["10.0.0.0/16", "10.0.0.0/16:8", "10.0.0.0/16:31", "10.0.0.1/16:24", "x:24", "fd00::/48:x"]
)
def test_impossible_pools_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_pools([text])


PARTS = (Subnet(subnet="10.1.0.0/30", gateway="10.1.0.1"), Subnet(subnet="10.2.0.0/29", gateway="10.2.0.6"),
         Subnet(subnet="10.3.0.0/30", gateway="10.3.0.2"))  # fmt: skip


def several() -> FamilyPool:
    return FamilyPool(NetworkRecord(id="n1", name="app", subnet=PARTS[0].subnet, more=PARTS[1:]), PARTS)


def test_subnets_are_used_up_one_after_another_and_each_has_its_gateway() -> None:
    pool = several()
    taken = [pool.take() for _ in range(7)]
    assert [str(address) for address in taken] == [
        "10.1.0.2", "10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4", "10.2.0.5", "10.3.0.1",
    ]
    assert [pool.of(address).gateway for address in taken] == ["10.1.0.1", *["10.2.0.6"] * 5, "10.3.0.2"]
    with pytest.raises(PoolExhausted, match=r"no available IPv4 addresses on this network's address pools: app \(n1\)"):
        pool.take()


def test_a_wanted_address_says_which_subnet() -> None:
    pool = several()
    assert str(pool.take("10.3.0.1")) == "10.3.0.1" and pool.of(IPv4Address("10.3.0.1")).subnet.prefixlen == 30
    with pytest.raises(AddressTaken):
        pool.take("10.3.0.1")
    with pytest.raises(AddressTaken):
        pool.take("10.2.0.6")  # its gateway's
    with pytest.raises(InvalidArgument, match="no configured subnet or ip-range contain the IP address"):
        pool.take("10.9.0.1")
    assert str(pool.take_again("10.2.0.3")) == "10.2.0.3" and str(pool.take_again("10.2.0.3")) == "10.1.0.2"


@given(steps=st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=40))
def test_no_address_of_several_subnets_is_leased_twice(steps: list[int | None]) -> None:
    pool, leased = several(), []
    for step in steps:
        if step is None:
            try:
                address = pool.take()
            except PoolExhausted:
                assert len(leased) == 7
                continue
            assert address not in leased and address in pool.of(address).subnet
            leased.append(address)
        elif leased:
            gone = leased.pop(step % len(leased))
            pool.give_back(str(gone))
            pool.hold(str(gone))
            pool.give_back(str(gone))
    assert pool.taken == len(leased)
