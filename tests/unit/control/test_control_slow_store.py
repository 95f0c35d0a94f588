"""A store that takes its time: what nodes say meanwhile is heard."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fakes.control_world import cluster, until

from swarmlet.model.states import NodeState


async def test_a_slow_store_makes_no_node_silent(tmp_path: Path) -> None:
    """A node whose description waits to be written goes on being heard, for longer than the grace of three periods."""
    async with cluster(tmp_path, 1) as (_, manager, (agent,)):
        commit, may_go, waiting = manager.store.commit, asyncio.Event(), asyncio.Event()

        async def slow(*args: Any, **more: Any) -> Any:
            waiting.set()
            await may_go.wait()
            return await commit(*args, **more)

        manager.store.commit = slow  # type: ignore[method-assign]
        agent.hostname = "renamed"
        assert agent.session is not None
        agent.session.description_changed()
        await waiting.wait()
        waiting.clear()
        await asyncio.sleep(4.0)
        assert not waiting.is_set()  # a node that is down would be written, too
        may_go.set()
        node_id = agent.identity.node_id
        await until(lambda: manager.store.state.nodes[node_id].description.hostname == "renamed")
        assert manager.store.state.nodes[node_id].state is NodeState.READY
