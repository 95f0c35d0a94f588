"""When each node was last heard of: in the leader's memory only, never in the store.

Times are seconds of the event loop's clock, handed in. A silence is measured by what holds now or by what held when the
node was last heard of, whichever is longer: it cannot keep to a rule that it has not heard of.
"""

from __future__ import annotations

from collections.abc import Iterable


class Liveness:
    def __init__(self) -> None:
        self._heard: dict[str, tuple[float, float]] = {}  # node id -> when, and the grace that held then

    def grant(self, node_ids: Iterable[str], until: float) -> None:
        """Treat these as heard of then: a new leader gives every node time to find it."""
        self._heard = dict.fromkeys(node_ids, (until, 0.0))

    def beat(self, node_id: str, now: float, grace: float) -> None:
        """A sign of life. grace: seconds that it may be silent from now on, by what it knows."""
        self._heard[node_id] = now, grace

    def forget(self, node_id: str) -> None:
        self._heard.pop(node_id, None)

    def silent(self, node_ids: Iterable[str], now: float, grace: float) -> list[str]:
        """Those not heard of for longer than `grace` seconds; one never heard of starts its grace now."""
        heard = ((ident, *self._heard.setdefault(ident, (now, 0.0))) for ident in node_ids)
        return [ident for ident, at, granted in heard if now - at > max(grace, granted)]
