"""This node's part of the encrypted ways: its keys, and what a manager tells of the others'.

Private keys are in a file of their own, readable by root; what was told last is in the journal, so that a host that
comes up again has its ways before a manager answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from swarmlet.errors import SwarmletError
from swarmlet.model.ways import WAYS_BYTES, WAYS_PORTS, NodeWays, WayKey
from swarmlet.pki import write_private
from swarmlet.wire.networking import WaysInfo
from swarmlet_agent.journal import Write
from swarmlet_agent.keymaker import way_keys
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.wireguard.plan import Generation, Peer, WayKeys, WireguardState

#: Journal table with one entry: what was told of the ways, and the MTU of the underlay then.
TOLD = "ways"
_UNDERLAY_MTU = 1500
#: How often it is looked whether the devices are still there: a program may have ended.
LOOK_S = 5.0
PROBLEM = "encrypted ways"


class _Told(msgspec.Struct, frozen=True):
    info: WaysInfo
    mtu: int


class EncryptedWays:
    """One per agent. keys_file: number -> private key, hexadecimal."""

    def __init__(self, ground: Ground, keys_file: Path) -> None:
        self._ground = ground
        self._file = keys_file
        self._keys: dict[int, WayKeys] = {}
        self._told = WaysInfo()
        self._mtu = _UNDERLAY_MTU
        #: What the node says of it; `on_change` is called when that has changed.
        self.said = NodeWays()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def inner(self) -> str:
        """This node's address inside; "" while it has none."""
        return self._told.inner

    async def start(self) -> None:
        lacking = await self._ground.run(self._ground.kernel.wireguard.lacking)
        self.said = NodeWays(lacking=lacking)
        stored = await asyncio.to_thread(self._load)
        self._keys = dict(zip(stored, await way_keys(list(stored.values())), strict=True))
        for _, value in self._ground.journal.items(TOLD):
            told = msgspec.msgpack.decode(value, type=_Told)
            await self._make(told.info, told.mtu)

    async def keep(self) -> None:
        """Forever: make again what has gone."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._told.numbers:
                await self._ensure()

    async def update(self, told: WaysInfo, underlay_mtu: int) -> None:
        """Returns once it is in the journal and in the kernel."""
        missing = [number for number in told.numbers if number not in self._keys]
        kept = {number: self._keys[number] for number in told.numbers if number in self._keys}
        kept |= zip(missing, await way_keys([], new=len(missing)), strict=True)
        if kept != self._keys:
            # Old keys go from the disk too: what was sent with them cannot be read any more.
            await asyncio.to_thread(self._save, kept)
            self._keys = kept
        mtu = underlay_mtu or _UNDERLAY_MTU
        entry = msgspec.msgpack.encode(_Told(told, mtu)) if told.numbers else None
        await self._ground.journal.write(Write(TOLD, "all", entry))
        await self._make(told, mtu)

    async def _make(self, told: WaysInfo, mtu: int) -> None:
        self._told, self._mtu = told, mtu
        if not await self._ensure():
            return
        self._say(replace(
            self.said, active=told.active if told.numbers else 0, applied=told.digest,
            keys=tuple(
                WayKey(number=number, public_key=self._keys[number].public, port=_port(number))
                for number in told.numbers
            ),
        ))  # fmt: skip

    async def _ensure(self) -> bool:
        try:
            await self._ground.run(self._ground.kernel.wireguard.ensure, self._state())
        except (SwarmletError, OSError) as err:
            # Packets of encrypted networks then go nowhere: they are never sent in the clear.
            self._ground.set_problems(PROBLEM, (f"encrypted networks do not reach other nodes: {err}",))
            return False
        self._ground.set_problems(PROBLEM, ())
        return True

    def _say(self, said: NodeWays) -> None:
        if said != self.said:
            self.said = said
            self.on_change()

    def _state(self) -> WireguardState:
        told = self._told
        return WireguardState(
            told.inner, told.active, mtu=self._mtu - WAYS_BYTES,
            generations=tuple(
                Generation(number, self._keys[number].private, _port(number), tuple(
                    Peer(key.public_key, peer.address, key.port, peer.inner)
                    for peer in told.peers for key in peer.keys if key.number == number
                ))
                for number in told.numbers
            ),
        )  # fmt: skip

    def _load(self) -> dict[int, bytes]:
        try:
            stored = msgspec.json.decode(self._file.read_bytes(), type=dict[int, str])
        except FileNotFoundError:
            return {}
        return {number: bytes.fromhex(text) for number, text in stored.items()}

    def _save(self, keys: dict[int, WayKeys]) -> None:
        if keys:
            private = {number: both.private.hex() for number, both in keys.items()}
            write_private(self._file, msgspec.json.encode(private).decode())
        else:
            self._file.unlink(missing_ok=True)


def _port(number: int) -> int:
    return WAYS_PORTS[number % len(WAYS_PORTS)]
