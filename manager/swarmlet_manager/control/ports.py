"""What control and dispatch need of the store: declared here, where it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from swarmlet_manager.state import Change, Op, State, StoredRecord


class StorePort(Protocol):
    """The cluster's records: read from memory, written through the leader."""

    @property
    def state(self) -> State: ...

    @property
    def leader(self) -> bool:
        """True while this manager may write."""
        ...

    @property
    def term(self) -> int:
        """The leader key's create revision: grows with each new leader."""
        ...

    async def commit(self, ops: Sequence[Op]) -> Sequence[StoredRecord]:
        """All or nothing; returns the records as stored. StaleView, Unavailable."""
        ...

    def subscribe(self, callback: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call back, synchronously, with each applied batch; returns what ends the subscription."""
        ...
