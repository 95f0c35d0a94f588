"""/secrets and /configs: create, list, inspect, update, remove. A secret's data is never answered."""

from __future__ import annotations

import base64
from typing import Any

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument
from swarmlet.model.dependency import Config, ConfigSpec, Dependency, Kind, Secret, SecretSpec
from swarmlet_manager.api import encode
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.api.routes.nodes import version_of
from swarmlet_manager.decide.dependencies import word

FILTERS: dict[Kind, tuple[str, ...]] = {
    Secret: ("id", "label", "name", "names"), Config: ("id", "label", "name"),
}
#: API version from which content can be a template.
TEMPLATES_SINCE = (1, 37)


class DependencyRoutes:
    """Of one kind."""

    def __init__(self, commands: Commands, kind: Kind) -> None:
        self._commands = commands
        self._kind = kind
        self._spec: type[SecretSpec] | type[ConfigSpec] = SecretSpec if kind is Secret else ConfigSpec
        self._path = f"/{word(kind)}s"

    def routes(self) -> list[Route]:
        return [
            Route("GET", self._path, self.index),
            Route("POST", f"{self._path}/create", self.create),
            Route("GET", f"{self._path}/{{id}}", self.inspect),
            Route("POST", f"{self._path}/{{id}}/update", self.update),
            Route("DELETE", f"{self._path}/{{id}}", self.remove),
        ]

    async def index(self, call: Call) -> web.Response:
        """SecretList, ConfigList: filters id and name (prefixes), label; of secrets names, too."""
        filters = call.filters()
        filters.check(*FILTERS[self._kind])
        self._commands.cluster()
        records = sorted(self._commands.dependencies.all(self._kind), key=lambda record: record.name)
        return json_answer([self._encoded(record) for record in records if selects(filters, record)])

    async def create(self, call: Call) -> web.Response:
        """SecretCreate, ConfigCreate: 201; 400 bad name or data, 409 name taken."""
        self._commands.cluster()
        spec: SecretSpec | ConfigSpec = await call.json(self._spec)
        if spec.templating is not None and call.version < TEMPLATES_SINCE:
            kind = word(self._kind)
            raise InvalidArgument(f"{kind} templating is not supported on the specified API version: {call.version}")
        record = await self._commands.dependencies.create(self._kind, spec)
        return json_answer({"ID": record.id}, status=201)

    async def inspect(self, call: Call) -> web.Response:
        return json_answer(self._encoded(self._get(call)))

    async def update(self, call: Call) -> web.Response:
        """SecretUpdate, ConfigUpdate: labels alone, at the version they were read."""
        version = version_of(call, word(self._kind))
        spec: SecretSpec | ConfigSpec = await call.json(self._spec)
        await self._commands.dependencies.update(self._kind, self._get(call).id, version, spec)
        return web.Response()

    async def remove(self, call: Call) -> web.Response:
        """204; 400 in use, 404."""
        await self._commands.dependencies.remove(self._kind, self._get(call).id)
        return web.Response(status=204)

    def _get(self, call: Call) -> Dependency:
        self._commands.cluster()
        return self._commands.dependencies.get(self._kind, call.params["id"])

    def _encoded(self, record: Dependency) -> dict[str, Any]:
        shown: dict[str, Any] = {"Name": record.name, "Labels": record.labels}
        if isinstance(record, Config):
            shown["Data"] = base64.b64encode(self._commands.dependencies.data(record)).decode()
        if record.templating:
            shown["Templating"] = {"Name": record.templating}
        return {"ID": record.id, **encode.meta(record.version, record.created_at, record.updated_at), "Spec": shown}


def selects(filters: Filters, record: Dependency) -> bool:
    names = filters.get("name")
    return (
        filters.matches_prefix("id", record.id)
        and (not names or any(record.name.startswith(name) for name in names))
        and filters.matches("names", record.name)
        and filters.matches_labels(record.labels)
    )
