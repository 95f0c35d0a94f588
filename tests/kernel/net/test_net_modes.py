"""Gateway modes: how the outside reaches a network's containers, and what the bridge itself has."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address

import pytest
from net_lab import HOST, HOST6, OUTSIDE, OUTSIDE6, Lab, in_own_network

from swarmlet.model.container import PortBinding
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkCreate

pytestmark = pytest.mark.kernel
BOTH = Ipam(config=(IpamConfig(subnet="10.66.0.0/24"), IpamConfig(subnet="fd00:66::/64")))
PORT_8080 = {"80/tcp": (PortBinding(host_port="8080"),)}


def request(name: str, mode4: str, mode6: str, **more: object) -> NetworkCreate:
    options = {
        "com.docker.network.bridge.gateway_mode_ipv4": mode4,
        "com.docker.network.bridge.gateway_mode_ipv6": mode6,
    }
    return NetworkCreate(name=name, enable_ipv6=True, ipam=BOTH, options=options, **more)  # type: ignore[arg-type]


def give_routes(lab: Lab) -> None:
    """The outside host knows the way to the container network, as a router of the site would."""
    for family, subnet, gateway in (("-4", "10.66.0.0/24", HOST), ("-6", "fd00:66::/64", HOST6)):
        words = ["nsenter", f"--net={lab.outside}", "ip", family, "route", "add", subnet, "via", gateway]
        subprocess.run(words, check=True)


@in_own_network
async def test_routed_containers_are_reached_at_their_own_addresses_on_published_ports_only(lab: Lab) -> None:
    give_routes(lab)
    await lab.networks.create(request("open", "routed", "routed"))
    ident, web = await lab.attach("web", "open", ports=PORT_8080)
    place = web.endpoints["open"]

    assert web.ports == {"80/tcp": ()}
    async with lab.serve(web.netns_path, 80, "web", "::"), lab.serve(web.netns_path, 81, "other", "::"):
        for address, source in ((place.ip_address, OUTSIDE), (place.global_ipv6_address, OUTSIDE6)):
            said = await lab.ask(lab.outside, address, 80)
            assert said.startswith("web ") and ip_address(said.split()[1].removeprefix("::ffff:")) == ip_address(source)
            assert await lab.cut_off(lab.outside, address, 81)
        assert await lab.cut_off(lab.outside, HOST, 8080)
        await lab.restart()
        assert (await lab.ask(lab.outside, place.ip_address, 80)).startswith("web ")
        await lab.networks.detach(ident)
    async with lab.serve(lab.outside, 80, "outside"):
        _, other = await lab.attach("other", "open")
        # Its address is not hidden behind the host's either.
        assert await lab.ask(other.netns_path, OUTSIDE, 80) == f"outside {other.endpoints['open'].ip_address}"
    ping = [
        "nsenter",
        f"--net={lab.outside}",
        "busybox",
        "ping",
        "-c",
        "1",
        "-W",
        "2",
        other.endpoints["open"].ip_address,
    ]
    assert subprocess.run(ping, capture_output=True).returncode == 0


@in_own_network
async def test_one_family_may_be_routed_and_the_other_translated(lab: Lab) -> None:
    give_routes(lab)
    await lab.networks.create(request("half", "nat", "routed"))
    _, web = await lab.attach("web", "half", ports=PORT_8080)

    assert web.ports == {"80/tcp": (PortBinding(host_ip="0.0.0.0", host_port="8080"),)}
    async with lab.serve(web.netns_path, 80, "web", "::"):
        assert (await lab.ask(lab.outside, HOST, 8080)).startswith("web ")
        assert (await lab.ask(lab.outside, web.endpoints["half"].global_ipv6_address, 80)).startswith("web ")
        assert await lab.cut_off(lab.outside, web.endpoints["half"].ip_address, 80)


@in_own_network
async def test_without_protection_every_port_is_open_to_who_has_a_route(lab: Lab) -> None:
    give_routes(lab)
    await lab.networks.create(request("bare", "nat-unprotected", "nat"))
    _, web = await lab.attach("web", "bare")

    async with lab.serve(web.netns_path, 81, "web", "::"):
        assert (await lab.ask(lab.outside, web.endpoints["bare"].ip_address, 81)).startswith("web ")
        assert await lab.cut_off(lab.outside, web.endpoints["bare"].global_ipv6_address, 81)


@in_own_network
async def test_the_host_is_not_on_an_isolated_network(lab: Lab) -> None:
    network = await lab.networks.create(request("alone", "isolated", "isolated", internal=True))
    _, one = await lab.attach("one", "alone")
    _, two = await lab.attach("two", "alone")
    shown = subprocess.run(["ip", "addr", "show", network.bridge], capture_output=True, text=True, check=True).stdout

    assert "10.66." not in shown and "fd00:66" not in shown
    async with lab.serve(two.netns_path, 80, "two", "::"):
        for address in (two.endpoints["alone"].ip_address, two.endpoints["alone"].global_ipv6_address):
            assert (await lab.ask(one.netns_path, address, 80)).startswith("two ")
            assert await lab.cut_off(None, address, 80)


@in_own_network
async def test_a_bridge_without_an_address_leaves_the_gateway_to_others(lab: Lab) -> None:
    options = {"com.docker.network.bridge.inhibit_ipv4": "true"}
    ipam = Ipam(config=(IpamConfig(subnet="10.67.0.0/24", gateway="10.67.0.254"),))
    network = await lab.networks.create(NetworkCreate(name="own", options=options, ipam=ipam))
    _, one = await lab.attach("one", "own")
    shown = subprocess.run(["ip", "addr", "show", network.bridge], capture_output=True, text=True, check=True).stdout

    assert "inet " not in shown and one.endpoints["own"].gateway == "10.67.0.254"
