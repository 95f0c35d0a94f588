"""Networks of the driver ipvlan: containers on the host's own interface, with its MAC and addresses of the site."""

from __future__ import annotations

import pytest
from net_lab import OUTSIDE, OUTSIDE6, Lab, in_own_network
from test_net_life import Engine, command
from test_net_macvlan import HAS_IPVLAN, SITE, needs_ipvlan, uplink

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotSupported
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings, PortBinding
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkConnect, NetworkCreate, NetworkDisconnect

#: A subnet that nobody of the site has: in the modes l3 and l3s the host's interface stands for it.
BEHIND = Ipam(config=(IpamConfig(subnet="10.99.0.0/24"), IpamConfig(subnet="fd99::/64")))


pytestmark = pytest.mark.kernel


def request(name: str, mode: str = "", flag: str = "", parent: str = "up0", ipam: Ipam = SITE, **more: object) -> (
    NetworkCreate
):
    given = (("parent", parent), ("ipvlan_mode", mode), ("ipvlan_flag", flag))
    options = {key: value for key, value in given if value}
    return NetworkCreate(name=name, driver="ipvlan", options=options, ipam=ipam, **more)  # type: ignore[arg-type]


@pytest.mark.skipif(HAS_IPVLAN, reason="this kernel has ipvlan")
@in_own_network
async def test_where_the_kernel_has_none_the_network_is_refused_by_name(lab: Lab) -> None:
    await uplink()
    before = lab.links()
    with pytest.raises(NotSupported, match=r"network site: this host's kernel has no ipvlan \(module ipvlan\)"):
        await lab.networks.create(request("site"))
    assert lab.links() == before


@needs_ipvlan
@in_own_network
async def test_containers_are_hosts_of_the_site_with_one_mac_and_leave_nothing(lab: Lab) -> None:
    await uplink()
    before = lab.links()
    await lab.networks.create(request("site", enable_ipv6=True))
    wish = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="203.0.113.77"))
    ident, one = await lab.attach("one", "site", endpoints={"site": wish}, ports={"80/tcp": (PortBinding(),)})
    _, two = await lab.attach("two", "site")
    own = one.endpoints["site"]

    assert (own.ip_address, own.gateway, own.ipv6_gateway) == ("203.0.113.77", "203.0.113.1", "2001:db8::1")
    assert own.mac_address == "" and one.ports == {"80/tcp": ()}
    assert lab.links() == before
    async with lab.serve(lab.outside, 80, "outside"), lab.serve(lab.outside, 80, "outside6", OUTSIDE6):
        assert await lab.ask(one.netns_path, OUTSIDE, 80) == "outside 203.0.113.77"
        assert await lab.ask(one.netns_path, OUTSIDE6, 80) == f"outside6 {own.global_ipv6_address}"
    async with lab.serve(one.netns_path, 80, "one"):
        assert await lab.ask(lab.outside, "203.0.113.77", 80) == f"one {OUTSIDE}"
        assert await lab.ask(two.netns_path, "203.0.113.77", 80) == f"one {two.endpoints['site'].ip_address}"
    inside = [("nsenter", f"--net={each.netns_path}") for each in (one, two)]
    links = [await command(*words, "ip", "-o", "link", "show", name)
             for words, name in (((), "up0"), (inside[0], "eth0"), (inside[1], "eth0"))]  # fmt: skip
    macs = {text.split("link/ether ")[1].split()[0] for text in links}
    assert len(macs) == 1
    await lab.networks.detach(ident)
    await lab.attach("again", "site", endpoints={"site": wish})  # the address is free at once
    await lab.networks.retain([])
    await lab.networks.remove("site")
    assert lab.links() == before


