"""Who reaches whom: real namespaces, bridges and firewall rules."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from net_lab import HOST, HOST6, OUTSIDE, PATIENCE_S, Lab, in_own_network
from stray import stray_answer, stray_segment

from swarmlet.model.container import EndpointSettings, PortBinding
from swarmlet_agent.net import netns
from swarmlet_agent.net.netlink import mac_bytes
from swarmlet_agent.net.nft import Nft
from swarmlet_agent.net.requests import NetworkCreate
from swarmlet_agent.net.types import Attachment

pytestmark = pytest.mark.kernel


@in_own_network
async def test_containers_on_the_default_network_reach_each_other_and_the_outside(lab: Lab) -> None:
    _, one = await lab.attach("one")
    _, two = await lab.attach("two")
    address = two.endpoints["bridge"].ip_address

    async with lab.serve(two.netns_path, 80, "two"), lab.serve(lab.outside, 80, "outside"):
        assert await lab.ask(one.netns_path, address, 80) == f"two {one.endpoints['bridge'].ip_address}"
        assert await lab.ask(one.netns_path, OUTSIDE, 80) == f"outside {HOST}"
        assert await lab.ask(None, address, 80) == "two 172.17.0.1"


@in_own_network
async def test_a_published_port_is_reached_from_everywhere(lab: Lab) -> None:
    _, web = await lab.attach("web", ports={"80/tcp": (PortBinding(host_port="8080"),)})
    _, other = await lab.attach("other")
    own = web.endpoints["bridge"].ip_address

    everywhere = tuple(PortBinding(host_ip=host_ip, host_port="8080") for host_ip in ("0.0.0.0", "::"))
    assert web.ports == {"80/tcp": everywhere}
    async with lab.serve(web.netns_path, 80, "web"):
        assert await lab.ask(lab.outside, HOST, 8080) == f"web {OUTSIDE}"
        assert await lab.ask(None, HOST, 8080) == f"web {HOST}"
        assert (await lab.ask(None, "127.0.0.1", 8080)).startswith("web 172.17.0.1")
        # It has no IPv6, yet answers there, as through Docker's proxy.
        assert (await lab.ask(None, "::1", 8080)).startswith("web 172.17.0.1")
        assert (await lab.ask(lab.outside, HOST6, 8080)).startswith("web 172.17.0.1")
        assert (await lab.ask(other.netns_path, HOST, 8080)).startswith("web ")
        assert (await lab.ask(other.netns_path, "172.17.0.1", 8080)).startswith("web ")
        assert (await lab.ask(web.netns_path, HOST, 8080)).startswith("web ")  # hairpin
        assert await lab.cut_off(lab.outside, own, 80)


@pytest.mark.parametrize("version", ["4", "6"])
@in_own_network
async def test_a_packet_that_cannot_be_tracked_ends_no_connection_to_a_published_port(lab: Lab, version: str) -> None:
    """Of the client: it is not translated and arrives at the host itself, which knows no such connection."""
    web = await published(lab)
    host = HOST if version == "4" else HOST6

    async with lab.serve(web.netns_path, 80, "web", "0.0.0.0" if version == "4" else "::"):
        with await lab.connect(lab.outside, host, 8080) as line:
            before = await line.ask()
            assert before.startswith("web ")
            with raw_socket(lab.outside, host) as raw:
                for _ in range(3):
                    raw.sendto(stray_segment(line.channel), (host, 0))
                    assert await line.ask() == before


@pytest.mark.parametrize("version", ["4", "6"])
@in_own_network
async def test_an_answer_that_cannot_be_tracked_does_not_reach_the_client(lab: Lab, version: str) -> None:
    """Of the container: it is not translated back, and the client does not know who has sent it."""
    web = await published(lab)
    endpoint = web.endpoints["both"]
    own = endpoint.ip_address if version == "4" else endpoint.global_ipv6_address
    host = HOST if version == "4" else HOST6

    async with lab.serve(web.netns_path, 80, "web", "0.0.0.0" if version == "4" else "::"):
        with await lab.connect(lab.outside, host, 8080) as line:
            before = await line.ask()
            with raw_socket(web.netns_path, own) as raw, raw_socket(lab.outside, host) as heard:
                for _ in range(3):
                    raw.sendto(stray_answer(line.channel, (own, 80)), (line.channel.getsockname()[0], 0))
                    assert await line.ask() == before
                assert own not in set(senders(heard))


async def published(lab: Lab) -> Attachment:
    """Port 80 of "web", on a network of both families, at the host's port 8080."""
    await lab.networks.create(NetworkCreate(name="both", enable_ipv6=True))
    _, web = await lab.attach("web", "both", ports={"80/tcp": (PortBinding(host_port="8080"),)})
    return web


