"""`swarmlet uninstall`: the host as it was before the first agent, except for programs and settings.

The parts that made something are those that remove it: each is started, as an agent would, and torn down.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from swarmlet.config import AgentSettings
from swarmlet.errors import Internal, NotFound
from swarmlet_agent.app import started_parts
from swarmlet_agent.manager_process import ManagerProcess


async def remove_everything(settings: AgentSettings) -> bool:
    """Containers, networks, volumes, images, the manager and its etcd; False if there is nothing.

    The caller holds the agent's lock. May be repeated after an interruption. Internal if something cannot be removed.
    """
    data_dir, run_dir = Path(settings.data_dir), Path(settings.run_dir)
    if not (data_dir / "journal.db").exists() and not run_dir.exists():
        return False
    if (data_dir / "manager").exists():
        await ManagerProcess(settings, lambda: "").remove()
    async with started_parts(settings, None) as parts:
        for container in parts.engine.list():
            with contextlib.suppress(NotFound):  # --rm: it went when its process did
                await parts.engine.remove(container.id, force=True)
        await parts.volumes.teardown()
        await parts.networks.teardown()
        await parts.runtime.teardown()
    for folder in (run_dir, data_dir):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as err:
            raise Internal(f"{err.filename} cannot be removed: {err.strerror}") from err
    return True
