"""What the leader writes to nodes' records when their agents come, tell something new, or fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from swarmlet.errors import StaleView
from swarmlet.model.node import Node
from swarmlet.model.states import NodeState
from swarmlet.wire import messages
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.dispatch.session import Ended
from swarmlet_manager.state import Put, State


class NodeRecords:
    """now: nanoseconds since 1970, as records have them."""

    def __init__(self, store: StorePort, now: Callable[[], int]) -> None:
        self._store = store
        self.now = now

    @property
    def state(self) -> State:
        return self._store.state

    async def update(self, node_id: str, change: Callable[[Node], Node]) -> None:
        """Written once the change finds the record as it is; nothing is if it changes nothing. Ended: no member."""
        while True:
            node = self.state.nodes.get(node_id)
            if node is None:
                raise Ended(messages.CLOSE_REMOVED, "the node is not a member of this cluster any more")
            changed = change(node)
            if changed == node:
                return
            try:
                await self._store.commit([Put(replace(changed, updated_at=self.now()))])
            except StaleView:
                await asyncio.sleep(0)
                continue
            return

    def in_state(self, node: Node, state: NodeState, message: str) -> Node:
        since = node.state_changed_at if node.state is state else self.now()
        return replace(node, state=state, message=message, state_changed_at=since)
