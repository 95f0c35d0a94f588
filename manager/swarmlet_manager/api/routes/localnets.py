"""Networks that are local to nodes (those that span them: `networks.py`).

One made through the cluster view is made on every node that takes work, under the same name, so that a container finds
it wherever it is placed; one removed is removed everywhere.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call
from swarmlet_manager.fleet.client import Answer, Fleet, first_found
from swarmlet_manager.fleet.everywhere import CHANGE_S, create_everywhere, raise_refusal


class NodeNetworks:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def local_networks(self, call: Call) -> list[dict[str, Any]]:
        """Predefined networks once; the others once by name, with the names of the nodes that have them."""
        merged: dict[str, dict[str, Any]] = {}
        query = urlencode({"filters": call.filters().having("scope", "local").encoded()})
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/networks?{query}")
        raise_refusal(answers)
        for answer in answers:
            for network in answer.body:
                known = merged.setdefault(network["Name"], network | {"Nodes": []})
                known["Nodes"].append(answer.node.description.hostname)
        return list(merged.values())

    async def create_network(self, call: Call, body: Any) -> web.Response:
        path = call.request.rel_url.raw_path_qs
        return json_answer(await create_everywhere(self._fleet, "networks", path, body or {}), status=201)

    async def network(self, call: Call) -> web.Response:
        """As the first node has it, with the containers of all nodes that have one of that name."""
        _, answers = await self._network(call.params["id"], verbose=call.flag("verbose"))
        known = [answer for answer in answers if answer.status < 400]
        containers = {key: each for answer in known for key, each in (answer.body.get("Containers") or {}).items()}
        nodes = [answer.node.description.hostname for answer in known]
        return json_answer(known[0].body | {"Containers": containers, "Nodes": nodes})

    async def remove_network(self, call: Call) -> web.Response:
        """By name on every node; on none if one refuses because containers are connected there."""
        name, answers = await self._network(call.params["id"])
        busy = [answer.node for answer in answers if answer.status < 400 and answer.body.get("Containers")]
        for nodes in (busy, self._fleet.ready()):
            path = f"/networks/{quote(name, safe='')}"
            raise_refusal(await self._fleet.ask_all(nodes, "DELETE", path, timeout_s=CHANGE_S))
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

    async def prune_local(self, call: Call) -> list[str]:
        """A network that is in use on one node stays on all of them."""
        in_use = urlencode({"filters": '{"dangling":["false"],"type":["custom"],"scope":["local"]}'})
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/networks?{in_use}")
        raise_refusal(answers)
        kept = {network["Name"] for answer in answers if answer.status < 400 for network in answer.body}
        query = urlencode([*call.request.query.items(), ("scope", "local"), *(("keep", name) for name in sorted(kept))])
        answers = await self._fleet.ask_all(
            self._fleet.ready(), "POST", f"/networks/prune?{query}", timeout_s=CHANGE_S
        )
        raise_refusal(answers)
        return sorted(
            {name for answer in answers if answer.status < 400 for name in answer.body["NetworksDeleted"] or []}
        )
