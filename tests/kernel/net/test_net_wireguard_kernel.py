"""Encrypted ways between nodes in the kernel; where it has no WireGuard, that it is said."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from net_lab import Lab, in_own_network
from net_spaces import Spaces

from swarmlet.errors import NotSupported
from swarmlet_agent.net import netns
from swarmlet_agent.net.wireguard.kernel import Wireguard
from swarmlet_agent.net.wireguard.keys import new_keys, with_public
from swarmlet_agent.net.wireguard.plan import Generation, Peer, WireguardState
from swarmlet_agent.net.wireguard.userspace import UserspaceDevices

pytestmark = pytest.mark.kernel


def has_wireguard() -> bool:
    ways = Wireguard()
    try:
        return not ways.lacking()
    finally:
        ways.close()


def state(own: int, keys: dict[int, dict[int, bytes]], active: int) -> WireguardState:
    """Of node 1 or 2. keys: generation -> node -> private key."""
    other = 3 - own
    return WireguardState(f"100.65.0.{own}", active, tuple(
        Generation(number, private[own], 51820 + number, (
            Peer(with_public(private[other]).public, f"192.0.2.{other}", 51820 + number, f"100.65.0.{other}"),
        ))
        for number, private in keys.items()
    ))


@pytest.mark.skipif(has_wireguard(), reason="this kernel has WireGuard: the tests below run")
@in_own_network
async def test_a_kernel_without_wireguard_is_told(lab: Lab) -> None:
    ways = Wireguard()
    assert "no WireGuard" in ways.lacking()
    with pytest.raises(NotSupported, match="no WireGuard"):
        ways.ensure(state(1, {1: {1: new_keys().private, 2: new_keys().private}}, 1))
    ways.ensure(WireguardState("100.65.0.1", 0))  # nothing wanted: nothing missing
    ways.remove()
    ways.close()


def listen(spaces: Spaces, where: str) -> socket.socket:
    """Every frame on a bridge."""
    channel = spaces.inside(where, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    channel.bind(("lan", 3))
    channel.setblocking(False)
    return channel


def heard(channel: socket.socket) -> bytes:
    frames = b""
    while True:
        try:
            frames += channel.recv(65536)
        except BlockingIOError:
            return frames


def unburied() -> list[str]:
    """Programs that this process has started, that have ended, and that nobody has waited for."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = file.read_text().partition(" (")[2].rpartition(") ")
            if rest.split()[:2] == ["Z", str(os.getpid())]:
                found.append(name)
    return found


@pytest.mark.skipif(
    not has_wireguard() and shutil.which("wireguard-go") is None,
    reason="this kernel has no WireGuard (module wireguard), and there is no program wireguard-go",
)
@in_own_network
async def test_packets_are_encrypted_keys_change_without_losing_one_and_removal_leaves_nothing(lab: Lab) -> None:
    async with AsyncExitStack() as stack:
        spaces = Spaces(lab.root / "spaces")
        stack.callback(netns.remove_folder, spaces.folder)
        spaces.add("lan")
        spaces.ip("lan", "link add lan type bridge", "link set lan up")
        ways: dict[int, Wireguard] = {}

        def start(own: int) -> Wireguard:
            program = UserspaceDevices("wireguard-go", lab.root / f"wg{own}")
            return spaces.inside(f"n{own}", lambda: Wireguard(program))

        for own in (1, 2):
            spaces.host_on_bridge("lan", "lan", f"n{own}", f"192.0.2.{own}/24")
            ways[own] = start(own)
            assert ways[own].lacking() == ""
            stack.callback(lambda own=own: (spaces.inside(f"n{own}", ways[own].remove), ways[own].close()))
        await stack.enter_async_context(spaces.serve("n2", 80, "a-secret-word"))
        old, new = ({own: new_keys().private for own in (1, 2)} for _ in range(2))

        def ensure(own: int, keys: dict[int, dict[int, bytes]], active: int) -> None:
            for _ in range(2):
                spaces.inside(f"n{own}", lambda: ways[own].ensure(state(own, keys, active)))

        sniffer = stack.enter_context(listen(spaces, "lan"))
        ensure(1, {1: old}, 1)
        ensure(2, {1: old}, 1)
        line = stack.enter_context(await spaces.connect("n1", "100.65.0.2", 80, socket.SOCK_DGRAM))
        assert await line.ask() == "a-secret-word 100.65.0.1"
        for keys, active in (({1: old, 2: new}, 1), ({1: old, 2: new}, 2), ({2: new}, 2)):
            for own in (1, 2):
                ensure(own, keys, active)
                assert await line.ask() == "a-secret-word 100.65.0.1"
        assert not unburied()  # the programs of the old keys
        # An agent that comes back finds all of it, and changes nothing.
        ways[1].close()
        ways[1] = start(1)
        ensure(1, {2: new}, 2)
        assert await line.ask() == "a-secret-word 100.65.0.1"
        frames = heard(sniffer)
        assert frames and b"secret" not in frames
        for own in (1, 2):
            spaces.inside(f"n{own}", ways[own].remove)
            assert not [link for link in spaces.ask_ip(f"n{own}", "link") if link["ifname"].startswith("swlwg")]