def raw_socket(where: Path, address: str) -> socket.socket:
    """It sends TCP segments made by hand, and hears all that come in."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.inside(where):
        return socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)


def senders(raw: socket.socket) -> Iterator[str]:
    with suppress(BlockingIOError):
        while True:
            yield raw.recvfrom(65536)[1][0]


@in_own_network
async def test_a_port_published_on_one_address_answers_there_only(lab: Lab) -> None:
    _, web = await lab.attach("web", ports={"80/tcp": (PortBinding(host_ip="127.0.0.1", host_port="8080"),)})

    async with lab.serve(web.netns_path, 80, "web"):
        assert (await lab.ask(None, "127.0.0.1", 8080)).startswith("web ")
        assert await lab.cut_off(lab.outside, HOST, 8080)


@in_own_network
async def test_a_published_udp_port_follows_a_new_container(lab: Lab) -> None:
    ports = {"53/udp": (PortBinding(host_port="5353"),)}
    ident, first = await lab.attach("first", ports=ports)
    client = await lab.socket(lab.outside, socket.SOCK_DGRAM)
    client.bind((OUTSIDE, 40000))
    async with lab.echo_udp(first.netns_path, 53, "first"):
        assert await lab.ask_udp(lab.outside, HOST, 5353, client) == b"first"
        assert await lab.ask_udp(None, "127.0.0.1", 5353) == b"first"
    await lab.networks.detach(ident)
    _, second = await lab.attach("second", ports=ports)

    async with lab.echo_udp(second.netns_path, 53, "second"):
        assert await lab.ask_udp(lab.outside, HOST, 5353, client) == b"second"
    client.close()


@in_own_network
async def test_networks_are_isolated_from_each_other(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="red"))
    await lab.networks.create(NetworkCreate(name="blue"))
    _, red = await lab.attach("red1", "red")
    _, blue = await lab.attach("blue1", "blue")
    _, both = await lab.attach("both", "red", endpoints={"blue": EndpointSettings()})
    address = blue.endpoints["blue"].ip_address

    async with lab.serve(blue.netns_path, 80, "blue"):
        assert await lab.cut_off(red.netns_path, address, 80)
        assert await lab.ask(both.netns_path, address, 80) == f"blue {both.endpoints['blue'].ip_address}"


@in_own_network
async def test_an_internal_network_has_no_way_out_or_in(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="inner", internal=True))
    _, one = await lab.attach("one", "inner", ports={"80/tcp": (PortBinding(host_port="8080"),)})
    _, two = await lab.attach("two", "inner")

    assert one.endpoints["inner"].gateway == ""
    assert one.ports == {"80/tcp": ()}
    async with lab.serve(lab.outside, 80, "outside"), lab.serve(two.netns_path, 80, "two"):
        assert await lab.cut_off(one.netns_path, OUTSIDE, 80)
        assert (await lab.ask(one.netns_path, two.endpoints["inner"].ip_address, 80)).startswith("two ")
        assert await lab.cut_off(lab.outside, HOST, 8080)


@in_own_network
async def test_without_inter_container_traffic_containers_reach_only_the_outside(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="apart", options={"com.docker.network.bridge.enable_icc": "false"}))
    _, one = await lab.attach("one", "apart")
    _, two = await lab.attach("two", "apart")

    async with lab.serve(two.netns_path, 80, "two"), lab.serve(lab.outside, 80, "outside"):
        assert await lab.cut_off(one.netns_path, two.endpoints["apart"].ip_address, 80)
        assert (await lab.ask(one.netns_path, OUTSIDE, 80)).startswith("outside ")


@in_own_network
async def test_a_container_cannot_reach_the_hosts_loopback(lab: Lab) -> None:
    _, one = await lab.attach("one")
    receiver = await lab.socket(None, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 9000))

    def send_forged() -> None:
        """A frame for the bridge's MAC with 127.0.0.1 in it: what a container with raw sockets can send."""
        data = b"\x1f\x90" + (9000).to_bytes(2, "big") + (11).to_bytes(2, "big") + b"\0\0" + b"hey"
        header = bytearray.fromhex("4500001f00004000401100000000000000000000")
        header[12:16] = socket.inet_aton(one.endpoints["bridge"].ip_address)
        header[16:20] = socket.inet_aton("127.0.0.1")
        total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
        header[10:12] = (0xFFFF - (total % 0xFFFF or 0xFFFF)).to_bytes(2, "big")
        frame = mac_bytes("02:42:ac:11:00:01") + mac_bytes(one.endpoints["bridge"].mac_address) + b"\x08\x00"
        with netns.inside(Path(one.netns_path or "")):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind(("eth0", 0))
            raw.send(frame + bytes(header) + data)
            raw.close()

    async def arrives(within_s: float) -> bool:
        await asyncio.to_thread(send_forged)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                return await asyncio.get_running_loop().sock_recv(receiver, 100) == b"hey"
        return False

    assert not await arrives(0.2)
    rules = Nft()
    rules.run("flush chain ip swl guard")  # the frame is well made: only the guard stopped it
    rules.close()
    assert await arrives(PATIENCE_S)
    receiver.close()


