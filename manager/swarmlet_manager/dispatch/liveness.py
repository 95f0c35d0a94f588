"""When each node was last heard of: in the leader's memory only, never in the store.

Times are seconds of the event loop's clock, handed in.
"""

from __future__ import annotations

from collections.abc import Iterable


class Liveness:
    def __init__(self) -> None:
        self._heard: dict[str, float] = {}

    def grant(self, node_ids: Iterable[str], until: float) -> None:
        """Treat these as heard of then: a new leader gives every node time to find it."""
        self._heard = dict.fromkeys(node_ids, until)

    def beat(self, node_id: str, now: float) -> None:
        self._heard[node_id] = now

    def forget(self, node_id: str) -> None:
        self._heard.pop(node_id, None)

    def silent(self, node_ids: Iterable[str], now: float, grace: float) -> list[str]:
        """Those not heard of for longer than `grace` seconds; one never heard of starts its grace now."""
        return [ident for ident in node_ids if now - self._heard.setdefault(ident, now) > grace]
