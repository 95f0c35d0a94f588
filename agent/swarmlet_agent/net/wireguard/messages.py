"""WireGuard's generic netlink messages, written and read. Pure. Layout: linux/wireguard.h, genetlink.h."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from swarmlet_agent.net.netlink import NLM_F_ACK, Message, attr, attributes, family_of, nested
from swarmlet_agent.net.wireguard.plan import DeviceChange, DeviceNow, Peer

NETLINK_GENERIC = 16
#: The controller of generic netlink, which knows the others' numbers.
CONTROLLER = 16
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_IFNAME, _PRIVATE_KEY, _LISTEN_PORT, _PEERS = 2, 3, 6, 8
_PEER_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_ALLOWED = 1, 3, 4, 9
_REMOVE_ME, _REPLACE_ALLOWED = 1, 2
_ALLOWED_FAMILY, _ALLOWED_ADDRESS, _ALLOWED_BITS = 1, 2, 3
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
#: A peer takes below 130 bytes, and a message of all of them must fit an attribute's 16 bits of length.
PEERS_PER_MESSAGE = 256


def family_query() -> bytes:
    return _GENERIC.pack(_GET_FAMILY, 1, 0) + attr(_FAMILY_NAME, b"wireguard\0")


def parse_family(body: bytes) -> int:
    """The number that messages to WireGuard carry as their type."""
    return int.from_bytes(dict(attributes(body, _GENERIC.size))[_FAMILY_ID], "little")


def device_query(name: str) -> bytes:
    return _GENERIC.pack(_GET_DEVICE, _VERSION, 0) + attr(_IFNAME, name.encode() + b"\0")


def set_device(family: int, name: str, change: DeviceChange) -> list[Message]:
    """A change in as many messages as it takes; the keys and the port go with the first."""
    own = b"" if change.private_key is None else attr(_PRIVATE_KEY, change.private_key)
    own += b"" if change.port is None else attr(_LISTEN_PORT, struct.pack("=H", change.port))
    # Who goes, goes first: an inner address belongs to one peer at a time.
    peers = [_gone(key) for key in change.gone] + [_peer(peer) for peer in change.peers]
    pieces: list[Sequence[bytes]] = [
        peers[first : first + PEERS_PER_MESSAGE] for first in range(0, len(peers), PEERS_PER_MESSAGE)
    ]
    messages = []
    for piece in pieces or [()]:
        body = _GENERIC.pack(_SET_DEVICE, _VERSION, 0) + attr(_IFNAME, name.encode() + b"\0") + own
        if piece:
            body += nested(_PEERS, *piece)
        messages.append(Message(family, NLM_F_ACK, body, f"setting up WireGuard device {name}"))
        own = b""
    return messages


def parse_device(bodies: Iterable[bytes]) -> DeviceNow:
    """A device from the messages of its listing: a long one comes in several."""
    key, port = b"", 0
    peers: list[Peer] = []
    for body in bodies:
        for number, payload in attributes(body, _GENERIC.size):
            match number:
                case 3:
                    key = payload
                case 6:
                    port = int.from_bytes(payload, "little")
                case 8:
                    peers += _parse_peers(payload)
                case _:
                    pass
    return DeviceNow(key, port, tuple(peers))


def _gone(public_key: bytes) -> bytes:
    return nested(0, attr(_PEER_KEY, public_key), attr(_PEER_FLAGS, struct.pack("=I", _REMOVE_ME)))


def _peer(peer: Peer) -> bytes:
    inner = ip_address(peer.inner)
    allowed = nested(
        0, attr(_ALLOWED_FAMILY, struct.pack("=H", family_of(inner))), attr(_ALLOWED_ADDRESS, inner.packed),
        attr(_ALLOWED_BITS, bytes([inner.max_prefixlen])),
    )
    return nested(
        0, attr(_PEER_KEY, peer.public_key), attr(_PEER_FLAGS, struct.pack("=I", _REPLACE_ALLOWED)),
        attr(_PEER_ENDPOINT, _endpoint(peer.address, peer.port)), nested(_PEER_ALLOWED, allowed),
    )


def _endpoint(address: str, port: int) -> bytes:
    """A sockaddr_in or sockaddr_in6."""
    packed = ip_address(address).packed
    if len(packed) == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + packed + bytes(4)


def _parse_peers(payload: bytes) -> Iterator[Peer]:
    for _, one in attributes(payload, 0):
        found = dict(attributes(one, 0))
        address, port = _parse_endpoint(found.get(_PEER_ENDPOINT, b""))
        inner = [
            str(ip_address(dict(attributes(entry, 0))[_ALLOWED_ADDRESS]))
            for _, entry in attributes(found.get(_PEER_ALLOWED, b""), 0)
        ]
        # Ours have one address each; anything else differs from what is wanted, and is set anew.
        yield Peer(found.get(_PEER_KEY, b""), address, port, ",".join(inner))


def _parse_endpoint(data: bytes) -> tuple[str, int]:
    if len(data) < 16:
        return "", 0
    (port,) = struct.unpack_from("!H", data, 2)
    packed = data[4:8] if int.from_bytes(data[:2], "little") == socket.AF_INET else data[8:24]
    return str(ip_address(packed)), port