@in_own_network
async def test_a_container_sharing_anothers_network_has_its_addresses(lab: Lab) -> None:
    ident, one = await lab.attach("one")
    _, two = await lab.attach("two", f"container:{ident}", share_with=ident)

    assert two.netns_path == one.netns_path
    assert two.files == one.files
    assert dict(two.endpoints) == {}


@in_own_network
async def test_host_and_none_networks(lab: Lab) -> None:
    _, host = await lab.attach("host1", "host")
    ident, none = await lab.attach("none1", "none")

    assert host.netns_path is None
    assert list(host.endpoints) == ["host"]
    assert list(none.endpoints) == ["none"]
    assert await lab.cut_off(none.netns_path, OUTSIDE, 80)
    assert list(await lab.networks.counters(ident)) == []


@in_own_network
async def test_bridged_firewalling_on_the_host_changes_nothing(lab: Lab) -> None:
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    await lab.networks.create(NetworkCreate(name="app"))
    _, web = await lab.attach("web", "app", ports={"80/tcp": (PortBinding(host_port="8080"),)})
    _, peer = await lab.attach("peer", "app")
    own = web.endpoints["app"].ip_address

    # A host without br_netfilter has no switch and never sends bridged packets through the rules.
    for value in ("0", "1") if switch.exists() else ("",):
        if value:
            switch.write_text(value)
        async with lab.serve(web.netns_path, 80, "web"):
            assert (await lab.ask(peer.netns_path, own, 80)).startswith("web ")
            assert (await lab.ask(web.netns_path, HOST, 8080)).startswith("web ")
            assert (await lab.ask(peer.netns_path, HOST, 8080)).startswith("web ")
            assert await lab.ask(lab.outside, HOST, 8080) == f"web {OUTSIDE}"


@in_own_network
async def test_a_container_disconnected_from_its_modes_network_stays_off_it(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))

    _, web = await lab.attach("web", "bridge", endpoints={"app": EndpointSettings()})

    assert list(web.endpoints) == ["app"]


@in_own_network
async def test_a_port_of_a_protocol_is_published_for_that_protocol_only(lab: Lab) -> None:
    _, web = await lab.attach(
        "web",
        ports={
            "80/tcp": (PortBinding(host_port="8080"),),
            "90/udp": (PortBinding(host_port="8080"),),
            "70/sctp": (PortBinding(host_port="8080"),),
        },
    )

    async with lab.serve(web.netns_path, 80, "tcp"), lab.echo_udp(web.netns_path, 90, "udp"):
        assert await lab.ask(lab.outside, HOST, 8080) == f"tcp {OUTSIDE}"
        assert await lab.ask_udp(lab.outside, HOST, 8080) == b"udp"
