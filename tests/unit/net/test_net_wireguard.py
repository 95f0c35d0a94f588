"""WireGuard devices: messages byte by byte, and no more changes than it takes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.net.netlink import attr, attributes, nested
from swarmlet_agent.net.wireguard import messages, userspace
from swarmlet_agent.net.wireguard.keys import new_keys, with_public
from swarmlet_agent.net.wireguard.plan import (
    DeviceChange,
    DeviceNow,
    Generation,
    Peer,
    WireguardState,
    clamped,
    difference,
    leftovers,
)

KEY = bytes(range(32))
_PEERS = st.lists(
    st.builds(
        Peer, st.integers(1, 9).map(lambda n: bytes([n]) * 32), st.sampled_from(("192.0.2.1", "192.0.2.2", "fd02::1")),
        st.sampled_from((51820, 51821)), st.sampled_from(("100.65.0.1", "100.65.0.2", "fd54::1")),
    ),
    max_size=5, unique_by=lambda peer: peer.public_key,
).map(tuple)


def apply(now: DeviceNow, change: DeviceChange) -> DeviceNow:
    """What the kernel makes of a change's messages."""
    peers = {peer.public_key: peer for peer in now.peers if peer.public_key not in change.gone}
    peers |= {peer.public_key: peer for peer in change.peers}
    key = clamped(change.private_key) if change.private_key is not None else now.private_key
    return DeviceNow(key, change.port if change.port is not None else now.port, tuple(peers.values()))


@given(_PEERS, _PEERS)
def test_a_change_leads_to_what_is_wanted_and_a_second_pass_changes_nothing(
    before: tuple[Peer, ...], after: tuple[Peer, ...]
) -> None:
    wanted = Generation(1, KEY, 51820, after)
    now = apply(DeviceNow(peers=before), difference(DeviceNow(peers=before), wanted))

    assert (now.private_key, now.port, set(now.peers)) == (clamped(KEY), 51820, set(after))
    assert not difference(now, wanted)


def test_peers_that_stay_are_not_touched_and_the_key_is_not_set_again() -> None:
    stays, leaves, comes = (Peer(bytes([n]) * 32, f"192.0.2.{n}", 51820, f"100.65.0.{n}") for n in (1, 2, 3))
    now = DeviceNow(clamped(KEY), 51820, (stays, leaves))

    assert difference(now, Generation(1, KEY, 51820, (stays, comes))) == DeviceChange(
        peers=(comes,), gone=(leaves.public_key,)
    )


@given(_PEERS)
def test_a_device_is_read_as_it_was_written(peers: tuple[Peer, ...]) -> None:
    sent = messages.set_device(77, "wg", DeviceChange(KEY, 51820, peers))
    answer = sent[0].body + attr(4, with_public(KEY).public)  # the kernel adds the public key

    assert all(message.kind == 77 for message in sent)
    assert messages.parse_device([answer]) == DeviceNow(KEY, 51820, peers)


def test_many_peers_come_in_several_messages_and_are_read_together() -> None:
    peers = tuple(
        Peer(struct.pack("=I28x", n), "192.0.2.1", 1000 + n, f"100.65.{n >> 8}.{n & 255}") for n in range(600)
    )
    sent = messages.set_device(77, "wg", DeviceChange(KEY, 1, peers))

    assert len(sent) == 3
    assert all(len(message.body) < 65536 for message in sent)
    assert [3 in dict(attributes(message.body, 4)) for message in sent] == [True, False, False]  # the private key
    assert messages.parse_device(message.body for message in sent).peers == peers


