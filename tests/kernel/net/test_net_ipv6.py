"""Networks with IPv6: who reaches whom, published ports, names, restarts."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path

import pytest
from net_lab import HOST, HOST6, OUTSIDE, OUTSIDE6, Lab, in_own_network

from swarmlet.errors import NotSupported
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings, PortBinding
from swarmlet_agent.net import dns_codec, netns
from swarmlet_agent.net.plan_ipam import parse_pools
from swarmlet_agent.net.records import AddressTaken
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkCreate
from swarmlet_agent.net.types import Attachment

pytestmark = pytest.mark.kernel
PORT_8080 = {"80/tcp": (PortBinding(host_port="8080"),)}
SIX = Ipam(config=(IpamConfig(subnet="fd00:6::/64"),))


def sysctl(attachment: Attachment, name: str) -> str:
    with netns.inside(Path(attachment.netns_path or "")):
        return Path(f"/proc/sys/net/ipv6/conf/{name}").read_text().strip()


@in_own_network
async def test_a_container_of_a_dual_network_has_both_addresses_and_reaches_both_worlds(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    _, one = await lab.attach("one", "six")
    _, two = await lab.attach("two", "six")
    own, other = one.endpoints["six"], two.endpoints["six"]

    assert (own.global_ipv6_address, own.global_ipv6_prefix_len, own.ipv6_gateway) == ("fd00:6::2", 64, "fd00:6::1")
    async with lab.serve(two.netns_path, 80, "two", "::"), lab.serve(lab.outside, 80, "outside", OUTSIDE6):
        # At once: no address waits for duplicate detection.
        assert await lab.ask(one.netns_path, other.global_ipv6_address, 80) == f"two {own.global_ipv6_address}"
        assert await lab.ask(one.netns_path, OUTSIDE6, 80) == f"outside {HOST6}"
        assert await lab.ask(None, other.global_ipv6_address, 80) == "two fd00:6::1"
        # The network's addresses are its own: from outside only published ports are open.
        assert await lab.cut_off(lab.outside, other.global_ipv6_address, 80)
    async with lab.serve(two.netns_path, 81, "two"):
        assert await lab.ask(one.netns_path, other.ip_address, 81) == f"two {own.ip_address}"
    hosts = one.files["/etc/hosts"].read_text()
    assert f"{own.ip_address}\tone\n{own.global_ipv6_address}\tone\n" in hosts


@in_own_network
async def test_a_published_port_of_a_dual_container_is_reached_on_both_families(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    ident, web = await lab.attach("web", "six", ports=PORT_8080)
    _, peer = await lab.attach("peer", "six")
    _, stranger = await lab.attach("stranger")

    async with lab.serve(web.netns_path, 80, "web"), lab.serve(web.netns_path, 80, "web6", HERE6):
        assert await lab.ask(lab.outside, HOST, 8080) == f"web {OUTSIDE}"
        assert await lab.ask(lab.outside, HOST6, 8080) == f"web6 {OUTSIDE6}"  # the client keeps its address
        assert (await lab.ask(None, HOST6, 8080)).startswith("web6 ")
        assert await lab.ask(None, "::1", 8080) == "web6 fd00:6::1"
        assert (await lab.ask(peer.netns_path, HOST6, 8080)).startswith("web6 ")
        assert (await lab.ask(web.netns_path, HOST6, 8080)).startswith("web6 ")  # hairpin
        assert (await lab.ask(stranger.netns_path, HOST, 8080)).startswith("web ")
        await lab.restart()
        assert await lab.ask(lab.outside, HOST6, 8080) == f"web6 {OUTSIDE6}"
        assert await lab.ask(None, "::1", 8080) == "web6 fd00:6::1"
        await lab.networks.detach(ident)
        assert await lab.cut_off(lab.outside, HOST6, 8080)
        assert await lab.cut_off(None, "::1", 8080)


HERE6 = "fd00:6::2"


@in_own_network
async def test_a_port_published_on_one_ipv6_address_answers_there_only(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    _, web = await lab.attach("web", "six", ports={"80/tcp": (PortBinding(host_ip=HOST6, host_port="8080"),)})

    assert web.ports == {"80/tcp": (PortBinding(host_ip=HOST6, host_port="8080"),)}
    async with lab.serve(web.netns_path, 80, "web", "::"):
        assert await lab.ask(lab.outside, HOST6, 8080) == f"web {OUTSIDE6}"
        assert await lab.cut_off(lab.outside, HOST, 8080)
        assert await lab.cut_off(None, "::1", 8080)


@in_own_network
async def test_udp_is_published_on_ipv6_by_the_kernel_and_by_the_relay(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    ports = {"53/udp": (PortBinding(host_port="5353"),)}
    ident, first = await lab.attach("first", "six", ports=ports)
    client = await lab.socket(lab.outside, socket.SOCK_DGRAM, OUTSIDE6)
    client.bind((OUTSIDE6, 40000))
    async with lab.echo_udp(first.netns_path or "", 53, "first", HERE6):
        assert await lab.ask_udp(lab.outside, HOST6, 5353, client) == b"first"
        assert await lab.ask_udp(None, "::1", 5353) == b"first"
    await lab.networks.detach(ident)

    # The same client and port, now led to a container that has no IPv6.
    _, second = await lab.attach("second", ports=ports)
    async with lab.echo_udp(second.netns_path or "", 53, "second"):
        assert await lab.ask_udp(lab.outside, HOST6, 5353, client) == b"second"
        assert await lab.ask_udp(None, "::1", 5353) == b"second"
    client.close()


@in_own_network
async def test_an_internal_ipv6_network_has_no_way_out_or_in(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, internal=True, ipam=SIX))
    _, one = await lab.attach("one", "six", ports=PORT_8080)
    _, two = await lab.attach("two", "six")

    assert one.endpoints["six"].ipv6_gateway == "" and one.ports == {"80/tcp": ()}
    async with lab.serve(two.netns_path, 80, "two", "::"), lab.serve(lab.outside, 80, "outside", OUTSIDE6):
        assert (await lab.ask(one.netns_path, two.endpoints["six"].global_ipv6_address, 80)).startswith("two ")
        assert await lab.cut_off(one.netns_path, OUTSIDE6, 80)


@in_own_network
async def test_ipv6_networks_are_isolated_from_each_other(lab: Lab) -> None:
    for name in ("red", "blue"):
        await lab.networks.create(NetworkCreate(name=name, enable_ipv6=True))
    _, red = await lab.attach("red1", "red")
    _, blue = await lab.attach("blue1", "blue")
    address = blue.endpoints["blue"].global_ipv6_address

    async with lab.serve(blue.netns_path, 80, "blue", "::"):
        assert await lab.cut_off(red.netns_path, address, 80)
        _, both = await lab.attach("both", "red", endpoints={"red": EndpointSettings(), "blue": EndpointSettings()})
        assert (await lab.ask(both.netns_path, address, 80)).startswith("blue ")


@in_own_network
async def test_a_network_of_ipv6_alone_is_published_on_ipv4_by_the_relay(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv4=False, enable_ipv6=True, ipam=SIX))
    _, web = await lab.attach("web", "six", ports=PORT_8080)

    assert web.endpoints["six"].ip_address == "" and web.endpoints["six"].global_ipv6_address == HERE6
    async with lab.serve(web.netns_path, 80, "web", "::"):
        assert await lab.ask(lab.outside, HOST6, 8080) == f"web {OUTSIDE6}"
        assert await lab.ask(lab.outside, HOST, 8080) == "web fd00:6::1"


@in_own_network
async def test_only_interfaces_of_ipv6_networks_have_ipv6(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    _, four = await lab.attach("four")
    _, both = await lab.attach("both", "six", endpoints={"six": EndpointSettings(), "bridge": EndpointSettings()})

    assert sysctl(four, "eth0/disable_ipv6") == "1"
    off = {name: sysctl(both, f"{name}/disable_ipv6") for name in ("eth0", "eth1")}
    assert sorted(off.values()) == ["0", "1"]
    assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text().strip() == "1"
    assert Path(f"/proc/sys/net/ipv6/conf/{lab.networks.get('bridge').bridge}/disable_ipv6").read_text().strip() == "1"


@in_own_network
async def test_routers_of_the_host_are_still_heard_once_it_forwards(lab: Lab) -> None:
    uplink = Path("/proc/sys/net/ipv6/conf/uplink/accept_ra")
    uplink.write_text("1")

    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True))

    assert uplink.read_text().strip() == "2"


@in_own_network
async def test_a_wanted_ipv6_address_is_given_kept_and_refused_to_others(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    wish = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv6_address="fd00:6::99"))
    ident, one = await lab.attach("one", "six", endpoints={"six": wish})

    assert one.endpoints["six"].global_ipv6_address == "fd00:6::99"
    with pytest.raises(AddressTaken, match="Address already in use"):
        await lab.attach("two", "six", endpoints={"six": wish})
    await lab.restart()
    with pytest.raises(AddressTaken):
        await lab.attach("two", "six", endpoints={"six": wish})
    await lab.networks.detach(ident)
    _, two = await lab.attach("two", "six", endpoints={"six": wish})
    assert two.endpoints["six"].global_ipv6_address == "fd00:6::99"
    pools = [lab.networks._ground.catalog.pool(lab.networks.get("six").id, version) for version in (4, 6)]
    assert [pool.taken for pool in pools if pool is not None] == [1, 1]  # a refused try kept nothing


@in_own_network
async def test_names_have_aaaa_records_and_addresses_have_names(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True, ipam=SIX))
    await lab.networks.create(NetworkCreate(name="four"))
    _, one = await lab.attach("one", "six", endpoints={"six": EndpointSettings(), "four": EndpointSettings()})
    await lab.attach("two", "six")
    await lab.attach("three", "four")

    async def ask(name: str, kind: int) -> bytes:
        query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + dns_codec.encode_name(name) + kind.to_bytes(2, "big") + b"\0\1"
        return await lab.ask_udp(one.netns_path, "127.0.0.11", 53, data=query)

    answer = await ask("two", dns_codec.AAAA)
    assert int.from_bytes(answer[6:8], "big") == 1 and answer.endswith(socket.inet_pton(socket.AF_INET6, "fd00:6::3"))
    none = await ask("three", dns_codec.AAAA)  # known, but without IPv6: an empty answer, not a missing name
    assert none[3] & 15 == dns_codec.NOERROR and int.from_bytes(none[6:8], "big") == 0
    reverse = ".".join(reversed("fd000006000000000000000000000003")) + ".ip6.arpa"
    assert dns_codec.encode_name("two.six") in await ask(reverse, dns_codec.PTR)


@in_own_network
async def test_a_relayed_connection_carries_much_both_ways_and_ends_each_way_by_itself(lab: Lab) -> None:
    """The container has no IPv6, so the agent copies; a slow reader only slows its own connection."""
    _, web = await lab.attach("web", ports=PORT_8080)
    size = 8 << 20

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(-1)  # until the client ends its half
        writer.write(data)
        await writer.drain()
        writer.close()

    listener = await lab.socket(web.netns_path, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", 80))
    server = await asyncio.start_server(echo, sock=listener)
    async with server, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("::1", 8080)
        writer.write(bytes(size))
        writer.write_eof()
        assert len(await reader.read(-1)) == size
        writer.close()
        await writer.wait_closed()


@in_own_network
async def test_the_default_network_has_ipv6_if_the_settings_say_so(lab: Lab) -> None:
    await lab.close()
    lab.networks = lab.make(default_subnet6="fd00:17::/64", pools=parse_pools(["10.210.0.0/16:24", "fd00:a::/48:64"]))
    await lab.networks.start()
    _, web = await lab.attach("web", ports=PORT_8080, extra_hosts=("gate:host-gateway",))
    made = await lab.networks.create(NetworkCreate(name="own", enable_ipv6=True))

    assert web.endpoints["bridge"].global_ipv6_address == "fd00:17::2"
    assert "172.17.0.1\tgate\nfd00:17::1\tgate\n" in web.files["/etc/hosts"].read_text()
    async with lab.serve(web.netns_path, 80, "web", "::"):
        assert await lab.ask(lab.outside, HOST6, 8080) == f"web {OUTSIDE6}"
    assert (made.subnet, made.v6.subnet) == ("10.210.0.0/24", "fd00:a::/64")


@in_own_network
async def test_a_kernel_without_ipv6_does_everything_else(lab: Lab) -> None:
    await lab.networks.teardown()
    await lab.close()
    lab.networks = lab.make()
    lab.networks._ground.kernel.has_ipv6 = False
    await lab.networks.start()
    ident, web = await lab.attach("web", ports=PORT_8080)

    async with lab.serve(web.netns_path, 80, "web"):
        assert await lab.ask(lab.outside, HOST, 8080) == f"web {OUTSIDE}"
    with pytest.raises(NotSupported, match="network six: this host's kernel has no IPv6"):
        await lab.networks.create(NetworkCreate(name="six", enable_ipv6=True))
    await lab.networks.create(NetworkCreate(name="app"))
    await lab.networks.remove("app")
    await lab.networks.detach(ident)
    tables = await asyncio.to_thread(subprocess.run, ["nft", "list", "tables"], capture_output=True, text=True)
    assert "table ip swl" in tables.stdout and "ip6 swl" not in tables.stdout
