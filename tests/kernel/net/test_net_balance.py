"""VIPs of services in containers' namespaces, with real traffic in both address families."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from contextlib import AsyncExitStack
from ipaddress import ip_address

import pytest
from net_lab import Lab, in_own_network
from net_spaces import Spaces
from net_talk import connect_line
from stray import stray_answer

from swarmlet.errors import Internal
from swarmlet_agent.net import conntrack, netns
from swarmlet_agent.net.balance.kernel import Balancers
from swarmlet_agent.net.balance.plan import FORMER, TABLE

pytestmark = pytest.mark.kernel
VIP, VIP6, PORT = "10.9.0.200", "fd09::200", 80
BACKENDS = {"b1": ("10.9.0.11", "fd09::11"), "b2": ("10.9.0.12", "fd09::12"), "b3": ("10.9.0.13", "fd09::13")}
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
TCP_PACKETS = socket.IPPROTO_TCP


def services(*names: str) -> dict[str, tuple[str, ...]]:
    return {
        VIP: tuple(BACKENDS[name][0] for name in names),
        VIP6: tuple(BACKENDS[name][1] for name in names),
    }


async def world(lab: Lab, stack: AsyncExitStack) -> tuple[Spaces, Balancers]:
    """A client `c` and three backends on one bridge; every backend serves."""
    spaces = Spaces(lab.root / "spaces")
    stack.callback(netns.remove_folder, spaces.folder)
    spaces.add("host")
    spaces.ip("host", "link add br0 type bridge", "link set br0 up")
    spaces.host_on_bridge("host", "br0", "c", "10.9.0.2/24", "fd09::2/64")
    for name, (v4, v6) in BACKENDS.items():
        spaces.host_on_bridge("host", "br0", name, f"{v4}/24", f"{v6}/64")
        await stack.enter_async_context(spaces.serve(name, PORT, name))
    balancers = Balancers(spaces.folder)
    stack.callback(balancers.close)
    return spaces, balancers


@in_own_network
async def test_connections_to_a_vip_are_spread_evenly_over_all_backends(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1", "b2", "b3"))

        for vip, client in ((VIP, "10.9.0.2"), (VIP6, "fd09::2")):
            for kind in (TCP, UDP):
                answers = Counter([await spaces.ask("c", vip, PORT, kind) for _ in range(90)])
                assert set(answers) == {f"{name} {client}" for name in BACKENDS}
                assert min(answers.values()) > 10  # a third each: below 10 of 90 once in 10^6 runs


@in_own_network
async def test_a_backend_reaches_itself_through_its_own_service(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("b1", services("b1"))

        for vip, own in zip((VIP, VIP6), BACKENDS["b1"], strict=True):
            for kind in (TCP, UDP):
                assert await spaces.ask("b1", vip, PORT, kind) == f"b1 {own}"


@in_own_network
async def test_an_answer_that_cannot_be_tracked_breaks_no_connection(lab: Lab) -> None:
    """It is not translated: the client knows no connection to the backend's own address, and would reset it."""
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1"))
        for vip, backend, family in zip((VIP, VIP6), BACKENDS["b1"], (socket.AF_INET, socket.AF_INET6), strict=True):
            line = stack.enter_context(await spaces.connect("c", vip, PORT))
            assert (await line.ask()).startswith("b1")
            client = line.channel.getsockname()[0]
            with spaces.inside("b1", lambda family=family: socket.socket(family, socket.SOCK_RAW, TCP_PACKETS)) as raw:
                for _ in range(3):
                    raw.sendto(stray_answer(line.channel, (backend, PORT)), (client, 0))
                    await asyncio.sleep(0.05)
                    assert (await line.ask()).startswith("b1")


@in_own_network
async def test_tables_of_an_earlier_release_are_replaced(lab: Lab) -> None:
    """In both families, though the container has a service in one of them only by now."""
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        for family in ("ip", "ip6"):
            for name in FORMER:
                spaces.command("c", "nft", "add", "table", family, name)
        balancers.apply("c", {VIP: (BACKENDS["b1"][0],)})

        assert spaces.command("c", "nft", "list", "tables").split() == ["table", "ip", TABLE]
        assert (await spaces.ask("c", VIP, PORT)).startswith("b1 ")


