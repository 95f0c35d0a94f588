"""A decision's plan, written: in as many transactions as it takes."""

from __future__ import annotations

from collections.abc import Sequence

from swarmlet.log import get_logger
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.state import Op
from swarmlet_manager.store.kv import TooLarge

log = get_logger(__name__)

#: The largest write of one decision: a plan is cut into commits of so many operations.
MAX_OPS = 5000


async def commit_plan(store: StorePort, plan: Plan) -> None:
    """StaleView, Unavailable: some of it may be written; whoever planned looks again at what is not."""
    for note in plan.notes:
        log.debug("decided", note=note)
    for first in range(0, len(plan.ops), MAX_OPS):
        await _write(store, plan.ops[first : first + MAX_OPS])


async def _write(store: StorePort, ops: Sequence[Op]) -> None:
    """In halves where one transaction cannot hold them: every loop looks again at what it has not finished."""
    try:
        await store.commit(ops)
    except TooLarge:
        if len(ops) == 1:
            raise
        await _write(store, ops[: len(ops) // 2])
        await _write(store, ops[len(ops) // 2 :])
