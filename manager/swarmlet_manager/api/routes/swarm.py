"""/swarm: inspect and update of the cluster itself; joining and leaving is each node's own affair."""

from __future__ import annotations

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import Conflict, NotSupported, Unavailable
from swarmlet.model.cluster import SwarmSpec
from swarmlet_manager.api import encode
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.api.routes.nodes import version_of


class SwarmRoutes:
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/swarm", self.inspect),
            Route("POST", "/swarm/update", self.update),
            Route("GET", "/swarm/unlockkey", self.unlock_key),
            Route("POST", "/swarm/unlock", self.unlock),
            Route("POST", "/swarm/init", self.already),
            Route("POST", "/swarm/join", self.already),
            Route("POST", "/swarm/leave", self.leave),
        ]

    async def inspect(self, call: Call) -> web.Response:
        """SwarmInspect, join tokens included (whoever may use this socket may add nodes)."""
        cluster, tokens = self._commands.cluster(), self._commands.join_tokens()
        answer = encode.cluster_info(cluster)
        answer["JoinTokens"] = {"Worker": tokens.worker, "Manager": tokens.manager}
        return json_answer(answer)

    async def update(self, call: Call) -> web.Response:
        """SwarmUpdate: the whole spec at the version it was read, and rotation of the join tokens."""
        if call.boolean("rotateManagerUnlockKey"):
            raise NotSupported("rotating the unlock key is not supported: managers are not locked")
        version, spec = version_of(call, "swarm"), await call.json(SwarmSpec)
        await self._commands.update_cluster(
            version,
            spec,
            rotate_worker_token=call.boolean("rotateWorkerToken"),
            rotate_manager_token=call.boolean("rotateManagerToken"),
        )
        return web.Response()

    async def unlock_key(self, call: Call) -> web.Response:
        return json_answer({"UnlockKey": ""})

    async def unlock(self, call: Call) -> web.Response:
        raise Conflict("swarm is not locked")

    async def already(self, call: Call) -> web.Response:
        raise Unavailable(
            'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
        )

    async def leave(self, call: Call) -> web.Response:
        raise NotSupported("this is the whole cluster's socket: leave through the socket of the node that should go")
