"""Requests to create networks."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import msgspec
import pytest
from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotAManager, NotFound, NotSupported, SwarmletError
from swarmlet.ipam import PoolOverlap
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings
from swarmlet.model.network import Subnet
from swarmlet_agent.net.plan_attach import check_settings
from swarmlet_agent.net.plan_create import default_network, plan_network
from swarmlet_agent.net.records import NetworkRecord
from swarmlet_agent.net.requests import ConfigReference, Ipam, IpamConfig, NetworkCreate
from swarmlet_agent.net.views import view

BRIDGE = default_network(network_id="b" * 64, now=1, bridge="swl0", subnet="172.17.0.0/16")


def plan(request: NetworkCreate, *, routes: tuple[str, ...] = (), links: tuple[str, ...] = ()) -> NetworkRecord:
    return plan_network(
        request,
        network_id="a" * 64,
        now=7,
        existing={BRIDGE.id: BRIDGE},
        host_routes=[IPv4Network(route) for route in routes],
        links=links,
    )


def ipam(**config: object) -> Ipam:
    return Ipam(config=(IpamConfig(**config),))  # type: ignore[arg-type]


def macvlan(**options: str) -> NetworkCreate:
    return NetworkCreate(name="x", driver="macvlan", options=options)


def test_a_macvlan_network_sits_on_an_interface_a_vlan_of_one_or_on_its_own() -> None:
    made = [plan(macvlan(**options), links=("eth0",)) for options in (
        {"parent": "eth0", "macvlan_mode": "vepa"}, {"parent": "eth0.10"}, {},
    )]  # fmt: skip

    assert [(network.parent, network.mode) for network in made] == [
        ("eth0", "vepa"), ("eth0.10", "bridge"), ("dm-" + "a" * 12, "bridge"),
    ]  # fmt: skip
    assert [network.closed for network in made] == [False, False, True]
    assert {network.bridge for network in made} == {""} and all(network.subnet for network in made)


def ipvlan(**options: str) -> NetworkCreate:
    return NetworkCreate(name="x", driver="ipvlan", options=options)


def test_an_ipvlan_network_has_a_mode_and_a_flag_and_a_way_out_without_gateways_in_the_modes_l3() -> None:
    made = [plan(ipvlan(**options), links=("eth0",)) for options in (
        {}, {"parent": "eth0", "ipvlan_mode": "l3", "ipvlan_flag": "vepa"}, {"parent": "eth0.7", "ipvlan_mode": "l3s"},
    )]  # fmt: skip

    assert [(network.parent, network.mode, network.flag) for network in made] == [
        ("di-" + "a" * 12, "l2", "bridge"), ("eth0", "l3", "vepa"), ("eth0.7", "l3s", "bridge"),
    ]  # fmt: skip
    assert [(network.closed, network.routed) for network in made] == [(True, False), (False, True), (False, True)]


def test_a_macvlan_network_may_have_several_subnets_of_a_family() -> None:
    asked = Ipam(config=(
        IpamConfig(subnet="10.2.0.0/24", gateway="10.2.0.254", auxiliary_addresses={"printer": "10.2.0.9"}),
        IpamConfig(subnet="2001:db8:2::/64"), IpamConfig(subnet="10.1.0.0/24", ip_range="10.1.0.128/25"),
        IpamConfig(subnet="2001:db8:1::/64", gateway="2001:db8:1::5"),
    ))  # fmt: skip
    request = NetworkCreate(name="x", driver="macvlan", enable_ipv6=True, ipam=asked, options={"parent": "eth0"})
    network = plan(request, links=("eth0",))

    assert [(part.subnet, part.gateway) for part in network.subnets] == [
        ("10.2.0.0/24", "10.2.0.254"), ("10.1.0.0/24", "10.1.0.128"),
        ("2001:db8:2::/64", "2001:db8:2::1"), ("2001:db8:1::/64", "2001:db8:1::5"),
    ]
    assert view(network).ipam["Config"][0] == {
        "Subnet": "10.2.0.0/24", "Gateway": "10.2.0.254", "AuxiliaryAddresses": {"printer": "10.2.0.9"},
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(network), type=NetworkRecord) == network
    without = plan(replace(request, enable_ipv6=False), links=("eth0",))
    assert [part.subnet for part in without.subnets] == ["10.2.0.0/24", "10.1.0.0/24"]

    twice = Ipam(config=(IpamConfig(subnet="10.2.0.0/24"), IpamConfig(subnet="10.2.0.128/25")))
    with pytest.raises(PoolOverlap):
        plan(replace(request, ipam=twice), links=("eth0",))
    with pytest.raises(InvalidArgument, match="bridge driver doesn't support multiple subnets"):
        plan(replace(request, driver="bridge", options={}))


def test_without_wishes_a_network_gets_the_next_free_pool() -> None:
    network = plan(NetworkCreate(name="app"), routes=("172.18.3.0/24",))

    assert (network.subnet, network.gateway, network.bridge) == ("172.19.0.0/16", "172.19.0.1", "sw-" + "a" * 12)
    assert (network.masquerade, network.inter_container, network.chosen_subnet, network.mtu) == (
        True,
        True,
        False,
        1500,
    )


def test_wishes_are_honoured() -> None:
    network = plan(
        NetworkCreate(
            name="app",
            internal=True,
            labels={"a": "b"},
            ipam=ipam(
                subnet="10.1.0.0/24",
                gateway="10.1.0.254",
                ip_range="10.1.0.128/25",
                auxiliary_addresses={"x": "10.1.0.7"},
            ),
            options={
                "com.docker.network.bridge.name": "mybr",
                "com.docker.network.bridge.enable_icc": "false",
                "com.docker.network.bridge.enable_ip_masquerade": "0",
                "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
                "com.docker.network.driver.mtu": "1400",
            },
        )
    )

    assert (network.bridge, network.gateway, network.ip_range, network.mtu) == (
        "mybr",
        "10.1.0.254",
        "10.1.0.128/25",
        1400,
    )
    assert (network.inter_container, network.masquerade, network.host_binding) == (False, False, "127.0.0.1")
    assert network.internal and network.chosen_subnet and network.auxiliary == {"x": "10.1.0.7"}


def test_a_gateway_that_nobody_named_spares_auxiliary_addresses() -> None:
    network = plan(NetworkCreate(name="app", ipam=ipam(subnet="10.1.0.0/24", auxiliary_addresses={"x": "10.1.0.1"})))

    assert network.gateway == "10.1.0.2"


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (NetworkCreate(name=""), InvalidArgument, "name is empty"),
        (NetworkCreate(name="a/b"), InvalidArgument, "invalid network name"),
        (NetworkCreate(name="bridge"), Forbidden, "operation is not permitted on predefined bridge network"),
        (NetworkCreate(name="x", driver="overlay"), NotAManager, "This node is not a swarm manager"),
        (ipvlan(parent="lo"), InvalidArgument, "loopback interface is not a valid ipvlan parent link"),
        (ipvlan(ipvlan_mode="l4"), InvalidArgument, "requested ipvlan mode 'l4' is not valid, 'l2' mode is the"),
        (ipvlan(ipvlan_flag="x"), InvalidArgument, "requested ipvlan flag 'x' is not valid, 'bridge' is the ipvlan"),
        (ipvlan(parent="eth7.5"), InvalidArgument, "parent interface was not found on the host: eth7"),
        (ipvlan(macvlan_mode="bridge"), NotSupported, "macvlan_mode is not supported by the driver ipvlan"),
        (macvlan(parent="lo"), InvalidArgument, "loopback interface is not a valid macvlan parent link"),
        (macvlan(parent="eth9"), InvalidArgument, "required interface name format is: name.vlan_id"),
        (macvlan(parent="eth0.x"), InvalidArgument, "unable to parse a valid vlan id from: x"),
        (macvlan(parent="eth0.4095"), InvalidArgument, "vlan id must be between 1-4094, received: 4095"),
        (macvlan(parent="eth7.5"), InvalidArgument, "parent interface was not found on the host: eth7"),
        (macvlan(macvlan_mode="wild"), InvalidArgument, "requested macvlan mode 'wild' is not valid"),
        (macvlan(ipvlan_mode="l2"), NotSupported, "network option ipvlan_mode is not supported"),
        (NetworkCreate(name="x", driver="host"), Forbidden, 'only one instance of "host" network is allowed'),
        (NetworkCreate(name="x", driver="weave"), NotFound, 'plugin "weave" not found'),
        (NetworkCreate(name="x", enable_ipv4=False), InvalidArgument, "IPv4 or IPv6 must be enabled"),
        (
            NetworkCreate(name="x", options={"com.docker.network.enable_ipv6": "maybe"}),
            InvalidArgument,
            'driver-opt "com.docker.network.enable_ipv6" is not a valid bool',
        ),
        (NetworkCreate(name="x", ingress=True), NotSupported, "ingress"),
        (NetworkCreate(name="x", config_only=True, internal=True), Forbidden, "network specific fields"),
        (
            NetworkCreate(name="x", config_only=True, config_from=ConfigReference(network="y")),
            Forbidden,
            "a configuration network cannot depend on another",
        ),
        (
            NetworkCreate(name="x", config_from=ConfigReference(network="y")),
            NotFound,
            'configuration network "y" does not exist',
        ),
        (NetworkCreate(name="x", ipam=Ipam(driver="dhcp")), NotFound, 'plugin "dhcp" not found'),
        (NetworkCreate(name="x", ipam=ipam(subnet="172.17.4.0/24")), PoolOverlap, "Pool overlaps with other one"),
        (NetworkCreate(name="x", ipam=ipam(subnet="10.0.0.1/24")), InvalidArgument, "it should be 10.0.0.0/24"),
        (NetworkCreate(name="x", ipam=ipam(subnet="10.0.0.0/31")), InvalidArgument, "at least a /30"),
        (NetworkCreate(name="x", ipam=ipam(gateway="10.0.0.1")), InvalidArgument, "needs a subnet"),
        (NetworkCreate(name="x", ipam=ipam(subnet="10.0.0.0/24", gateway="10.1.0.1")), InvalidArgument, "gateway"),
        (NetworkCreate(name="x", ipam=ipam(subnet="10.0.0.0/24", ip_range="10.1.0.0/25")), InvalidArgument, "ip-range"),
        (NetworkCreate(name="x", options={"com.docker.network.driver.mtu": "12"}), InvalidArgument, "mtu"),
        (
            NetworkCreate(name="x", options={"com.docker.network.bridge.enable_icc": "so"}),
            InvalidArgument,
            "enable_icc",
        ),
        (
            NetworkCreate(name="x", options={"com.docker.network.bridge.trusted_host_interfaces": "eth0"}),
            NotSupported,
            "trusted_host_interfaces",
        ),
        (
            NetworkCreate(name="x", options={"com.docker.network.bridge.gateway_mode_ipv4": "open"}),
            InvalidArgument,
            "unknown gateway mode open",
        ),
        (
            NetworkCreate(name="x", options={"com.docker.network.bridge.gateway_mode_ipv6": "isolated"}),
            InvalidArgument,
            "can only be used for an internal network",
        ),
        (
            NetworkCreate(name="x", options={"com.docker.network.bridge.name": "much-too-long-name"}),
            InvalidArgument,
            "name",
        ),
        (NetworkCreate(name="x", options={"com.docker.network.bridge.name": "eth0"}), Conflict, "eth0 already"),
    ],
)
def test_what_cannot_be_is_refused_and_says_why(
    request_: NetworkCreate, error: type[SwarmletError], words: str
) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        plan(request_, links=("eth0",))


def test_an_ipv6_network_has_the_subnet_it_asks_for_beside_one_of_ipv4() -> None:
    network = plan(
        NetworkCreate(
            name="app",
            enable_ipv6=True,
            ipam=Ipam(config=(IpamConfig(subnet="fd00:5::/64", gateway="fd00:5::9"), IpamConfig(subnet="10.1.0.0/24"))),
        )
    )

    assert (network.subnet, network.gateway) == ("10.1.0.0/24", "10.1.0.1")
    assert network.v6 == Subnet(subnet="fd00:5::/64", gateway="fd00:5::9", chosen=True)


def test_an_ipv6_network_without_a_subnet_gets_a_unique_local_one() -> None:
    first = plan(NetworkCreate(name="app", enable_ipv6=True), routes=("192.0.2.0/24",))
    second = plan_network(
        NetworkCreate(name="two", enable_ipv6=True),
        network_id="c" * 64,
        now=1,
        existing={first.id: first},
        host_routes=[],
        links=[],
    )
    subnets = [IPv6Network(network.v6.subnet) for network in (first, second)]

    assert all(subnet.prefixlen == 64 and subnet.subnet_of(IPv6Network("fd00::/8")) for subnet in subnets)
    assert subnets[0].supernet(new_prefix=48) == subnets[1].supernet(new_prefix=48) and subnets[0] != subnets[1]
    assert first.v6.gateway == str(subnets[0].network_address + 1)
    assert (first.subnet, first.v6.chosen) == ("172.18.0.0/16", False)


def test_options_may_say_which_families_a_network_has() -> None:
    both = plan(NetworkCreate(name="x", options={"com.docker.network.enable_ipv6": "true"}))
    six = plan(NetworkCreate(name="x", options={"com.docker.network.enable_ipv4": "0"}, enable_ipv6=True))

    assert both.subnet and both.v6.subnet
    assert not six.subnet and six.v6.subnet


def test_a_network_may_have_ipv6_alone() -> None:
    network = plan(NetworkCreate(name="app", enable_ipv4=False, enable_ipv6=True, ipam=ipam(subnet="fd00::/64")))

    assert (network.subnet, network.gateway, network.v6.subnet) == ("", "", "fd00::/64")


def test_an_ipv6_subnet_of_a_network_without_ipv6_is_not_used() -> None:
    assert plan(NetworkCreate(name="app", ipam=ipam(subnet="fd00::/64"))).v6 == Subnet()


def test_everything_wrong_with_the_addresses_is_told_at_once() -> None:
    wrong = Ipam(
        config=(
            IpamConfig(subnet="10.0.0.0/24", gateway="10.1.0.1", ip_range="10.0.0.0/16"),
            IpamConfig(subnet="fd00::1/64", auxiliary_addresses={"x": "10.0.0.9"}),
            IpamConfig(subnet="banana"),
        )
    )
    with pytest.raises(InvalidArgument) as refused:
        plan(NetworkCreate(name="app", enable_ipv6=True, ipam=wrong))

    assert str(refused.value).splitlines() == [
        "invalid network config:",
        "invalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24",
        "invalid gateway 10.1.0.1: parent subnet 10.0.0.0/24 doesn't contain this address",
        "invalid subnet fd00::1/64: it should be fd00::/64",
        "invalid auxiliary address 10.0.0.9: parent subnet is an IPv6 block",
        "invalid subnet banana: invalid CIDR block notation",
    ]


def test_a_network_is_made_from_a_configuration_network() -> None:
    source = plan(
        NetworkCreate(
            name="source", config_only=True, options={"com.docker.network.driver.mtu": "1400"}, labels={"a": "b"},
            ipam=ipam(subnet="10.7.0.0/24"),
        )
    )  # fmt: skip
    reference = ConfigReference(network="source")

    def made(**more: object) -> NetworkRecord:
        return plan_network(
            NetworkCreate(name="app", config_from=reference, **more),  # type: ignore[arg-type]
            network_id="c" * 64, now=1, existing={source.id: source}, host_routes=[], links=[],
        )  # fmt: skip

    assert (source.driver, source.families, source.exclusive) == ("null", (), True)
    network = made(internal=True)
    assert (network.subnet, network.mtu, network.labels, network.config_from) == (
        "10.7.0.0/24", 1400, {"a": "b"}, "source",
    )  # fmt: skip
    assert network.internal and view(network).config_from == reference
    shown = view(source)
    assert shown.config_only and shown.ipam["Config"] == [{"Subnet": "10.7.0.0/24"}]
    with pytest.raises(Forbidden, match="user supplied configurations are not supported"):
        made(labels={"c": "d"})


def test_a_name_exists_once() -> None:
    taken = {"x": NetworkRecord(id="x", name="app")}
    with pytest.raises(Conflict, match="network with name app already exists"):
        plan_network(NetworkCreate(name="app"), network_id="n", now=1, existing=taken, host_routes=[], links=[])


def test_a_subnet_of_a_family_that_is_not_enabled_is_kept_and_shown_and_addresses_may_be_named_in_it() -> None:
    asked = ipam(subnet="2001:db8:9::/64", gateway="2001:db8:9::ffff", ip_range="2001:db8:9::/96")
    network = plan(NetworkCreate(name="x", ipam=asked))

    assert network.subnet and not network.v6.subnet
    shown = view(network)
    assert not shown.enable_ipv6 and shown.ipam["Config"][-1] == {
        "Subnet": "2001:db8:9::/64", "Gateway": "2001:db8:9::ffff", "IPRange": "2001:db8:9::/96",
    }  # fmt: skip
    check_settings(network, EndpointSettings(ipam_config=EndpointIPAMConfig(ipv6_address="2001:db8:9::f00d")))
    for address, words in (
        ({"ipv6_address": "2001:db8:8::1"}, "no configured subnet or ip-range contain the IP address 2001:db8:8::1"),
        ({"ipv4_address": "10.9.9.9"}, "only when connecting to networks with user configured subnets"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            check_settings(network, EndpointSettings(ipam_config=EndpointIPAMConfig(**address)))
