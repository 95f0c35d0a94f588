"""What /info and `_ping` tell of this host's place in its cluster.

A worker knows no more than its own membership. On a manager clients expect the cluster itself too (its id and spec, how
many nodes), as `docker info` prints them: the host's manager is asked, and its answer serves for a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.membership import Member

log = get_logger(__name__)

#: How long the manager's answer is good, and when one that is asked for all the time is renewed ahead of that.
GOOD_S, RENEW_S = 0.5, 0.2
#: `docker info` is not held up by a manager that hangs.
ASK_S = 2.0


class Manager(Protocol):
    """This host's manager (`SwarmRoutes`)."""

    async def ask(self, method: str, path_qs: str) -> tuple[int, Any]:
        """(status, decoded JSON). Unavailable if it does not answer."""
        ...


class SwarmFacts:
    """`begin` once the member is made; `close` at the end."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._manager: Manager | None = None
        self._cluster: Mapping[str, Any] = {}
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def begin(self, member: Member, manager: Manager) -> None:
        self._member, self._manager = member, manager

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def ping_state(self) -> str:
        status = None if self._member is None else self._member.status()
        if status is None or status.state == "inactive":
            return "inactive"
        return f"{status.state}/{'manager' if status.manager else 'worker'}"

    def info(self) -> Mapping[str, Any]:
        """Engine API SwarmInfo, from memory."""
        if self._member is None:
            return {"LocalNodeState": "inactive"}
        status = self._member.status()
        own = {
            "NodeID": status.node_id,
            "NodeAddr": self._member.address if status.node_id else "",
            "LocalNodeState": status.state,
            "ControlAvailable": status.manager and status.state == "active",
            "Error": status.error,
            "RemoteManagers": [{"NodeID": "", "Addr": address} for address in status.managers] or None,
        }
        return {**own, **self._cluster} if own["ControlAvailable"] else own

    def good(self) -> bool:
        """Whether `info` may be shown without asking. One that is asked for again and again stays good."""
        if self._member is None or not self._member.is_manager:
            return True
        age = time.monotonic() - self._asked_at
        if RENEW_S < age < GOOD_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="swarm facts")
        return age < GOOD_S

    async def refresh(self) -> None:
        """Make `info` good again. Where the manager does not answer, this host's own part of it is all there is."""
        if not self.good():
            await self._ask()

    async def _ask(self) -> None:
        if self._manager is None:
            return
        try:
            async with asyncio.timeout(ASK_S):
                cluster, nodes = await asyncio.gather(
                    self._manager.ask("GET", "/swarm"), self._manager.ask("GET", "/nodes")
                )
        except (SwarmletError, aiohttp.ClientError, ValueError, TimeoutError) as err:
            log.debug("the manager does not tell of the cluster", error=str(err))
            self._cluster = {}
        else:
            self._cluster = _shown(cluster[1], nodes[1]) if cluster[0] == nodes[0] == 200 else {}
        self._asked_at = time.monotonic()


def _shown(cluster: dict[str, Any], nodes: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The manager's part of SwarmInfo, from its ClusterInfo (join tokens are not for /info) and its nodes."""
    managers = [node for node in nodes if node.get("ManagerStatus")]
    return {
        "RemoteManagers": [{"NodeID": node["ID"], "Addr": node["ManagerStatus"].get("Addr", "")} for node in managers],
        "Nodes": len(nodes),
        "Managers": len(managers),
        "Cluster": {name: value for name, value in cluster.items() if name != "JoinTokens"},
    }
