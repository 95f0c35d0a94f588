"""The routing mesh over three nodes, with real traffic: every entry, every backend, both address families."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from mesh_lab import CLIENT, CLIENT6, NODES, PORT, TARGET, MeshLab, backend_ip, backends, node_ip, published
from net_lab import Lab, in_own_network
from stray import stray_segment

from swarmlet.errors import Conflict
from swarmlet_agent.net.mesh.plan import ENTRY, Backend, MeshNode, Published
from swarmlet_agent.net.mesh.rules import FORMER, TABLE

pytestmark = pytest.mark.kernel
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ALL = {"c1", "c2", "c3"}


async def answers(mesh: MeshLab, where: str, host: str, kind: int = TCP, port: int = PORT) -> set[str]:
    """Who answers, as "container client-address", over 40 connections: of three evenly drawn, one in 10^6 is missed."""
    return {await mesh.spaces.ask(where, host, port, kind) for _ in range(40)}


@in_own_network
async def test_a_client_reaches_every_backend_through_every_node_and_keeps_its_address(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1, 2, 3))

        for number in NODES.values():
            for version, client in ((4, CLIENT), (6, CLIENT6)):
                for kind in (TCP, UDP):
                    found = await answers(mesh, "x", node_ip(number, version), kind)
                    assert found == {f"{name} {client}" for name in ALL}


@in_own_network
async def test_a_port_may_lead_to_another_port_and_others_stay_closed(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2))

        with pytest.raises(ConnectionRefusedError):
            await mesh.spaces.ask("x", node_ip(1), TARGET)


@in_own_network
async def test_a_nodes_own_clients_reach_every_backend_also_by_localhost_and_by_other_nodes(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1, 2, 3))

        for kind in (TCP, UDP):
            for host in ("127.0.0.1", *(node_ip(number, version) for number in (1, 2) for version in (4, 6))):
                found = await answers(mesh, "n1", host, kind)
                assert {line.split()[0] for line in found} == ALL, (host, found)


@in_own_network
async def test_a_container_reaches_every_backend_through_its_node_itself_too(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1, 2, 3))

        for kind in (TCP, UDP):
            for host in (node_ip(1), node_ip(1, 6), node_ip(2), "10.7.0.1"):
                found = await answers(mesh, "c1", host, kind)
                assert {line.split()[0] for line in found} == ALL, (host, found)


@in_own_network
async def test_a_port_on_one_address_of_the_host_is_closed_on_the_others(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build()
        mesh.spaces.ip("n1", "addr add 192.0.2.77/24 dev eth0")
        mesh.ensure(*published(2, 3, host_ip="192.0.2.77"), *published(1, host_ip="fd02::1"))

        assert await answers(mesh, "x", "192.0.2.77") == {f"c2 {CLIENT}", f"c3 {CLIENT}"}
        assert await answers(mesh, "x", node_ip(1, 6), UDP) == {f"c1 {CLIENT6}"}
        with pytest.raises(ConnectionRefusedError):
            await mesh.spaces.ask("x", node_ip(1), PORT)


@in_own_network
async def test_local_only_ports_lead_to_the_nodes_own_backends_and_refuse_without(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1, 2, local_only=True))

        for number, name in ((1, "c1"), (2, "c2")):
            assert await answers(mesh, "x", node_ip(number)) == {f"{name} {CLIENT}"}
        for version in (4, 6):
            with pytest.raises(ConnectionRefusedError):
                await mesh.spaces.ask("x", node_ip(3, version), PORT)
        assert mesh.spaces.syns_again("x") == 0


@in_own_network
async def test_a_port_without_backends_refuses_at_once_whoever_else_listens_there(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published())
        await stack.enter_async_context(mesh.spaces.serve("n1", PORT, "squatter"))

        for version in (4, 6):
            with pytest.raises(ConnectionRefusedError):
                await mesh.spaces.ask("x", node_ip(1, version), PORT)
            with pytest.raises(ConnectionRefusedError):
                await mesh.spaces.ask("x", node_ip(1, version), PORT, UDP)
        assert mesh.spaces.syns_again("x") == 0


@in_own_network
async def test_a_port_on_ipv6_localhost_refuses_at_once_though_a_socket_holds_it(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1, 2, 3))
        await stack.enter_async_context(mesh.spaces.serve("n1", PORT, "holder"))

        for kind in (TCP, UDP):
            with pytest.raises(ConnectionRefusedError):
                await mesh.spaces.ask("n1", "::1", PORT, kind)


@in_own_network
async def test_open_connections_go_on_and_none_fails_while_backends_change(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2))
        lines = [
            stack.enter_context(await mesh.spaces.connect("x", node_ip(number, version), PORT))
            for number in NODES.values() for version in (4, 6)
        ]
        ended = asyncio.Event()

        running = [
            asyncio.create_task(mesh.spaces.ask_until(ended, "x", node_ip(number, version), PORT, ALL))
            for number, version in ((1, 4), (1, 6), (3, 4))
        ]
        for turn in range(60):
            some = ((1, 3), (1, 2), (3,), (1, 2, 3))[turn % 4]
            leaving = tuple(number for number in (1, 2, 3) if number not in some)
            mesh.ensure(*(
                replace(port, backends=port.backends + backends(*leaving, serving=False)) for port in published(*some)
            ))
            for line in lines:
                assert (await line.ask()).startswith("c2 ")
        ended.set()
        assert min(await asyncio.gather(*running)) > 10


@in_own_network
async def test_udp_flows_of_a_dead_backend_are_cut(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2))
        lines = [
            stack.enter_context(await mesh.spaces.connect("x", node_ip(1, version), PORT, UDP)) for version in (4, 6)
        ]
        for line in lines:
            assert (await line.ask()).startswith("c2 ")

        mesh.ensure(*published(3))
        mesh.spaces.inside("n1", lambda: mesh.meshes["n1"].cut([backend_ip(2), backend_ip(2, 6)]))

        for line in lines:
            assert (await line.ask()).startswith("c3 ")


@in_own_network
async def test_an_agent_that_comes_back_changes_nothing_and_open_connections_go_on(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        ports = published(1, 2, 3)
        await mesh.build(*ports)
        lines = [stack.enter_context(await mesh.spaces.connect("x", node_ip(1, v), PORT)) for v in (4, 6)]
        before = {name: mesh.picture(name) for name in NODES}

        for name in NODES:
            mesh.start_agent(name)
        mesh.ensure(*ports)

        assert {name: mesh.picture(name) for name in NODES} == before
        for line in lines:
            await line.ask()


@in_own_network
async def test_a_packet_that_cannot_be_tracked_breaks_no_stream(lab: Lab) -> None:
    """It is not translated and arrives at the node itself, whose refusal would end the client's connection."""
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2))
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            line = stack.enter_context(await mesh.spaces.connect("x", node_ip(1, version), PORT))
            assert (await line.ask()).startswith("c2")
            raw = mesh.spaces.inside(
                "x", lambda family=family: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
            )
            with raw:
                for _ in range(3):
                    raw.sendto(stray_segment(line.channel), (node_ip(1, version), 0))
                    assert (await line.ask()).startswith("c2")