def test_a_removed_peer_is_named_with_its_flag_and_goes_first() -> None:
    peer = Peer(b"n" * 32, "192.0.2.1", 51820, "100.65.0.1")
    (message,) = messages.set_device(77, "wg", DeviceChange(peers=(peer,), gone=(b"o" * 32,)))

    first, second = (payload for _, payload in attributes(dict(attributes(message.body, 4))[8], 0))
    assert dict(attributes(first, 0)) == {1: b"o" * 32, 3: struct.pack("=I", 1)}  # WGPEER_F_REMOVE_ME
    assert dict(attributes(second, 0))[1] == b"n" * 32
    assert dict(attributes(second, 0))[4] == b"\x02\x00\xca\x6c\xc0\x00\x02\x01" + bytes(8)  # sockaddr_in
    assert second.endswith(
        nested(9, nested(0, attr(1, b"\x02\x00"), attr(2, b"\x64\x41\x00\x01"), attr(3, b"\x20")))
    )


def test_keys_have_their_size_and_stay_out_of_texts() -> None:
    made = new_keys()
    assert (len(made.private), len(made.public)) == (32, 32)
    assert with_public(made.private) == made
    assert repr(made.private) not in repr(made)
    assert KEY.hex() not in repr(DeviceNow(KEY)) and repr(KEY) not in repr(DeviceNow(KEY))
    assert KEY.hex() not in repr(Generation(1, KEY, 1))
    assert repr(KEY) not in repr(DeviceChange(KEY, 1))
    with pytest.raises(ValueError, match="32"):
        with_public(b"short")


@given(st.binary(min_size=32, max_size=32))
def test_a_key_as_devices_keep_it_is_the_same_key(private: bytes) -> None:
    assert with_public(clamped(private)).public == with_public(private).public


def test_devices_of_generations_that_are_over_are_left_over() -> None:
    state = WireguardState("100.65.0.1", 2, (Generation(2, KEY, 1), Generation(1003, KEY, 2)))

    assert leftovers(["swlwg1", "swlwg2", "swlwg3", "eth0"], state) == ["swlwg1"]


def test_the_family_is_asked_for_by_name() -> None:
    assert messages.family_query() == b"\x03\x01\x00\x00" + attr(2, b"wireguard\0")
    assert messages.parse_family(b"\x01\x02\x00\x00" + attr(2, b"wireguard\0") + attr(1, b"\x1d\x00")) == 29


def told(lines: list[str], now: DeviceNow) -> DeviceNow:
    """What a program makes of a `set` operation (wireguard.com/xplatform)."""
    key, port, peers, at = now.private_key, now.port, {peer.public_key: peer for peer in now.peers}, b""
    for line in lines:
        name, _, value = line.partition("=")
        if name == "private_key":
            key = clamped(bytes.fromhex(value))
        elif name == "listen_port":
            port = int(value)
        elif name == "public_key":
            at = bytes.fromhex(value)
            peers.setdefault(at, Peer(at, "", 0, ""))
        elif name == "remove":
            del peers[at]
        elif name == "endpoint":
            host, _, number = value.rpartition(":")
            peers[at] = Peer(at, host.strip("[]"), int(number), peers[at].inner)
        elif name == "allowed_ip":
            peers[at] = Peer(at, peers[at].address, peers[at].port, value.partition("/")[0])
    return DeviceNow(key, port, tuple(peers.values()))


@given(_PEERS, _PEERS)
def test_a_program_is_told_the_same_as_the_kernel(before: tuple[Peer, ...], after: tuple[Peer, ...]) -> None:
    now = DeviceNow(clamped(KEY), 51820, before)
    change = difference(now, Generation(1, bytes(32), 51821, after))
    text = userspace.text_of(change)
    assert text.startswith("set=1\n") and text.endswith("\n\n")
    made = told(text.split(), now)
    assert made == apply(now, change)
    # And reads back as it was set.
    lines = [f"private_key={made.private_key.hex()}", f"listen_port={made.port}"]
    for peer in made.peers:
        host = f"[{peer.address}]" if ":" in peer.address else peer.address
        lines += [f"public_key={peer.public_key.hex()}", f"endpoint={host}:{peer.port}", "last_handshake_time_sec=0",
                  f"allowed_ip={peer.inner}/{128 if ':' in peer.inner else 32}"]  # fmt: skip
    assert userspace.parse([*lines, "errno=0"]) == made
