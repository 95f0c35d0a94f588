"""The leader's look for nodes that have fallen silent.

A node is DOWN after HEARTBEAT_GRACE_PERIODS heartbeat periods without a sign of life; a new leader gives all nodes the
time to find it more. The period is the cluster's, which may change at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from swarmlet.log import get_logger
from swarmlet.model.cluster import Cluster
from swarmlet.model.defaults import HEARTBEAT_GRACE_PERIODS
from swarmlet.model.node import Node
from swarmlet.model.states import NodeState
from swarmlet.model.times import NS
from swarmlet_manager.dispatch.liveness import Liveness
from swarmlet_manager.dispatch.noderecords import NodeRecords
from swarmlet_manager.dispatch.session import Ended

log = get_logger(__name__)

#: How often silent nodes are looked for, as a share of the heartbeat period.
SWEEPS_PER_PERIOD = 4
#: How long an agent that said that it would be back may be away: as long as Docker's nodes may be silent. It needs a
#: second; an upgrade on a busy machine needs several. Its tasks run on meanwhile.
RESTART_S = 15.0
#: How long an agent may need to find a new leader: an attempt at one that is away, and the pause behind it.
DIAL_S = 8.0


class Heartbeats:
    """on_down: called with the id of each node that has just been written down as DOWN."""

    def __init__(self, records: NodeRecords, on_down: Callable[[str], None]) -> None:
        self._records = records
        self._on_down = on_down
        self._liveness = Liveness()
        self._period_changed = asyncio.Event()

    def begin(self) -> None:
        """This manager leads now. SwarmKit's rule: twice the usual grace, since agents have to notice first and then
        dial; with short periods that would be too little for the dialling."""
        self._liveness.grant(self._records.state.nodes, _now_s() + max(self._grace_s(), DIAL_S))

    def heard(self, node_id: str, known_period_ns: int = 0) -> None:
        """A sign of life, after which the node may be silent by the period it knows of."""
        grace = max(self._grace_s(), known_period_ns / NS * HEARTBEAT_GRACE_PERIODS)
        self._liveness.beat(node_id, _now_s(), grace)

    def back_soon(self, node_id: str) -> None:
        """Its agent has ended to be started again."""
        self._liveness.beat(node_id, _now_s(), max(self._grace_s(), RESTART_S))

    def forget(self, node_id: str) -> None:
        self._liveness.forget(node_id)

    def period_changed(self) -> None:
        self._period_changed.set()

    async def sweep_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period_s() / SWEEPS_PER_PERIOD):
                    await self._period_changed.wait()
            self._period_changed.clear()
            try:
                await self._sweep()
            except Exception:
                log.exception("looking for silent nodes failed")

    async def _sweep(self) -> None:
        state = self._records.state
        up = [node.id for node in state.nodes.values() if node.state in (NodeState.READY, NodeState.DISCONNECTED)]
        for node_id in self._silent(up):
            try:
                await self._records.update(node_id, self._down)
            except Ended:  # removed meanwhile
                continue
            node = state.nodes.get(node_id)
            if node is not None and node.state is NodeState.DOWN:
                log.warning("node is down", node_id=node_id, silent_s=self._grace_s())
                self._on_down(node_id)

    def _silent(self, node_ids: Sequence[str]) -> list[str]:
        return self._liveness.silent(node_ids, _now_s(), self._grace_s())

    def _down(self, node: Node) -> Node:
        if not self._silent([node.id]):
            return node  # it has been heard of while others were written down
        return self._records.in_state(node, NodeState.DOWN, "heartbeat failure")

    def _period_s(self) -> float:
        return period_of(self._records.state.cluster or Cluster(id="")) / NS

    def _grace_s(self) -> float:
        """Seconds of silence after which a node is down."""
        return self._period_s() * HEARTBEAT_GRACE_PERIODS


def period_of(cluster: Cluster) -> int:
    """The heartbeat period that its agents are told, in nanoseconds."""
    return cluster.spec.dispatcher.heartbeat_period


def _now_s() -> float:
    return asyncio.get_running_loop().time()