@in_own_network
async def test_an_agent_that_comes_back_to_another_state_removes_what_is_left_over(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1))
        wanted = mesh.picture("n1")
        mesh.ensure(*published(1, 2, 3), Published("tcp", 9000, backends(3)), only=("n1",),
                    peers=tuple(MeshNode(n, f"192.0.2.{n}") for n in (2, 3, 7)), containers=("10.99.0.0/16",))
        assert mesh.picture("n1") != wanted

        mesh.start_agent("n1")
        mesh.ensure(*published(1), only=("n1",))

        assert mesh.picture("n1") == wanted


@in_own_network
async def test_what_someone_else_removed_is_made_again(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2, 3))

        mesh.spaces.ip("n1", "link del ing0")
        mesh.ensure(*published(2, 3))
        assert await answers(mesh, "x", node_ip(1)) == {f"c2 {CLIENT}", f"c3 {CLIENT}"}

        mesh.spaces.command("n1", "nft", "flush", "ruleset")
        mesh.ensure(*published(2))
        assert await answers(mesh, "x", node_ip(1)) == {f"c2 {CLIENT}"}


@in_own_network
async def test_no_connection_fails_while_tables_of_an_earlier_release_are_replaced(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2, 3))
        wanted = mesh.picture("n1")
        ended = asyncio.Event()

        running = [
            asyncio.create_task(mesh.spaces.ask_until(ended, "x", node_ip(1, version), PORT, ALL))
            for version in (4, 6)
        ]
        for _ in range(10):
            mesh.spaces.as_of_an_earlier_release("n1", TABLE, FORMER[-1])
            mesh.start_agent("n1")
            await asyncio.to_thread(mesh.ensure, *published(2, 3), only=("n1",))
        ended.set()
        assert min(await asyncio.gather(*running)) > 10
        assert mesh.picture("n1") == wanted