@in_own_network
async def test_no_connection_fails_while_tables_of_an_earlier_release_are_replaced(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1", "b2"))
        ended = asyncio.Event()

        running = [asyncio.create_task(spaces.ask_until(ended, "c", vip, PORT, BACKENDS)) for vip in (VIP, VIP6)]
        for _ in range(10):
            balancers.close()
            spaces.as_of_an_earlier_release("c", TABLE, FORMER[-1])
            balancers = Balancers(spaces.folder)
            stack.callback(balancers.close)
            await asyncio.to_thread(balancers.apply, "c", services("b2", "b3"))
        ended.set()
        assert min(await asyncio.gather(*running)) > 10
        assert FORMER[-1] not in spaces.command("c", "nft", "list", "tables")


@in_own_network
async def test_marks_of_a_containers_own_are_not_touched_and_none_of_ours_stays(lab: Lab) -> None:
    """A packet's mark may choose its route; a connection's own mark goes only where a slot is drawn for it."""
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1", "b2", "b3"))
        spaces.command("c", "nft", "-f", "-", text=f"""
            table inet own {{
                chain before {{ type filter hook output priority -150; ct state new ct mark set 9; }}
                chain after {{ type filter hook output priority 10; meta l4proto tcp meta mark != 7 reject; }}
                chain last {{ type filter hook postrouting priority 300;
                    ct original ip daddr {VIP} ct mark != {{ 0, 9 }} drop
                    ct original ip6 daddr {VIP6} ct mark != {{ 0, 9 }} drop
                    ct original ip daddr {BACKENDS["b1"][0]} ct mark != 9 drop; }}
            }}""")
        for host in (VIP, VIP6, BACKENDS["b1"][0]):
            for _ in range(10):
                channel = spaces.open("c", socket.AF_INET6 if ":" in host else socket.AF_INET, TCP)
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
                with await connect_line(channel, host, PORT, 5) as line:
                    assert (await line.ask()).split()[0] in BACKENDS


@in_own_network
async def test_open_connections_of_a_removed_backend_go_on_and_new_ones_go_elsewhere(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1"))
        lines = [stack.enter_context(await spaces.connect("c", vip, PORT)) for vip in (VIP, VIP6) for _ in range(5)]
        for line in lines:
            assert (await line.ask()).startswith("b1 ")

        balancers.apply("c", services("b2", "b3"))

        for line in lines:
            assert (await line.ask()).startswith("b1 ")
        for vip in (VIP, VIP6):
            assert {(await spaces.ask("c", vip, PORT)).split()[0] for _ in range(20)} <= {"b2", "b3"}

        balancers.apply("c", services())

        for line in lines:
            assert (await line.ask()).startswith("b1 ")


@in_own_network
async def test_a_service_without_backends_refuses_at_once(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services())

        for vip in (VIP, VIP6):
            with pytest.raises(ConnectionRefusedError):
                await spaces.ask("c", vip, PORT)
            with pytest.raises(OSError) as caught:
                await spaces.ask("c", vip, PORT, UDP)
            assert caught.value.errno in (errno.ECONNREFUSED, errno.EPERM)
        assert spaces.syns_again("c") == 0

        balancers.change("c", {VIP: (BACKENDS["b2"][0],), VIP6: (BACKENDS["b2"][1],), "10.9.0.201": None})

        for vip in (VIP, VIP6):
            assert (await spaces.ask("c", vip, PORT)).startswith("b2 ")
        with pytest.raises(Internal):
            balancers.change("b1", {VIP: ()})


@in_own_network
async def test_udp_flows_of_a_dead_backend_are_cut_and_others_are_not(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1"))
        lines = [stack.enter_context(await spaces.connect("c", vip, PORT, UDP)) for vip in (VIP, VIP6)]
        direct = stack.enter_context(await spaces.connect("c", BACKENDS["b1"][0], PORT, UDP))
        for line in (*lines, direct):
            assert (await line.ask()).startswith("b1 ")
        balancers.apply("c", services("b2"))
        for line in lines:
            assert (await line.ask()).startswith("b1 ")

        balancers.cut(["c", "nobody"], BACKENDS["b1"])

        for line in lines:
            assert (await line.ask()).startswith("b2 ")
        assert (await direct.ask()).startswith("b1 ")


@in_own_network
async def test_flows_are_cut_one_by_one_where_the_kernel_cannot_pick_them(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1"))
        lines = [stack.enter_context(await spaces.connect("c", vip, PORT, UDP)) for vip in (VIP, VIP6)]
        for line in lines:
            assert (await line.ask()).startswith("b1 ")
        balancers.apply("c", services("b2"))
        with netns.inside(spaces.path("c")):
            channel = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
        channel.bind((0, 0))

        conntrack.cut_udp(channel, [ip_address(address).packed for address in BACKENDS["b1"]], filtered=False)

        for line in lines:
            assert (await line.ask()).startswith("b2 ")


@in_own_network
async def test_an_agent_that_comes_back_replaces_all_and_touches_no_connection(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", {**services("b1", "b2"), "10.9.0.201": (BACKENDS["b1"][0],)})
        line = stack.enter_context(await spaces.connect("c", "10.9.0.201", PORT))
        await line.ask()
        balancers.close()

        again = Balancers(spaces.folder)
        stack.callback(again.close)
        again.apply("c", services("b3"))

        assert (await line.ask()).startswith("b1 ")
        for vip in (VIP, VIP6):
            assert {(await spaces.ask("c", vip, PORT)).split()[0] for _ in range(10)} == {"b3"}
        assert "10.9.0.201" not in spaces.command("c", "nft", "list", "ruleset")

        other = Balancers(spaces.folder)
        stack.callback(other.close)
        other.apply("c", {})

        assert VIP not in spaces.command("c", "nft", "list", "ruleset")


@in_own_network
async def test_rules_that_someone_removed_are_made_again_with_the_next_change(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1"))

        spaces.command("c", "nft", "flush", "ruleset")
        balancers.apply("c", services("b2"))
        assert (await spaces.ask("c", VIP, PORT)).startswith("b2 ")

        spaces.command("c", "nft", "flush", "map", "ip", TABLE, "s1")
        balancers.apply("c", services("b3"))
        assert (await spaces.ask("c", VIP, PORT)).startswith("b3 ")
        assert (await spaces.ask("c", VIP6, PORT)).startswith("b3 ")


@in_own_network
async def test_no_connection_fails_while_backends_come_and_go(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", services("b1", "b2"))
        ended = asyncio.Event()

        running = [asyncio.create_task(spaces.ask_until(ended, "c", vip, PORT, BACKENDS)) for vip in (VIP, VIP6)]
        for turn in range(200):
            balancers.apply("c", services(*[("b1", "b2", "b3")[:2], ("b3",), ("b2", "b3"), tuple(BACKENDS)][turn % 4]))
            await asyncio.sleep(0)
        ended.set()
        assert min(await asyncio.gather(*running)) > 10


@in_own_network
async def test_containers_without_services_get_no_rules_and_forgotten_ones_can_go(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces, balancers = await world(lab, stack)
        balancers.apply("c", {})
        assert spaces.command("c", "nft", "list", "ruleset") == ""
        balancers.apply("c", {VIP: (BACKENDS["b1"][0],)})
        assert "ip6" not in spaces.command("c", "nft", "list", "tables")

        balancers.forget("c")
        balancers.forget("c")
        netns.forget(spaces.path("c"))

        async with asyncio.timeout(30):
            while any(link["ifname"] == "vc" for link in spaces.ask_ip("host", "link")):
                await asyncio.sleep(0.02)
        with pytest.raises(FileNotFoundError):
            balancers.apply("c", services("b1"))
