"""Networks on the host's own interface: containers with addresses of the site; what ipvlan has of it, too."""

from __future__ import annotations

import subprocess

import pytest
from net_lab import OUTSIDE, OUTSIDE6, Lab, in_own_network
from test_net_life import Engine, command

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Conflict, Forbidden, NotSupported
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings, PortBinding
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkConnect, NetworkCreate, NetworkDisconnect


def _has_ipvlan() -> bool:
    """Whether this kernel has ipvlan; asked in a network namespace of its own."""
    script = "ip link add u type veth peer name v && ip link add link u name w type ipvlan mode l2"
    return subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True).returncode == 0


HAS_IPVLAN = _has_ipvlan()
pytestmark = pytest.mark.kernel
needs_ipvlan = pytest.mark.skipif(not HAS_IPVLAN, reason="this kernel has no ipvlan (module ipvlan)")
SITE = Ipam(
    config=(
        IpamConfig(subnet="203.0.113.0/24", gateway="203.0.113.1", ip_range="203.0.113.128/25"),
        IpamConfig(subnet="2001:db8::/64", gateway="2001:db8::1"),
    )
)


def request(name: str, mode: str = "", parent: str = "up0", ipam: Ipam = SITE, **more: object) -> NetworkCreate:
    options = {key: value for key, value in (("parent", parent), ("macvlan_mode", mode)) if value}
    return NetworkCreate(name=name, driver="macvlan", options=options, ipam=ipam, **more)  # type: ignore[arg-type]


async def uplink() -> None:
    """An interface up0 whose other end is in the lab's switch, where the outside host is."""
    await command("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    await command("ip", "link", "set", "up1", "master", "uplink", "up")
    await command("ip", "link", "set", "up0", "up")


@in_own_network
async def test_containers_are_hosts_of_the_site_and_leave_nothing(lab: Lab) -> None:
    await uplink()
    before = lab.links()
    await lab.networks.create(request("site", enable_ipv6=True))
    wish = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="203.0.113.77"))
    ident, one = await lab.attach("one", "site", endpoints={"site": wish}, ports={"80/tcp": (PortBinding(),)})
    _, two = await lab.attach("two", "site")
    own = one.endpoints["site"]

    assert (own.ip_address, own.gateway, own.ipv6_gateway) == ("203.0.113.77", "203.0.113.1", "2001:db8::1")
    assert one.ports == {"80/tcp": ()}  # its port 80 is open to the site anyway
    assert lab.links() == before
    async with lab.serve(lab.outside, 80, "outside"), lab.serve(lab.outside, 80, "outside6", OUTSIDE6):
        assert await lab.ask(one.netns_path, OUTSIDE, 80) == "outside 203.0.113.77"
        assert await lab.ask(one.netns_path, OUTSIDE6, 80) == f"outside6 {own.global_ipv6_address}"
    async with lab.serve(one.netns_path, 80, "one"):
        assert await lab.ask(lab.outside, "203.0.113.77", 80) == f"one {OUTSIDE}"
        assert await lab.ask(two.netns_path, "203.0.113.77", 80) == f"one {two.endpoints['site'].ip_address}"
    assert f"link/ether {own.mac_address}" in await command(
        "nsenter", f"--net={one.netns_path}", "ip", "link", "show", "eth0"
    )
    await lab.networks.detach(ident)
    await lab.attach("again", "site", endpoints={"site": wish})  # the address is free at once
    await lab.networks.retain([])
    await lab.networks.remove("site")
    assert lab.links() == before


@in_own_network
async def test_names_work_and_a_running_container_comes_and_goes(lab: Lab) -> None:
    await uplink()
    engine = Engine()
    lab.networks.bind(engine)
    await lab.networks.create(request("site"))
    await lab.attach("peer", "site")
    ident, web = await lab.attach("web")
    engine.add(ident, "web", web.endpoints)

    await lab.networks.connect("site", NetworkConnect(container="web"))
    links = await command("nsenter", f"--net={web.netns_path}", "ip", "-o", "link")
    assert "eth1@" in links and "127.0.0.11" in web.files["/etc/resolv.conf"].read_text()
    await lab.networks.disconnect("site", NetworkDisconnect(container="web"))
    assert "eth1" not in await command("nsenter", f"--net={web.netns_path}", "ip", "-o", "link")
    # As often as one likes, with an address of its own.
    wish = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="203.0.113.50"))
    for _ in range(3):
        await lab.networks.connect("site", NetworkConnect(container="web", endpoint_config=wish))
        assert engine.views[ident].endpoints["site"].ip_address == "203.0.113.50"
        await lab.networks.disconnect("site", NetworkDisconnect(container="web"))


