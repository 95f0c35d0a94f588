"""The managers this node knows, best first: remembered on disk, so that a restart finds them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from swarmlet_agent.journal import Journal

_KEY = "managers"


class ManagerList:
    def __init__(self, journal: Journal, seeds: Sequence[str] = ()) -> None:
        """seeds: "host:port" from the configuration or the join command; what the cluster told comes first."""
        self._journal = journal
        stored = dict(journal.items("meta")).get(_KEY)
        known: list[str] = [] if stored is None else msgspec.msgpack.decode(stored, type=list[str])
        self._known = list(dict.fromkeys([*known, *seeds]))

    def in_order(self) -> list[str]:
        return list(self._known)

    def prefer(self, address: str) -> None:
        """Dial this one first from now on."""
        self._known = list(dict.fromkeys([address, *self._known]))

    def demote(self, address: str) -> None:
        """Dial this one last."""
        if address in self._known:
            self._known.remove(address)
            self._known.append(address)

    async def told(self, addresses: Iterable[str], current: str) -> None:
        """The cluster's own list replaces what was known; the one that told it stays first. On disk on return."""
        fresh = list(dict.fromkeys([current, *addresses]))
        if set(fresh) != set(self._known):
            self._known = fresh
            await self._journal.put("meta", _KEY, msgspec.msgpack.encode(fresh))

    async def forget(self) -> None:
        self._known = []
        await self._journal.delete("meta", _KEY)
