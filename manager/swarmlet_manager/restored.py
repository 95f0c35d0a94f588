"""A cluster whose state was restored from a backup: its terms go on growing, though etcd's revisions went back.

Agents keep the highest term they have seen and refuse orders of a lower one: after an election later than the backup
they would refuse every leader until etcd had come as far again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec.structs import replace

from swarmlet.config import RESTORED
from swarmlet.errors import Internal, StaleView
from swarmlet.log import get_logger
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.state import Put

log = get_logger(__name__)


async def note_restore(store: StorePort, folder: Path) -> None:
    """The leader's: what `swarmlet restore` has left in the manager's folder goes into the cluster's record, once.

    Internal if the file is not what a restore writes.
    """
    file = folder / RESTORED
    try:
        moment = int(file.read_text())
    except FileNotFoundError:
        return
    except ValueError as err:
        raise Internal(f"{file} is no moment of a restore: remove it") from err
    while (cluster := store.state.cluster) is not None and cluster.terms_after < moment:
        try:
            await store.commit([Put(replace(cluster, terms_after=moment))])
        except StaleView:
            continue
        log.info("the cluster was restored from a backup", cluster_id=cluster.id)
    await asyncio.to_thread(file.unlink)