@needs_ipvlan
@pytest.mark.parametrize("mode", ["l3", "l3s"])
@in_own_network
async def test_in_the_modes_l3_the_interface_is_the_way_to_everywhere(lab: Lab, mode: str) -> None:
    await uplink()
    await lab.networks.create(request("behind", mode, ipam=BEHIND, enable_ipv6=True))
    _, one = await lab.attach("one", "behind")
    _, two = await lab.attach("two", "behind")
    own = one.endpoints["behind"]
    assert (own.gateway, own.ipv6_gateway) == ("", "")
    inside = ("nsenter", f"--net={one.netns_path}", "ip")
    assert (await command(*inside, "route", "show", "default")).split()[:3] == ["default", "dev", "eth0"]
    assert "default dev eth0" in await command(*inside, "-6", "route")
    async with lab.serve(two.netns_path, 80, "two"), lab.serve(two.netns_path, 81, "two6", "::"):
        assert await lab.ask(one.netns_path, two.endpoints["behind"].ip_address, 80) == f"two {own.ip_address}"
        reached = await lab.ask(one.netns_path, two.endpoints["behind"].global_ipv6_address, 81)
        assert reached == f"two6 {own.global_ipv6_address}"


@needs_ipvlan
@in_own_network
async def test_with_the_flag_private_containers_do_not_see_each_other(lab: Lab) -> None:
    await uplink()
    await lab.networks.create(request("private", flag="private"))
    _, one = await lab.attach("one", "private")
    _, two = await lab.attach("two", "private")

    async with lab.serve(two.netns_path, 80, "two"), lab.serve(lab.outside, 80, "outside"):
        assert (await lab.ask(one.netns_path, OUTSIDE, 80)).startswith("outside ")
        assert await lab.cut_off(one.netns_path, two.endpoints["private"].ip_address, 80)


@needs_ipvlan
@in_own_network
async def test_with_the_flag_vepa_the_switch_outside_would_have_to_send_back(lab: Lab) -> None:
    await uplink()
    await lab.networks.create(request("outward", flag="vepa"))
    _, one = await lab.attach("one", "outward")
    _, two = await lab.attach("two", "outward")

    async with lab.serve(two.netns_path, 80, "two"), lab.serve(lab.outside, 80, "outside"):
        assert (await lab.ask(one.netns_path, OUTSIDE, 80)).startswith("outside ")
        assert await lab.cut_off(one.netns_path, two.endpoints["outward"].ip_address, 80)


@needs_ipvlan
@in_own_network
async def test_a_running_container_comes_and_goes(lab: Lab) -> None:
    await uplink()
    engine = Engine()
    lab.networks.bind(engine)
    await lab.networks.create(request("behind", "l3", ipam=BEHIND))
    ident, web = await lab.attach("web")
    engine.add(ident, "web", web.endpoints)
    for _ in range(2):
        await lab.networks.connect("behind", NetworkConnect(container="web"))
        links = await command("nsenter", f"--net={web.netns_path}", "ip", "-o", "link")
        assert "eth1@" in links
        await lab.networks.disconnect("behind", NetworkDisconnect(container="web"))
        assert "eth1" not in await command("nsenter", f"--net={web.netns_path}", "ip", "-o", "link")


@needs_ipvlan
@in_own_network
async def test_what_cannot_be_is_refused_and_leaves_nothing(lab: Lab) -> None:
    await uplink()
    before = lab.links()
    await lab.networks.create(request("tagged", parent="up0.10", ipam=Ipam()))
    assert "up0.10" in lab.links()
    with pytest.raises(Forbidden, match=r"network tagged is already using parent interface up0\.10"):
        await lab.networks.create(request("second", parent="up0.10", ipam=Ipam()))
    with pytest.raises(InvalidArgument, match="ipvlan interfaces do not support custom mac address assignment"):
        await lab.attach("one", "tagged", endpoints={"tagged": EndpointSettings(mac_address="02:00:00:00:00:01")})
    await lab.networks.remove("tagged")
    with pytest.raises(Conflict, match="no interface can be made on out0"):
        await lab.networks.create(request("site", parent="out0"))  # it is a port of a bridge already
    assert lab.links() == before
