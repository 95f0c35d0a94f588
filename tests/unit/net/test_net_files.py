"""Texts for containers: hosts, resolv.conf; attachment rules; what the firewall check reads."""

from __future__ import annotations

import msgspec
import pytest

from swarmlet.errors import Conflict, InvalidArgument
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings, PortBinding
from swarmlet.model.network import Subnet
from swarmlet_agent.net import plan_attach, plan_endpoint, plan_files
from swarmlet_agent.net.container_files import split_link
from swarmlet_agent.net.firewall_check import explain, forward_chains, refuses_at_last
from swarmlet_agent.net.plan_files import ResolvConf, parse_resolv_conf, resolv_conf
from swarmlet_agent.net.plan_rules import add_ports, no_ruleset, ruleset, without_ipv6
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord, PortRecord
from swarmlet_agent.net.types import NetworkWish

HOST = ResolvConf(("127.0.0.53", "192.0.2.53"), ("corp.example",), ("edns0",))


def test_resolv_conf_is_read_as_the_resolver_does() -> None:
    text = "# c\nnameserver 192.0.2.1\nnameserver  ::1\ndomain old\nsearch a.x b.x ; c\noptions ndots:2\n"
    text += "options rotate\njunk\n"

    assert parse_resolv_conf(text) == ResolvConf(("192.0.2.1", "::1"), ("a.x", "b.x"), ("ndots:2", "rotate"))


@pytest.mark.parametrize(
    ("host", "wishes", "expected"),
    [
        (HOST, {}, "nameserver 192.0.2.53\nsearch corp.example\noptions edns0\n"),
        (ResolvConf(("127.0.0.1",)), {}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        (HOST, {"servers": ("1.1.1.1",), "search": (".",), "options": ("x",)}, "nameserver 1.1.1.1\noptions x\n"),
        (HOST, {"embedded": True}, "nameserver 127.0.0.11\nsearch corp.example\noptions edns0 ndots:0\n"),
        (
            HOST,
            {"embedded": True, "options": ("ndots:3",)},
            "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:3\n",
        ),
    ],
)
def test_a_containers_resolv_conf(host: ResolvConf, wishes: dict[str, object], expected: str) -> None:
    settings: dict[str, object] = {"embedded": False, "servers": (), "search": (), "options": (), **wishes}

    assert resolv_conf(host, **settings) == expected  # type: ignore[arg-type]


def test_hosts_name_the_container_its_links_and_extras() -> None:
    extra = plan_files.parse_extra_hosts(["gate:host-gateway", "six:fd00::1", "b=[fd00::2]"], ["172.17.0.1"])
    text = plan_files.hosts(
        own=["172.17.0.2"], hostname="web", domainname="x.y", extra=extra, linked=[("172.17.0.3", "db")]
    )

    assert text.startswith("127.0.0.1\tlocalhost\n::1\tlocalhost ")
    assert text.endswith("172.17.0.1\tgate\nfd00::1\tsix\nfd00::2\tb\n172.17.0.3\tdb\n172.17.0.2\tweb.x.y web\n")


@pytest.mark.parametrize("entry", ["nothing", "a:", ":1.2.3.4", "a:1.2.3", "a b:1.2.3.4", "x:host-gateway"])
def test_bad_extra_hosts_are_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument):
        plan_files.parse_extra_hosts([entry], [])


@pytest.mark.parametrize(
    ("link", "expected"), [("db", ("db", "db")), ("db:store", ("db", "store")), ("/db:/web/store", ("db", "store"))]
)
def test_links_are_read_in_every_form(link: str, expected: tuple[str, str]) -> None:
    assert split_link(link) == expected


BRIDGE = NetworkRecord(id="1", name="bridge", bridge="swl0", subnet="172.17.0.0/16", gateway="172.17.0.1")
APP = NetworkRecord(id="2", name="app", bridge="sw-2", subnet="10.0.0.0/24", gateway="10.0.0.1")
CHOSEN = NetworkRecord(
    id="3", name="chosen", bridge="sw-3", subnet="10.1.0.0/24", gateway="10.1.0.1", chosen_subnet=True
)
HOSTNET = NetworkRecord(id="4", name="host", driver="host")
NETWORKS = {network.name: network for network in (BRIDGE, APP, CHOSEN, HOSTNET)}


def wish(mode: str, **endpoints: EndpointSettings) -> NetworkWish:
    return NetworkWish(container_id="c", container_name="web", hostname="web", mode=mode, endpoints=endpoints)