@pytest.mark.parametrize(
    ("driver", "prefix"), [("macvlan", "dm"), pytest.param("ipvlan", "di", marks=needs_ipvlan)]
)
@in_own_network
async def test_without_a_parent_containers_reach_each_other_and_nobody_else(lab: Lab, driver: str, prefix: str) -> None:
    before = lab.links()
    network = await lab.networks.create(NetworkCreate(name="closed", driver=driver))
    _, one = await lab.attach("one", "closed")
    _, two = await lab.attach("two", "closed")

    assert network.parent == f"{prefix}-{network.id[:12]}" and one.endpoints["closed"].gateway == ""
    async with lab.serve(two.netns_path, 80, "two"), lab.serve(lab.outside, 80, "outside"):
        assert (await lab.ask(one.netns_path, two.endpoints["closed"].ip_address, 80)).startswith("two ")
        assert await lab.cut_off(one.netns_path, OUTSIDE, 80)
        await lab.restart()  # its own interface is known again
        assert (await lab.ask(one.netns_path, two.endpoints["closed"].ip_address, 80)).startswith("two ")
    await lab.networks.retain([])
    await lab.networks.remove("closed")
    assert lab.links() == before


@in_own_network
async def test_in_mode_private_containers_do_not_see_each_other(lab: Lab) -> None:
    await uplink()
    await lab.networks.create(request("private", "private"))
    _, one = await lab.attach("one", "private")
    _, two = await lab.attach("two", "private")

    async with lab.serve(two.netns_path, 80, "two"), lab.serve(lab.outside, 80, "outside"):
        assert (await lab.ask(one.netns_path, OUTSIDE, 80)).startswith("outside ")
        assert await lab.cut_off(one.netns_path, two.endpoints["private"].ip_address, 80)


@in_own_network
async def test_mode_passthru_has_its_parent_for_itself(lab: Lab) -> None:
    await uplink()
    await lab.networks.create(request("whole", "passthru"))
    ident, one = await lab.attach("one", "whole")

    async with lab.serve(lab.outside, 80, "outside"):
        assert (await lab.ask(one.netns_path, OUTSIDE, 80)).startswith("outside ")
    with pytest.raises(Conflict, match="no interface can be made on up0 in mode passthru"):
        await lab.attach("two", "whole")
    with pytest.raises(Forbidden, match="already using parent interface up0 in mode passthru"):
        await lab.networks.create(request("other", ipam=Ipam()))
    await lab.networks.detach(ident)
    await lab.attach("two", "whole")


@in_own_network
async def test_a_vlan_interface_is_made_and_goes_with_its_last_network_or_is_refused_by_name(lab: Lab) -> None:
    await uplink()
    before = lab.links()
    try:
        probe = subprocess.run(
            ["ip", "link", "add", "link", "up0", "name", "up0.9", "type", "vlan", "id", "9"], capture_output=True
        )
        able = probe.returncode == 0
    finally:
        subprocess.run(["ip", "link", "del", "up0.9"], capture_output=True)
    if not able:
        with pytest.raises(NotSupported, match=r"kernel has no VLAN interfaces \(module 8021q\)"):
            await lab.networks.create(request("tagged", parent="up0.10", ipam=Ipam()))
        assert lab.links() == before
        return
    await lab.networks.create(request("tagged", parent="up0.10", ipam=Ipam()))
    await lab.networks.create(request("second", parent="up0.10", ipam=Ipam()))
    assert "up0.10" in lab.links()
    await lab.networks.remove("tagged")
    assert "up0.10" in lab.links()
    await lab.restart()
    await lab.networks.remove("second")
    assert lab.links() == before


@in_own_network
async def test_a_parent_that_cannot_have_such_interfaces_is_refused_at_once(lab: Lab) -> None:
    before = lab.links()
    with pytest.raises(Conflict, match="no interface can be made on out0"):
        await lab.networks.create(request("site", parent="out0"))  # it is a port of a bridge already
    assert lab.links() == before
    assert "site" not in [view.name for view in lab.networks.list(Filters())]
