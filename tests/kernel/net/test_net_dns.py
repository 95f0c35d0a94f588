"""The embedded DNS server, asked from inside containers."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from net_lab import OUTSIDE, Lab, in_own_network

from swarmlet.model.container import EndpointSettings
from swarmlet_agent.net.requests import NetworkCreate

pytestmark = pytest.mark.kernel
SERVER = "127.0.0.11"


def query(name: str, kind: int = 1) -> bytes:
    wire = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + wire + b"\0" + struct.pack(">HH", kind, 1)


def addresses(answer: bytes) -> tuple[int, list[str]]:
    """(response code, A records in order of address)."""
    ident, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", answer)
    assert ident == 4711 and flags & 0x8000
    end = answer.index(b"\0", 12) + 5
    records = [answer[end + 16 * i + 12 : end + 16 * i + 16] for i in range(count)]
    return flags & 15, sorted(socket.inet_ntoa(record) for record in records)


async def resolve(lab: Lab, where: str | None, name: str, kind: int = 1) -> tuple[int, list[str]]:
    return addresses(await lab.ask_udp(where, SERVER, 53, data=query(name, kind)))


@in_own_network
async def test_names_aliases_and_ids_are_answered_within_the_network(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    await lab.networks.create(NetworkCreate(name="other"))
    ident, web = await lab.attach("web", "app", endpoints={"app": EndpointSettings(aliases=("www", "front"))})
    _, second = await lab.attach("web2", "app", endpoints={"app": EndpointSettings(aliases=("front",))})
    _, stranger = await lab.attach("stranger", "other")
    here, there = web.endpoints["app"].ip_address, second.endpoints["app"].ip_address

    for name in ("web", "WWW", ident[:12], "web.app"):
        assert await resolve(lab, second.netns_path, name) == (0, [here])
    assert await resolve(lab, web.netns_path, "front") == (0, sorted([here, there]))
    assert await resolve(lab, web.netns_path, "web2", kind=28) == (0, [])  # no IPv6, yet the name exists
    async with forwarder(lab):
        assert (await resolve(lab, stranger.netns_path, "web"))[1] == ["192.0.2.1"]  # asked of the host's resolver
    assert (web.files["/etc/resolv.conf"]).read_text() == "nameserver 127.0.0.11\nsearch lab.example\noptions ndots:0\n"


@in_own_network
async def test_addresses_are_answered_with_names(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    _, web = await lab.attach("web", "app")
    reverse = ".".join(reversed(web.endpoints["app"].ip_address.split("."))) + ".in-addr.arpa"

    answer = await lab.ask_udp(web.netns_path, SERVER, 53, data=query(reverse, 12))

    assert b"\x03web\x03app\0" in answer


@in_own_network
async def test_a_container_that_is_gone_is_no_longer_named(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app", internal=True))
    ident, _ = await lab.attach("web", "app")
    _, asker = await lab.attach("asker", "app")
    assert (await resolve(lab, asker.netns_path, "web"))[0] == 0

    await lab.networks.renamed(ident, "fresh")
    assert (await resolve(lab, asker.netns_path, "fresh"))[0] == 0
    await lab.networks.detach(ident)

    assert (await resolve(lab, asker.netns_path, "fresh"))[0] == 2  # an internal network forwards nothing


@in_own_network
async def test_the_server_answers_over_tcp_and_after_a_restart(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    _, web = await lab.attach("web", "app")
    await lab.restart()

    line = await lab.socket(web.netns_path, socket.SOCK_STREAM)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        await loop.sock_connect(line, (SERVER, 53))
        for _ in range(2):  # one connection, several questions
            await loop.sock_sendall(line, len(query("web")).to_bytes(2, "big") + query("web"))
            answer = await loop.sock_recv(line, 4096)
            assert int.from_bytes(answer[:2], "big") == len(answer) - 2
            assert addresses(answer[2:]) == (0, [web.endpoints["app"].ip_address])
    line.close()
    assert await resolve(lab, web.netns_path, "web") == (0, [web.endpoints["app"].ip_address])


@asynccontextmanager
async def forwarder(lab: Lab) -> AsyncIterator[None]:
    """A resolver on the outside host that answers 192.0.2.1 to everything."""
    channel = await lab.socket(lab.outside, socket.SOCK_DGRAM)
    channel.bind((OUTSIDE, 53))
    loop = asyncio.get_running_loop()

    async def serve() -> None:
        while True:
            data, source = await loop.sock_recvfrom(channel, 2048)
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton("192.0.2.1")
            head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
            await loop.sock_sendto(channel, head + data[12:] + record, source)

    task = asyncio.create_task(serve())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        channel.close()


@in_own_network
async def test_other_names_are_asked_of_the_containers_own_servers_from_inside(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    _, web = await lab.attach("web", "app", dns=(OUTSIDE,), dns_search=("x.example",), dns_options=("timeout:1",))
    async with forwarder(lab):
        assert await resolve(lab, web.netns_path, "example.org") == (0, ["192.0.2.1"])
    expected = "nameserver 127.0.0.11\nsearch x.example\noptions timeout:1 ndots:0\n"
    assert web.files["/etc/resolv.conf"].read_text() == expected


@in_own_network
async def test_rubbish_is_answered_and_harms_nobody(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    _, web = await lab.attach("web", "app")
    for data in (b"", b"\1", b"\0" * 12, b"\xff" * 40, query("web")[:-3], query("web")[:12] + b"\xc0\x0c\0\1\0\1"):
        answer = await lab.ask_udp(web.netns_path, SERVER, 53, data=data)
        assert answer[3] & 15 == 1  # FORMERR
    assert (await resolve(lab, web.netns_path, "web"))[0] == 0


@in_own_network
async def test_the_container_can_serve_port_53_itself(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    _, web = await lab.attach("web", "app")
    _, asker = await lab.attach("asker", "app")
    async with lab.echo_udp(web.netns_path, 53, "mine"):
        assert await lab.ask_udp(asker.netns_path, web.endpoints["app"].ip_address, 53) == b"mine"
        assert (await resolve(lab, web.netns_path, "asker"))[0] == 0


@in_own_network
async def test_links_name_containers_for_one_asker(lab: Lab) -> None:
    _, db = await lab.attach("db")
    _, app = await lab.attach("app", links=("db:store",), extra_hosts=("gate:host-gateway", "x:192.0.2.7"))
    hosts = app.files["/etc/hosts"].read_text()

    assert f"{db.endpoints['bridge'].ip_address}\tstore db\n" in hosts
    assert "172.17.0.1\tgate\n" in hosts and "192.0.2.7\tx\n" in hosts
    assert f"{app.endpoints['bridge'].ip_address}\tapp\n" in hosts
    await lab.networks.create(NetworkCreate(name="net"))
    _, other = await lab.attach("other", "net")
    _, linked = await lab.attach("linked", "net", links=("other:friend",))
    assert await resolve(lab, linked.netns_path, "friend") == (0, [other.endpoints["net"].ip_address])
