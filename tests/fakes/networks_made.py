"""Networks of a node for tests that are about something else."""

from __future__ import annotations

from collections.abc import Sequence

from swarmlet.errors import NotFound
from swarmlet.model.network import Lease
from swarmlet.model.ways import NodeWays
from swarmlet.wire.networking import Networking
from swarmlet_agent.net.records import NetworkRecord


class FakeNetworks:
    """What a session and a task worker ask: `told` is what managers said, `leases` what containers hold."""

    def __init__(self, *records: NetworkRecord) -> None:
        self.told: list[Networking] = []
        self._records = {record.id: record for record in records}
        self.leases: dict[str, Lease] = {}
        self.taken_back: list[str] = []
        self.said_ways = NodeWays()

    def get(self, ref: str) -> NetworkRecord:
        if ref not in self._records:
            raise NotFound("network", ref)
        return self._records[ref]

    def held(self) -> Sequence[Lease]:
        return tuple(self.leases.values())

    def lost(self, idents: Sequence[str]) -> None:
        self.taken_back += idents

    async def update(self, news: Networking, *, node_id: str, underlay: str) -> None:
        assert node_id and underlay
        self.told.append(news)
