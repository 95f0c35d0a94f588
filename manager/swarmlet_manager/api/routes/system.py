"""/_ping, /version, /info and /system/df of the whole cluster."""

from __future__ import annotations

import asyncio
import platform
import time
from typing import Any

from aiohttp import web

from swarmlet.engine_api import versions
from swarmlet.engine_api.answers import json_answer, ping_answer, ready_answer
from swarmlet.engine_api.router import Call, Route
from swarmlet.model.node import Node
from swarmlet.model.states import NodeState, Role
from swarmlet.model.times import rfc3339
from swarmlet.release import RELEASE
from swarmlet_manager.api import encode
from swarmlet_manager.api.backend import Commands, Place
from swarmlet_manager.fleet.client import Answer, Fleet

#: Counts of containers and images are asked of the nodes at most this often.
INFO_AGE_S = 1.0
#: /info is not held up by a node that hangs.
INFO_S = 2.0

#: The `Swarm` header of `_ping`: who answers here is a manager.
_SWARM = "active/manager"

Json = dict[str, Any]


class SystemRoutes:
    def __init__(self, commands: Commands, fleet: Fleet, place: Place) -> None:
        self._commands = commands
        self._fleet = fleet
        self._place = place
        self._started_at = time.time_ns()
        self._answers: list[Answer] = []
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_ping", self.ping, lambda call: ping_answer(call.method, _SWARM)),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/system/df", self.disk_usage),
        ]

    async def ping(self, call: Call) -> web.Response:
        """SystemPing."""
        return ready_answer(ping_answer(call.request.method, _SWARM))

    async def version(self, call: Call) -> web.Response:
        release = RELEASE
        details = {
            "ApiVersion": str(versions.NEWEST), "MinAPIVersion": str(versions.OLDEST), "Os": "linux",
            "Arch": _architecture(), "KernelVersion": platform.release(), "Experimental": "false",
        }
        components = [{"Name": "Engine", "Version": release, "Details": details}]
        components.append({"Name": "Swarmlet manager", "Version": release, "Details": {"View": "cluster"}})
        return json_answer(
            {
                "Platform": {"Name": "Swarmlet cluster"}, "Components": components, "Version": release,
                "ApiVersion": str(versions.NEWEST), "MinAPIVersion": str(versions.OLDEST), "GitCommit": "",
                "GoVersion": "", "Os": "linux", "Arch": _architecture(), "KernelVersion": platform.release(),
                "BuildTime": rfc3339(self._started_at),
            }
        )

    async def info(self, call: Call) -> web.Response:
        """The cluster as one engine: sums over its ready nodes, and what all have in common from the first."""
        answers = await self._node_infos()
        nodes = self._commands.nodes()
        base: Json = dict(answers[0].body) if answers else {}
        total = {
            field: sum(int(answer.body.get(field) or 0) for answer in answers)
            for field in ("Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped")
        }
        images = max((int(answer.body.get("Images") or 0) for answer in answers), default=0)
        resources = [node.description.resources for node in nodes if node.state is NodeState.READY]
        base |= total | {
            "ID": self._commands.cluster().id,
            "Name": "swarmlet-cluster",
            "Images": images,
            "NCPU": sum(entry.nano_cpus for entry in resources) // 1_000_000_000,
            "MemTotal": sum(entry.memory_bytes for entry in resources),
            "Swarm": self._swarm(nodes),
            "SystemStatus": [["Role", "primary"], ["Nodes", str(len(nodes))], *self._node_rows(answers)],
            "SystemTime": rfc3339(time.time_ns()),
            "Labels": [],
        }
        return json_answer(base)

    async def disk_usage(self, call: Call) -> web.Response:
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", path, timeout_s=30)
        good = [answer.body for answer in answers if answer.status < 400]
        merged: Json = {
            field: sum(int(body.get(field) or 0) for body in good) for field in ("LayersSize", "BuilderSize")
        }
        for field in ("Images", "Containers", "Volumes", "BuildCache"):
            merged[field] = [entry for body in good for entry in body.get(field) or []]
        return json_answer(merged)

    async def _node_infos(self) -> list[Answer]:
        async with self._asking:  # many clients at once share one round
            if time.monotonic() - self._asked_at > INFO_AGE_S:
                answers = await self._fleet.ask_all(self._fleet.ready(), "GET", "/info", timeout_s=INFO_S)
                self._answers = [answer for answer in answers if answer.status < 400]
                self._asked_at = time.monotonic()
        return self._answers

    def _swarm(self, nodes: list[Node]) -> Json:
        managers = [node for node in nodes if node.spec.role is Role.MANAGER]
        own = self._commands.state.nodes.get(self._place.node_id)
        return {
            "NodeID": self._place.node_id,
            "NodeAddr": own.addr if own else "",
            "LocalNodeState": "active",
            "ControlAvailable": True,
            "Error": "",
            "RemoteManagers": [{"NodeID": node.id, "Addr": node.manager_addr} for node in managers],
            "Nodes": len(nodes),
            "Managers": len(managers),
            "Cluster": encode.cluster_info(self._commands.cluster()),
        }

    def _node_rows(self, answers: list[Answer]) -> list[list[str]]:
        return [
            [f" {answer.node.description.hostname}", f"{answer.node.addr}:{answer.node.port}"] for answer in answers
        ]


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