def test_the_network_of_the_mode_comes_first_then_the_others_by_name() -> None:
    found = plan_attach.places(
        wish("chosen", bridge=EndpointSettings(), app=EndpointSettings(aliases=("x",)), chosen=EndpointSettings()),
        NETWORKS.__getitem__,
    )

    assert [place.network.name for place in found] == ["chosen", "app", "bridge"]
    assert found[1].settings.aliases == ("x",)
    without_main = plan_attach.places(wish("chosen", app=EndpointSettings()), NETWORKS.__getitem__)
    assert [place.network.name for place in without_main] == ["app"]
    assert [place.network.name for place in plan_attach.places(wish("default"), NETWORKS.__getitem__)] == ["bridge"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (wish("host", app=EndpointSettings()), "multiple networks with one of the networks in host mode"),
        (wish("bridge", bridge=EndpointSettings(aliases=("x",))), "aliases are only supported for user-defined"),
        (
            wish("bridge", bridge=EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="172.17.0.9"))),
            "user defined",
        ),
        (
            wish("app", app=EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.0.0.9"))),
            "configured subnets",
        ),
        (wish("app", app=EndpointSettings(mac_address="01:00:5e:00:00:01")), "not a unicast address"),
        (wish("app", app=EndpointSettings(mac_address="zz")), "invalid MAC address"),
        (
            wish("app", app=EndpointSettings(driver_opts={"com.docker.network.a": "b"})),
            "endpoint option com.docker.network.a",
        ),
    ],
)
def test_what_a_network_cannot_do_is_refused(asked: NetworkWish, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        plan_attach.places(asked, NETWORKS.__getitem__)


def test_the_default_route_goes_by_priority_then_name_and_never_inside() -> None:
    def place(ident: str, network: NetworkRecord, priority: int = 0, gateway: str = "g") -> EndpointRecord:
        settings = EndpointSettings(gw_priority=priority)
        return EndpointRecord(id=ident, network_id=network.id, network=network.name, gateway=gateway, wish=settings)

    by_id = {network.id: network for network in NETWORKS.values()}

    def chosen(*endpoints: EndpointRecord) -> tuple[str | None, str | None]:
        routes = plan_attach.default_routes(endpoints, by_id)
        return routes.v4 and routes.v4.id, routes.v6 and routes.v6.id

    assert chosen() == (None, None)
    assert chosen(place("a", BRIDGE), place("b", APP)) == ("b", None)
    assert chosen(place("a", BRIDGE, 5), place("b", APP)) == ("a", None)
    assert chosen(place("a", BRIDGE, gateway="")) == (None, None)
    # A network with both families goes before one with IPv4 alone; each family has a route of its own.
    dual = msgspec.structs.replace(place("c", BRIDGE), ip="10.0.0.2", ip6="fd00::2", gateway6="fd00::1")
    assert chosen(dual, place("b", APP)) == ("c", "c")
    assert chosen(dual, place("b", APP, 1)) == ("b", "c")


def test_the_same_wish_has_the_same_digest_whatever_its_order() -> None:
    one = NetworkWish("c", "web", "web", "app", ports={"1": (PortBinding(),), "2": ()})
    two = NetworkWish("c", "web", "web", "app", ports={"2": (), "1": (PortBinding(),)})

    assert plan_attach.digest(one) == plan_attach.digest(two)
    assert plan_attach.digest(one) != plan_attach.digest(NetworkWish("c", "web", "web", "app"))


def test_interfaces_fill_gaps_and_are_called_as_asked() -> None:
    taken = [EndpointRecord(id="a", network_id="1", network="x", interface="eth1")]
    named = NetworkRecord(id="7", name="n", options={plan_endpoint.OPTION_NAME_PREFIX: "net"})
    wanted = {plan_endpoint.OPTION_NAME: "eth1"}

    assert plan_endpoint.interface_name({}, APP, []) == "eth0" == plan_endpoint.interface_name({}, APP, taken)
    assert plan_endpoint.interface_name({}, named, taken) == "net0"
    assert plan_endpoint.interface_name(wanted, APP, []) == "eth1"
    with pytest.raises(Conflict, match="interface name eth1 is used by another network"):
        plan_endpoint.interface_name(wanted, APP, taken)


def test_link_local_addresses_have_their_links_prefix_and_others_are_refused() -> None:
    assert [str(address) for address in plan_attach.link_local(["169.254.7.7", "fe80::1"])] == [
        "169.254.7.7/16",
        "fe80::1/64",
    ]
    for text in ("10.0.0.1", "fd00::1", "x"):
        with pytest.raises(InvalidArgument, match="invalid link-local IP address"):
            plan_attach.link_local([text])


def test_options_of_an_endpoint_are_done_kept_or_refused() -> None:
    text = "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.neigh.IFNAME.retrans_time_ms=500"
    options = {plan_endpoint.OPTION_SYSCTLS: text, plan_endpoint.OPTION_NAME: "wan", "org.example.colour": "red"}
    plan_endpoint.check_options(options)

    assert plan_endpoint.sysctls(options, "wan") == [
        ("net/ipv4/conf/wan/log_martians", "1"),
        ("net/ipv6/neigh/wan/retrans_time_ms", "500"),
    ]
    for key, value in (
        (plan_endpoint.OPTION_SYSCTLS, "net.ipv4.ip_forward=1"),
        (plan_endpoint.OPTION_SYSCTLS, "net.ipv4.conf.IFNAME./../x=1"),
        (plan_endpoint.OPTION_NAME, "a/b"),
        (plan_endpoint.OPTION_NAME, ""),
        (plan_endpoint.OPTION_NAME, "lo"),
        ("com.docker.network.endpoint.magic", "1"),
    ):
        with pytest.raises(InvalidArgument):
            plan_endpoint.check_options({key: value})


def test_the_ruleset_replaces_only_our_table_and_holds_every_element() -> None:
    internal = NetworkRecord(id="5", name="in", bridge="sw-5", subnet="10.5.0.0/24", gateway="10.5.0.1", internal=True)
    ports = [
        PortRecord(port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080, target_ip="172.17.0.2"),
        PortRecord(port=53, protocol="udp", host_ip="127.0.0.1", host_port=53, target_ip="172.17.0.3"),
    ]
    text = ruleset([BRIDGE, internal, HOSTNET], ports)

    assert text.startswith("table ip swl {}\ndelete table ip swl\ntable ip swl {")
    assert "add element ip swl pubany { tcp . 8080 : 172.17.0.2 . 80 }" in text
    assert "add element ip swl pub { 127.0.0.1 . udp . 53 : 172.17.0.3 . 53 }" in text
    assert "masq { 172.17.0.0/16 }" in text and "masq { 10.5.0.0/24 }" not in text
    assert 'internal { "sw-5" }' in text and 'internal { "swl0" }' not in text
    assert add_ports([]) == ""


def test_rules_for_a_kernel_without_ipv6_are_those_of_ipv4_alone() -> None:
    dual = msgspec.structs.replace(APP, bridge="sw-6", v6=Subnet(subnet="fd00::/64", gateway="fd00::1"))
    six = PortRecord(port=80, protocol="tcp", host_ip="::", host_port=8080, target_ip="fd00::2")
    four = PortRecord(port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080, target_ip="172.17.0.2")
    text = without_ipv6(ruleset([BRIDGE, dual], [four, six]))

    assert "ip6" not in text and "fd00" not in text and "icmp" in text
    assert text.count("{") == text.count("}") and "pubany { tcp . 8080 : 172.17.0.2 . 80 }" in text
    assert without_ipv6(add_ports([six])) == "" == without_ipv6("delete table ip6 swl")
    assert "ip6" not in without_ipv6(no_ruleset())


def test_a_firewall_that_drops_forwarded_packets_is_noticed_but_ours_is_not() -> None:
    def chain(table: str, hook: str, policy: str) -> dict[str, object]:
        return {"chain": {"family": "ip", "table": table, "name": "FORWARD", "hook": hook, "policy": policy}}

    listing = {
        "nftables": [
            {"metainfo": {}},
            chain("filter", "forward", "drop"),
            chain("swl", "forward", "drop"),
            chain("swlmesh4", "forward", "drop"),
            chain("filter", "input", "drop"),
            chain("other", "forward", "accept"),
        ]
    }
    assert list(forward_chains(listing)) == [
        ("ip", "filter", "FORWARD", "drop"), ("ip", "other", "FORWARD", "accept"),
    ]  # fmt: skip
    assert "DOCKER-USER" in explain("ip filter FORWARD") and "firewall-cmd" in explain("inet firewalld filter_FORWARD")


@pytest.mark.parametrize(
    ("last", "refuses"),
    [
        ([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}], True),
        ([{"counter": {"packets": 0, "bytes": 0}}, {"drop": None}], True),
        ([{"match": {"op": "==", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": None}], False),
        ([{"accept": None}], False),
    ],
)
def test_a_chain_that_ends_by_refusing_everything_drops_too(last: list[dict[str, object]], refuses: bool) -> None:
    rules = [{"rule": {"expr": [{"accept": None}]}}, {"rule": {"expr": last}}]
    assert refuses_at_last({"nftables": [{"chain": {}}, *rules]}) is refuses
    assert not refuses_at_last({"nftables": [{"chain": {}}]})
