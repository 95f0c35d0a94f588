"""Names in the cluster's networks."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.wire.networking import EndpointInfo, ServiceInfo
from swarmlet_agent.net.names import NameTable
from swarmlet_agent.net.overlay.directory import Directory, backends, directory


def endpoint(ident: str, last: int, *, slot: int = 0, service: str = "", serving: bool = True) -> EndpointInfo:
    return EndpointInfo(
        network_id="n",
        id=ident,
        address=f"10.0.0.{last}",
        node_id="x",
        node_addr="192.0.2.1",
        names=(ident,),
        service_id=service,
        slot=slot,
        serving=serving,
    )


WEB = [
    endpoint("web.1.aa", 4, slot=1, service="s"),
    endpoint("web.2.bb", 5, slot=2, service="s"),
    endpoint("web.3.cc", 6, slot=3, service="s", serving=False),
]


def test_a_service_without_a_virtual_address_stands_for_its_serving_tasks() -> None:
    names = directory(WEB, [ServiceInfo(network_id="n", id="s", name="Web", aliases=("www",))]).by_name
    both = ("10.0.0.4", "10.0.0.5")
    assert names["web"] == names["www"] == names["tasks.web"] == names["tasks.www"] == both
    assert (names["1.web"], names["2.www"], names["web.3.cc"]) == (("10.0.0.4",), ("10.0.0.5",), ("10.0.0.6",))
    assert "3.web" not in names


def test_a_service_with_a_virtual_address_stands_for_that() -> None:
    found = directory(WEB, [ServiceInfo(network_id="n", id="s", name="web", aliases=("www",), vip="10.0.0.2")])
    assert found.by_name["web"] == found.by_name["www"] == ("10.0.0.2",)
    assert found.by_name["tasks.web"] == ("10.0.0.4", "10.0.0.5")
    assert found.by_address["10.0.0.2"] == "web" and found.by_address["10.0.0.4"] == "web.1.aa"


def test_with_ipv6_names_and_virtual_addresses_are_of_both_families() -> None:
    web = [replace(known, address6=f"fd00::{number}") for number, known in enumerate(WEB, 4)]
    services = [ServiceInfo(network_id="n", id="s", name="web", vip="10.0.0.2", vip6="fd00::2")]
    found = directory(web, services)
    assert found.by_name["web"] == ("10.0.0.2", "fd00::2")
    assert found.by_name["tasks.web"] == ("10.0.0.4", "fd00::4", "10.0.0.5", "fd00::5")
    assert found.by_name["2.web"] == ("10.0.0.5", "fd00::5")
    assert (found.by_address["fd00::2"], found.by_address["fd00::6"]) == ("web", "web.3.cc")
    assert backends(web, services) == {"10.0.0.2": ("10.0.0.4", "10.0.0.5"), "fd00::2": ("fd00::4", "fd00::5")}
    assert backends([], services) == {"10.0.0.2": (), "fd00::2": ()}


def test_a_service_without_tasks_is_known_and_has_no_address() -> None:
    table = NameTable()
    table.share("n", "ov", directory([], [ServiceInfo(network_id="n", id="s", name="web")]))
    assert table.addresses("web", ["n"], {}) == [] and table.addresses("web.ov", ["n"], {}) == []
    assert table.addresses("nobody", ["n"], {}) is None
    assert table.addresses("web", ["other"], {}) is None


def test_what_was_shared_is_forgotten_with_its_network() -> None:
    table = NameTable()
    table.share("n", "ov", Directory({"web": ("10.0.0.4",)}, {"10.0.0.4": "web"}))
    assert table.name_of("10.0.0.4", ["n"]) == "web.ov"
    table.unshare("n")
    assert table.addresses("web", ["n"], {}) is None and table.name_of("10.0.0.4", ["n"]) == ""
