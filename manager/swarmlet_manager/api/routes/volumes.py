"""/volumes of the whole cluster.

A volume's data lie on one node: made through this view, it is made on the one that has fewest containers, and
containers that use it go there (`fleet/place.py`). One with options of its driver (an NFS export, say) only names where
its data are; it is made on every node that takes work. A volume that is removed is removed everywhere.
"""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import quote

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route, convert
from swarmlet.errors import NotSupported
from swarmlet.model.node import Node
from swarmlet.model.volume import VolumeCreate
from swarmlet_manager.api.routes.containers import Inventory
from swarmlet_manager.fleet.client import Answer, Fleet, first_found
from swarmlet_manager.fleet.everywhere import CHANGE_S, create_everywhere, raise_refusal
from swarmlet_manager.fleet.place import candidates


class VolumeRoutes:
    def __init__(self, fleet: Fleet, inventory: Inventory) -> None:
        self._fleet = fleet
        self._inventory = inventory

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/volumes", self.index),
            Route("POST", "/volumes/create", self.create),
            Route("POST", "/volumes/prune", self.prune),
            Route("GET", "/volumes/{id}", self.inspect),
            Route("PUT", "/volumes/{id}", self.update),
            Route("DELETE", "/volumes/{id}", self.remove),
        ]

    async def index(self, call: Call) -> web.Response:
        """Each name once, with the names of the nodes that have it."""
        merged: dict[str, dict[str, Any]] = {}
        warnings: list[str] = []
        for answer in await self._ask(call, "GET"):
            warnings += answer.body.get("Warnings") or []
            for volume in answer.body.get("Volumes") or []:
                known = merged.setdefault(volume["Name"], volume | {"Nodes": []})
                known["Nodes"].append(answer.node.description.hostname)
        return json_answer({"Volumes": list(merged.values()), "Warnings": warnings})

    async def create(self, call: Call) -> web.Response:
        """One that a node has already is created there again: its engine says whether it is the same."""
        given = await call.raw_json() or {}
        wanted = convert(given, VolumeCreate)
        path = call.request.rel_url.raw_path_qs
        having = await self._having(wanted.name)
        if wanted.driver_opts or wanted.driver not in ("", "local"):
            named = given if wanted.name else given | {"Name": secrets.token_hex(32)}
            already = {node.id for node in having}
            made = await create_everywhere(self._fleet, "volumes", path, named, already=already)
        else:
            nodes = having or candidates(
                self._fleet.schedulable(), (), self._inventory.container_count, what="volume"
            )
            made = await self._fleet.call(nodes[0], "POST", path, json=given)
        return json_answer(made, status=201)

    async def inspect(self, call: Call) -> web.Response:
        """From the first node that has it."""
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", call.request.rel_url.raw_path_qs)
        return json_answer(first_found(answers, "volume", call.params["id"]).body)

    async def update(self, call: Call) -> web.Response:
        """VolumeUpdate is for cluster volumes only: 404 unknown, 400 otherwise."""
        path = f"/volumes/{quote(call.params['id'], safe='')}"
        first_found(await self._fleet.ask_all(self._fleet.ready(), "GET", path), "volume", call.params["id"])
        raise NotSupported("volume update only valid for cluster volumes")

    async def remove(self, call: Call) -> web.Response:
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), "DELETE", path, timeout_s=CHANGE_S)
        raise_refusal(answers)
        first_found(answers, "volume", call.params["id"])
        return web.Response(status=204)

    async def prune(self, call: Call) -> web.Response:
        answers = await self._ask(call, "POST")
        deleted = {name for answer in answers for name in answer.body.get("VolumesDeleted") or []}
        reclaimed = sum(answer.body.get("SpaceReclaimed", 0) for answer in answers)
        return json_answer({"VolumesDeleted": sorted(deleted), "SpaceReclaimed": reclaimed})

    async def _having(self, name: str) -> list[Node]:
        """The nodes that have a volume of this name."""
        if not name:
            return []
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/volumes/{quote(name, safe='')}")
        return [answer.node for answer in answers if answer.status < 400]

    async def _ask(self, call: Call, method: str) -> list[Answer]:
        """The client's own question to every node; a refusal of the question itself is the client's."""
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), method, path, timeout_s=CHANGE_S)
        raise_refusal(answers)
        return [answer for answer in answers if answer.status < 400]
