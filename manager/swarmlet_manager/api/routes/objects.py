"""/volumes of the whole cluster, and networks that are local to nodes (those that span them: `networks.py`).

One made through this view is made on every node that takes work, under the same
name, so that a container finds it wherever it is placed; one removed is removed everywhere.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import NotSupported, Unavailable
from swarmlet_manager.fleet.client import Answer, Fleet, NodeError, first_found

CHANGE_S = 60.0


class ObjectRoutes:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/volumes", self.volumes),
            Route("POST", "/volumes/create", self.create_everywhere),
            Route("POST", "/volumes/prune", self.prune_volumes),
            Route("GET", "/volumes/{id}", self.volume),
            Route("PUT", "/volumes/{id}", self.update_volume),
            Route("DELETE", "/volumes/{id}", self.remove_everywhere),
        ]

    async def volumes(self, call: Call) -> web.Response:
        """Each name once, with the names of the nodes that have it."""
        merged: dict[str, dict[str, Any]] = {}
        warnings: list[str] = []
        for answer in await self._ask(call, "GET"):
            warnings += answer.body.get("Warnings") or []
            for volume in answer.body.get("Volumes") or []:
                known = merged.setdefault(volume["Name"], volume | {"Nodes": []})
                known["Nodes"].append(answer.node.description.hostname)
        return json_answer({"Volumes": list(merged.values()), "Warnings": warnings})

    async def local_networks(self, call: Call) -> list[dict[str, Any]]:
        """Predefined networks once; the others once by name, with the names of the nodes that have them."""
        merged: dict[str, dict[str, Any]] = {}
        query = urlencode({"filters": call.filters().having("scope", "local").encoded()})
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/networks?{query}")
        _raise_refusal(answers)
        for answer in answers:
            for network in answer.body:
                known = merged.setdefault(network["Name"], network | {"Nodes": []})
                known["Nodes"].append(answer.node.description.hostname)
        return list(merged.values())

    async def create_network(self, call: Call, body: Any) -> web.Response:
        return await self._create(call, body)

    async def create_everywhere(self, call: Call) -> web.Response:
        return await self._create(call, await call.raw_json())

    async def _create(self, call: Call, body: Any) -> web.Response:
        """On every node that takes work; if one refuses, the others are undone and its refusal is the answer."""
        nodes = self._fleet.schedulable()
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(nodes, "POST", path, json=body or {}, timeout_s=CHANGE_S)
        refused = [answer for answer in answers if answer.status >= 400]
        made = [answer for answer in answers if answer.status < 400]
        if refused:
            kind = "networks" if "/networks/" in call.path else "volumes"
            for answer in made:
                ident = quote(str(answer.body.get("Id") or answer.body.get("Name")), safe="")
                await self._fleet.ask_all([answer.node], "DELETE", f"/{kind}/{ident}")
            raise NodeError(refused[0].status, f"{refused[0].node.description.hostname}: {refused[0].body}")
        if not made:
            raise Unavailable("no node is ready and active")
        return json_answer(made[0].body, status=201)

    async def volume(self, call: Call) -> web.Response:
        """From the first node that has it."""
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", call.request.rel_url.raw_path_qs)
        return json_answer(first_found(answers, "volume", call.params["id"]).body)

    async def update_volume(self, call: Call) -> web.Response:
        """VolumeUpdate is for cluster volumes only: 404 unknown, 400 otherwise."""
        path = f"/volumes/{quote(call.params['id'], safe='')}"
        first_found(await self._fleet.ask_all(self._fleet.ready(), "GET", path), "volume", call.params["id"])
        raise NotSupported("volume update only valid for cluster volumes")

    async def network(self, call: Call) -> web.Response:
        """As the first node has it, with the containers of all nodes that have one of that name."""
        _, answers = await self._network(call.params["id"], verbose=call.flag("verbose"))
        known = [answer for answer in answers if answer.status < 400]
        containers = {key: each for answer in known for key, each in (answer.body.get("Containers") or {}).items()}
        nodes = [answer.node.description.hostname for answer in known]
        return json_answer(known[0].body | {"Containers": containers, "Nodes": nodes})

    async def remove_everywhere(self, call: Call) -> web.Response:
        await self._change(call, "volume")
        return web.Response(status=204)

    async def remove_network(self, call: Call) -> web.Response:
        """By name on every node; on none if one refuses because containers are connected there."""
        name, answers = await self._network(call.params["id"])
        busy = [answer.node for answer in answers if answer.status < 400 and answer.body.get("Containers")]
        for nodes in (busy, self._fleet.ready()):
            path = f"/networks/{quote(name, safe='')}"
            _raise_refusal(await self._fleet.ask_all(nodes, "DELETE", path, timeout_s=CHANGE_S))
        return web.Response(status=204)

    async def connect(self, call: Call) -> web.Response:
        """On the node that has the container: every other answers 404."""
        name, _ = await self._network(call.params["id"])
        return await self.connect_to(name, call)

    async def connect_to(self, ref: str, call: Call) -> web.Response:
        """To (or from) the network that is called so on the node that has the container."""
        body = await call.raw_json() or {}
        path = f"/networks/{quote(ref, safe='')}/{call.path.rpartition('/')[2]}"
        answers = await self._fleet.ask_all(self._fleet.ready(), "POST", path, json=body, timeout_s=CHANGE_S)
        first_found(answers, "container", str(body.get("Container", "")))
        return web.Response()

    async def _network(self, ref: str, *, verbose: bool = False) -> tuple[str, list[Answer]]:
        """The name behind a name or an id, which differs from node to node, and what each node knows of it.

        The node that was meant comes first. NotFound.
        """

        async def ask(word: str) -> list[Answer]:
            path = f"/networks/{quote(word, safe='')}?scope=local" + ("&verbose=true" if verbose else "")
            return await self._fleet.ask_all(self._fleet.ready(), "GET", path)

        answers = await ask(ref)
        meant = first_found(answers, "network", ref)
        name: str = meant.body["Name"]
        if name != ref:
            answers = [meant, *(answer for answer in await ask(name) if answer.node.id != meant.node.id)]
        return name, answers

    async def prune_volumes(self, call: Call) -> web.Response:
        answers = await self._ask(call, "POST")
        deleted = {name for answer in answers for name in answer.body.get("VolumesDeleted") or []}
        reclaimed = sum(answer.body.get("SpaceReclaimed", 0) for answer in answers)
        return json_answer({"VolumesDeleted": sorted(deleted), "SpaceReclaimed": reclaimed})

    async def prune_local(self, call: Call) -> list[str]:
        """A network that is in use on one node stays on all of them."""
        in_use = urlencode({"filters": '{"dangling":["false"],"type":["custom"],"scope":["local"]}'})
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/networks?{in_use}")
        _raise_refusal(answers)
        kept = {network["Name"] for answer in answers if answer.status < 400 for network in answer.body}
        query = urlencode([*call.request.query.items(), ("scope", "local"), *(("keep", name) for name in sorted(kept))])
        answers = await self._fleet.ask_all(
            self._fleet.ready(), "POST", f"/networks/prune?{query}", timeout_s=CHANGE_S
        )
        _raise_refusal(answers)
        return sorted(
            {name for answer in answers if answer.status < 400 for name in answer.body["NetworksDeleted"] or []}
        )

    async def _ask(self, call: Call, method: str) -> list[Answer]:
        """The client's own question to every node; a refusal of the question itself is the client's."""
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), method, path, timeout_s=CHANGE_S)
        _raise_refusal(answers)
        return [answer for answer in answers if answer.status < 400]

    async def _change(self, call: Call, kind: str) -> None:
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), "DELETE", path, timeout_s=CHANGE_S)
        _raise_refusal(answers)
        first_found(answers, kind, call.params["id"])


def _raise_refusal(answers: list[Answer]) -> None:
    for answer in answers:
        if answer.status >= 400 and answer.status != 404:
            raise NodeError(answer.status, f"{answer.node.description.hostname}: {answer.body}")
