"""What a node's WireGuard devices should have, and the steps from what they have. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: A generation's device is called PREFIX + the last digits of its number.
PREFIX = "swlwg"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node in one generation. address, port: where its device listens; inner: its address inside."""

    public_key: bytes
    address: str
    port: int
    inner: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One set of keys of the whole cluster. port: where this node's device listens."""

    number: int
    private_key: bytes = field(repr=False)
    port: int
    peers: tuple[Peer, ...] = ()

    @property
    def device(self) -> str:
        return f"{PREFIX}{self.number % 1000}"


@dataclass(frozen=True, slots=True)
class WireguardState:
    """inner: this node's own address inside; active: the number of the generation that packets go by."""

    inner: str
    active: int
    generations: tuple[Generation, ...] = ()
    mtu: int = 1420


@dataclass(frozen=True, slots=True)
class DeviceNow:
    """A device as the kernel has it, which tells root its key."""

    private_key: bytes = field(default=b"", repr=False)
    port: int = 0
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class WayKeys:
    """An X25519 key and its public half, 32 bytes each."""

    private: bytes = field(repr=False)
    public: bytes


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """private_key None, port None: stays. A peer that is in `peers` comes, or gets another place; sessions go on."""

    private_key: bytes | None = field(default=None, repr=False)
    port: int | None = None
    peers: tuple[Peer, ...] = ()
    gone: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return self.private_key is not None or self.port is not None or bool(self.peers) or bool(self.gone)


def clamped(private_key: bytes) -> bytes:
    """As devices keep a key: bits that mean nothing are set the same way in all (RFC 7748, 5: decodeScalar25519)."""
    if len(private_key) != 32:
        return b""
    return bytes([private_key[0] & 248, *private_key[1:31], private_key[31] & 127 | 64])


def difference(now: DeviceNow, wanted: Generation) -> DeviceChange:
    """The change that makes the device of a generation. A key is set only if it differs: that ends all sessions."""
    known = {peer.public_key: peer for peer in now.peers}
    names = {peer.public_key for peer in wanted.peers}
    return DeviceChange(
        private_key=wanted.private_key if clamped(now.private_key) != clamped(wanted.private_key) else None,
        port=wanted.port if now.port != wanted.port else None,
        peers=tuple(peer for peer in wanted.peers if known.get(peer.public_key) != peer),
        gone=tuple(sorted(known.keys() - names)),
    )


def leftovers(names: Iterable[str], state: WireguardState) -> list[str]:
    """Devices of ours among these that belong to no generation any more."""
    kept = {generation.device for generation in state.generations}
    return sorted(name for name in names if name.startswith(PREFIX) and name not in kept)