@in_own_network
async def test_marks_are_what_the_nodes_own_rules_can_rely_on(lab: Lab) -> None:
    """Of a packet never a slot, which a rule for other marks might take for its own; of a connection not for long."""
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(1, 2, 3))
        mesh.spaces.command("n1", "nft", "-f", "-", text=f"""
            table inet own {{
                chain routed {{ type filter hook forward priority 0;
                    ct direction original th dport {TARGET} meta mark != {ENTRY} drop; }}
                chain own {{ type filter hook output priority 0;
                    ct direction original th dport {TARGET} meta mark != {ENTRY} drop; }}
                chain last {{ type filter hook postrouting priority 300;
                    th dport {TARGET} ct mark != {ENTRY} drop; }}
            }}""")
        for kind in (TCP, UDP):
            for version in (4, 6):
                assert {line.split()[0] for line in await answers(mesh, "x", node_ip(1, version), kind)} == ALL
                assert {line.split()[0] for line in await answers(mesh, "n1", node_ip(1, version), kind)} == ALL


@in_own_network
async def test_removal_leaves_nothing_and_can_be_repeated(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build()
        for name in NODES:
            mesh.spaces.inside(name, mesh.meshes[name].remove)
        clean = mesh.picture("n1")
        assert all(link[0] != "ing0" for link in clean["links"])
        assert "swlmesh" not in str(clean["nft"])
        mesh.ensure(*published(1, 2, 3))
        assert mesh.picture("n1") != clean

        for _ in range(2):
            mesh.spaces.inside("n1", mesh.meshes["n1"].remove)

            assert mesh.picture("n1") == clean
        mesh.ensure(*published(1, 2, 3))
        assert {line.split()[0] for line in await answers(mesh, "x", node_ip(1))} == ALL


@in_own_network
async def test_a_node_with_another_address_is_found_again(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(*published(2))
        assert await answers(mesh, "x", node_ip(1)) == {f"c2 {CLIENT}"}

        mesh.spaces.ip("n2", "addr del 192.0.2.2/24 dev eth0", "addr add 192.0.2.22/24 dev eth0",
                       "route add default via 192.0.2.254")
        moved = MeshNode(2, "192.0.2.22")
        for name in ("n1", "n3"):
            peers = tuple(moved if peer.number == 2 else peer for peer in mesh.state(name).peers)
            mesh.ensure(*published(2), only=(name,), peers=peers)
        mesh.ensure(*published(2), only=("n2",), own=moved)

        for number in (1, 3):
            assert await answers(mesh, "x", node_ip(number)) == {f"c2 {CLIENT}"}
        assert "192.0.2.2 " not in str(mesh.picture("n1")["fdb"])


@in_own_network
async def test_large_transfers_fit_through_both_ways(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(Published("tcp", PORT, tuple(replace(one, port=81) for one in backends(2))))

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(1 << 20))
            await writer.drain()
            writer.close()

        listener = mesh.spaces.open("c2", socket.AF_INET6, socket.SOCK_STREAM)
        listener.bind(("::", 81))
        server = await asyncio.start_server(echo, sock=listener)
        stack.callback(server.close)
        data = bytes(range(256)) * 4096
        for version in (4, 6):
            channel = stack.enter_context(await mesh.spaces.connect("x", node_ip(1, version), PORT)).channel
            # 1450 of the device, less the headers of both: what the client may send at once.
            size = channel.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            assert size <= 1450 - (40 if version == 4 else 60)
            reader, writer = await asyncio.open_connection(sock=channel.dup())
            async with asyncio.timeout(30):
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
            writer.close()


@in_own_network
async def test_sctp_packets_get_to_a_backend(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build(Published("sctp", 7000, (Backend(backend_ip(3), 7001, 3),)))

        # This kernel has no SCTP sockets, but tracks and translates it: an INIT, as a client would send it.
        def raw() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 132)

        client, backend = mesh.spaces.inside("x", raw), mesh.spaces.inside("c3", raw)
        stack.callback(client.close)
        stack.callback(backend.close)
        init = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
        header = struct.pack("!HHI", 5000, 7000, 0)
        packet = header + struct.pack("<I", crc32c(header + bytes(4) + init)) + init
        client.sendto(packet, (node_ip(1), 0))

        async with asyncio.timeout(30):
            received = await asyncio.get_running_loop().sock_recv(backend, 2000)
        assert socket.inet_ntoa(received[12:16]) == CLIENT
        assert struct.unpack_from("!HH", received, 20) == (5000, 7001)


@in_own_network
async def test_an_interface_of_the_same_name_is_left_alone(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        mesh = MeshLab(lab, stack)
        await mesh.build()
        mesh.spaces.inside("n1", mesh.meshes["n1"].remove)
        mesh.spaces.ip("n1", "link add ing0 type bridge")

        with pytest.raises(Conflict, match="ing0"):
            mesh.ensure(only=("n1",))
        mesh.spaces.inside("n1", mesh.meshes["n1"].remove)

        assert "ing0" in [link["ifname"] for link in mesh.spaces.ask_ip("n1", "link")]


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
