"""Encrypted ways between nodes in the kernel; where it has no WireGuard, that it is said."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import pytest
from net_lab import Lab, in_own_network
from net_spaces import Spaces

from swarmlet.errors import NotSupported
from swarmlet_agent.net import netns
from swarmlet_agent.net.wireguard.kernel import Wireguard
from swarmlet_agent.net.wireguard.plan import Generation, Peer, WireguardState, new_private_key, public_key

pytestmark = pytest.mark.kernel


def has_wireguard() -> bool:
    ways = Wireguard()
    try:
        return ways.supported()
    finally:
        ways.close()


def state(own: int, keys: dict[int, dict[int, bytes]], active: int) -> WireguardState:
    """Of node 1 or 2. keys: generation -> node -> private key."""
    other = 3 - own
    return WireguardState(f"100.65.0.{own}", active, tuple(
        Generation(number, private[own], 51820 + number, (
            Peer(public_key(private[other]), f"192.0.2.{other}", 51820 + number, f"100.65.0.{other}"),
        ))
        for number, private in keys.items()
    ))


@pytest.mark.skipif(has_wireguard(), reason="this kernel has WireGuard: the tests below run")
@in_own_network
async def test_a_kernel_without_wireguard_is_told(lab: Lab) -> None:
    ways = Wireguard()
    assert not ways.supported()
    with pytest.raises(NotSupported, match="no WireGuard"):
        ways.ensure(state(1, {1: {1: new_private_key(), 2: new_private_key()}}, 1))
    ways.ensure(WireguardState("100.65.0.1", 0))  # nothing wanted: nothing missing
    ways.remove()
    ways.close()


@pytest.mark.skipif(not has_wireguard(), reason="this kernel has no WireGuard (module wireguard)")
@in_own_network
async def test_keys_are_rotated_without_losing_a_packet_and_removal_leaves_nothing(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces = Spaces(lab.root / "spaces")
        stack.callback(netns.remove_folder, spaces.folder)
        spaces.add("lan")
        spaces.ip("lan", "link add lan type bridge", "link set lan up")
        ways: dict[int, Wireguard] = {}
        for own in (1, 2):
            spaces.host_on_bridge("lan", "lan", f"n{own}", f"192.0.2.{own}/24")
            ways[own] = spaces.inside(f"n{own}", Wireguard)
            stack.callback(ways[own].close)
        await stack.enter_async_context(spaces.serve("n2", 80, "n2"))
        old, new = ({own: new_private_key() for own in (1, 2)} for _ in range(2))

        def ensure(own: int, keys: dict[int, dict[int, bytes]], active: int) -> None:
            for _ in range(2):
                spaces.inside(f"n{own}", lambda: ways[own].ensure(state(own, keys, active)))

        ensure(1, {1: old}, 1)
        ensure(2, {1: old}, 1)
        line = stack.enter_context(await spaces.connect("n1", "100.65.0.2", 80, socket.SOCK_DGRAM))
        assert await line.ask() == "n2 100.65.0.1"
        for keys, active in (({1: old, 2: new}, 1), ({1: old, 2: new}, 2), ({2: new}, 2)):
            for own in (1, 2):
                ensure(own, keys, active)
                assert await line.ask() == "n2 100.65.0.1"
        for own in (1, 2):
            spaces.inside(f"n{own}", ways[own].remove)
            assert not [link for link in spaces.ask_ip(f"n{own}", "link") if link["ifname"].startswith("swlwg")]
